"""libsparsec with a model for GPUs: the calls of sparsec.h, as a C program makes them."""

import ctypes
import re

import numpy as np
import pytest

from sparsec.runtime import build
from sparsec.runtime.library import Error

RELU = "(float[5] x) => (y) { y = Relu(x) }"


@pytest.fixture(scope="module")
def library(tmp_path_factory) -> ctypes.CDLL:
    _, shared = build.build_library(tmp_path_factory.mktemp("libsparsec"))
    found = ctypes.CDLL(str(shared))
    found.sparsec_output_data.restype = ctypes.c_void_p
    return found


@pytest.fixture
def model(library, compile_for_gpu, text_model, driver):
    compiled = compile_for_gpu(text_model(RELU))
    driver.be(compiled.emulated)
    handle, error = ctypes.c_void_p(), Error()
    opened = library.sparsec_open(
        str(compiled.path).encode(), None, ctypes.byref(handle), ctypes.byref(error)
    )
    assert not opened, error.message
    yield handle
    library.sparsec_close(handle)


def test_a_context_computes(library, model):
    context, error = ctypes.c_void_p(), Error()
    x = np.array([-2, -1, 0, 1, 2], np.float32)
    for create in (
        lambda *out: library.sparsec_context_create(model, 0, *out),
        lambda *out: library.sparsec_context_create_on(model, 0, *out),
    ):
        assert not create(ctypes.byref(context), ctypes.byref(error)), error.message
        assert not library.sparsec_set_input(context, 0, x.ctypes.data_as(ctypes.c_void_p), x.nbytes, None)
        for _ in range(3):  # launched, captured, replayed
            assert not library.sparsec_run(context, ctypes.byref(error)), error.message
            found = ctypes.string_at(library.sparsec_output_data(context, 0), x.nbytes)
            np.testing.assert_array_equal(np.frombuffer(found, np.float32), np.maximum(x, 0))
        library.sparsec_context_free(context)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda lib, *a: lib.sparsec_context_create_on(a[0], 1, *a[1:]),
            "there is no GPU 1: this machine has 1,",
        ),
        (
            lambda lib, *a: lib.sparsec_context_create_in(a[0], 1, None, ctypes.c_size_t(0), *a[1:]),
            "are in the GPU's memory, not the caller's",
        ),
    ],
)
def test_what_is_refused(call, words, library, model):
    context, error = ctypes.c_void_p(), Error()
    assert call(library, model, ctypes.byref(context), ctypes.byref(error)) == 4  # SPARSEC_E_INPUT
    assert re.search(words, error.message.decode())


def test_a_kernel_that_is_missing_ends_the_creation(library, model, driver, compile_for_gpu, text_model):
    other = compile_for_gpu(text_model("(float[3] x) => (y) { y = Exp(x) }"))
    driver.be(other.emulated)
    context, error = ctypes.c_void_p(), Error()
    assert library.sparsec_context_create(model, 0, ctypes.byref(context), ctypes.byref(error)) == 1
    assert b"kernels.fatbin has no kernel 'relu_kernel'" in error.message
