"""The runtime on a GPU: memory, contexts, graphs, and every failure in one line."""

import ctypes
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsec.runtime import InputError, RunError, TargetError, load
from sparsec.runtime import device as device_module

LOOKUP = "(float[5,4] table, int64[3] at) => (y) { rows = Gather <axis = 0> (table, at) y = Relu(rows) }"
ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def lookup(compile_for_gpu, text_model, driver):
    """A lookup of the rows 0, 2 and 4, on a usual GPU."""
    compiled = compile_for_gpu(text_model(LOOKUP))
    driver.be(compiled.emulated)
    return compiled


TABLE = np.arange(-10, 10, dtype=np.float32).reshape(5, 4)
FEEDS = {"table": TABLE, "at": np.array([0, 2, -1])}
EXPECTED = np.maximum(TABLE[[0, 2, 4]], 0)


def test_the_manifest_says_what_it_is_for(lookup):
    with load(lookup.path) as model:
        assert model.level == f"cuda-{platform.machine()}" and model.device == 0
        gpu = {"architectures": ["sm_80", "sm_87", "sm_89", "sm_90"], "ptx": "sm_90", "cuda": "13.0"}
        assert model.manifest["gpu"] == gpu


def test_contexts_share_weights_and_kernels(compile_for_gpu, text_model, driver):
    import onnx
    import onnx.numpy_helper

    model = onnx.load_from_string(text_model("(float[1,8] x, float[8,8] w) => (y) { y = MatMul(x, w) }"))
    weight = np.random.default_rng(0).standard_normal((8, 8), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    del model.graph.input[1]
    compiled = compile_for_gpu(model.SerializeToString())
    driver.be(compiled.emulated)
    x = np.ones((1, 8), np.float32)
    with load(compiled.path) as loaded:
        before = driver.counters.allocations
        other = loaded.context()
        assert driver.counters.modules == 1
        assert driver.counters.allocations == before + 1  # the context's own memory, no weights
        for context in (loaded, other):
            np.testing.assert_allclose(context(x)["y"], x @ weight, rtol=1e-6)


def test_an_index_outside_ends_the_run_and_the_next_one_is_right(lookup):
    with load(lookup.path) as model:
        for _ in range(3):  # launched, captured, replayed
            with pytest.raises(RunError, match=r"^Gather '\w*': an index is outside \[-5, 5\)$"):
                model(TABLE, np.array([0, 5, 1]))
            np.testing.assert_array_equal(model(FEEDS)["y"], EXPECTED)


def test_a_profile_has_every_step(lookup):
    with load(lookup.path) as model:
        profile = model.profile(FEEDS, repeats=2)
        assert len(profile) == lookup.report["steps"] and all(seconds > 0 for _, seconds in profile)
        np.testing.assert_array_equal(model(FEEDS)["y"], EXPECTED)


class Tensor:
    """What torch or CuPy would hand over: an array in the memory of a GPU."""

    def __init__(self, driver, array: np.ndarray, offset: int = 0, strides=None, device: int = 0):
        self.address = driver.alloc(
            np.concatenate([np.zeros(offset, np.uint8), array.ravel().view(np.uint8)])
        )
        self.driver, self.array, self.device, self.streams = driver, array, device, []
        code = {"f": 2, "i": 0}[array.dtype.kind]
        self.shape = (ctypes.c_int64 * array.ndim)(*array.shape)
        self.strides = (ctypes.c_int64 * array.ndim)(*strides) if strides else None
        self.managed = device_module._Tensor(
            self.address, 2, device, array.ndim, code, array.itemsize * 8, 1, self.shape, self.strides, offset
        )

    def __dlpack_device__(self):
        return 2, self.device

    def __dlpack__(self, *, stream):
        self.streams.append(stream)
        new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(("PyCapsule_New", ctypes.pythonapi))(ctypes.addressof(self.managed), b"dltensor", None)

    def read(self) -> np.ndarray:
        raw = ctypes.string_at(self.address + self.managed.byte_offset, self.array.nbytes)
        return np.frombuffer(raw, self.array.dtype).reshape(self.array.shape)


@pytest.fixture
def tensor(driver):
    """``tensor(array)``: a copy of it in the GPU's memory."""
    made = []

    def make(*args, **options) -> Tensor:
        made.append(Tensor(driver, *args, **options))
        return made[-1]

    yield make
    for each in made:
        driver.free(each.address)


def test_device_memory_is_used_in_place(lookup, driver, tensor):
    table, y = tensor(TABLE), tensor(np.zeros_like(EXPECTED))
    with load(lookup.path) as model:
        for _ in range(3):  # launched, captured, replayed
            found = model({"table": table, "at": FEEDS["at"]}, out={"y": y})
            assert found == {"y": y}
            np.testing.assert_array_equal(y.read(), EXPECTED)
        assert driver.counters.graph_launches == 2 and driver.counters.copies_between == 0
        assert all(stream == table.streams[0] > 2 for stream in table.streams + y.streams)
        other = tensor(-TABLE)
        np.testing.assert_array_equal(
            model({"table": other, "at": FEEDS["at"]})["y"], np.maximum(-TABLE[[0, 2, 4]], 0)
        )


def test_device_memory_that_is_not_aligned_is_copied(lookup, driver, tensor):
    table, y = tensor(TABLE, offset=4), tensor(np.zeros_like(EXPECTED), offset=8)
    with load(lookup.path) as model:
        for _ in range(3):
            model({"table": table, "at": FEEDS["at"]}, out={"y": y})
            np.testing.assert_array_equal(y.read(), EXPECTED)
    assert driver.counters.copies_between == 6


def test_device_memory_that_does_not_fit_is_refused(lookup, tensor):
    with load(lookup.path) as model:
        for bad, words in (
            (tensor(TABLE[:3]), r"input 'table': wanted float32\[5, 4\], found float32\[3, 4\]"),
            (tensor(TABLE.astype(np.float64)), r"wanted float32\[5, 4\], found float64\[5, 4\]"),
            (tensor(TABLE, strides=(1, 5)), "input 'table' must be contiguous in the GPU's memory"),
        ):
            with pytest.raises(InputError, match=words):
                model({"table": bad, "at": FEEDS["at"]})
        table = tensor(TABLE)
        with pytest.raises(InputError, match="output 'y' overlaps an input"):
            same = tensor(EXPECTED)
            same.managed.data = table.managed.data
            model({"table": table, "at": FEEDS["at"]}, out={"y": same})


def test_memory_of_another_gpu_is_refused(lookup, driver, tensor):
    driver.be(lookup.emulated, devices=2)
    words = "'table' is in the memory of GPU 0, the context is on GPU 1"
    with load(lookup.path, device=1) as model, pytest.raises(InputError, match=words):
        model({"table": tensor(TABLE), "at": FEEDS["at"]})


@pytest.mark.parametrize(
    ("wanted", "kind", "words"),
    [
        ({"devices": 0}, TargetError, "the NVIDIA driver finds no GPU on this machine"),
        ({"init_result": 803}, TargetError, "does not start: CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"),
        (
            {"capability": 75},
            TargetError,
            r"for sm_80, sm_87, sm_89, sm_90 and PTX for compute_90; GPU 0 \(Fake GPU\) is sm_75: compile",
        ),
        (
            {"load_result": 209, "version": 12020},
            TargetError,
            r"driver is too old: it knows CUDA 12\.2, .* made by CUDA 13\.0; update the driver",
        ),
        ({"load_result": 209}, TargetError, "cannot load the artifact's kernels: CUDA_ERROR_NO_BINARY_FOR_"),
        ({"load_result": 2}, RunError, "too little memory left for the model's kernels"),
        ({"memory": 100}, RunError, r"GPU 0 has too little memory left: \d+ bytes are needed for a context"),
    ],
)
def test_each_failure_is_one_line(lookup, driver, wanted, kind, words):
    driver.be(lookup.emulated, **wanted)
    with pytest.raises(kind, match=words) as caught:
        load(lookup.path)
    assert "\n" not in str(caught.value)


def test_weights_that_do_not_fit_are_one_line(compile_for_gpu, text_model, driver):
    import onnx

    model = onnx.load_from_string(text_model("(float[1,64] x, float[64,64] w) => (y) { y = MatMul(x, w) }"))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((64, 64), np.float32), "w"))
    del model.graph.input[1]
    compiled = compile_for_gpu(model.SerializeToString())
    driver.be(compiled.emulated, memory=1 << 12)
    words = (
        r"GPU 0 has too little memory left: 16384 bytes are needed for weights \(CUDA_ERROR_OUT_OF_MEMORY\)$"
    )
    with pytest.raises(RunError, match=words):
        load(compiled.path)


def test_later_gpus_take_the_ptx_and_earlier_minors_do_not(lookup, driver, compile_for_gpu, text_model):
    driver.be(lookup.emulated, capability=120)
    load(lookup.path).close()
    one = compile_for_gpu(text_model(LOOKUP), target="cuda:sm_87")
    assert one.report["levels"] == ["sm_87"]
    driver.be(one.emulated, capability=87)
    load(one.path).close()
    for capability in (80, 90):  # an earlier minor version, a later major one
        driver.be(one.emulated, capability=capability)
        words = rf"are for sm_87; GPU 0 .* is sm_{capability}: compile with --target"
        with pytest.raises(TargetError, match=words):
            load(one.path)


def test_devices_are_counted_from_0(lookup, driver):
    driver.be(lookup.emulated, devices=2)
    with load(lookup.path, device=1) as model:
        assert model.device == 1
        np.testing.assert_array_equal(model(FEEDS)["y"], EXPECTED)
    with pytest.raises(InputError, match="there is no GPU 2: this machine has 2, counted from 0"):
        load(lookup.path, device=2)
    with pytest.raises(InputError, match="device must be a GPU's number or None, found '1'"):
        load(lookup.path, device="1")


def test_kernels_of_another_model_are_refused(lookup, driver, compile_for_gpu, text_model):
    other = compile_for_gpu(text_model("(float[3] x) => (y) { y = Exp(x) }"))
    driver.be(other.emulated)
    with pytest.raises(Exception, match=r"kernels\.fatbin has no kernel '\w+' \(CUDA_ERROR_NOT_FOUND\)"):
        load(lookup.path)


def test_a_fork_does_not_inherit_the_gpu(lookup):
    with load(lookup.path) as model:
        context = model.context()
        child = os.fork()
        if not child:
            try:
                context(FEEDS)
            except RunError as error:
                os._exit(0 if "made before fork" in str(error) else 2)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_without_a_driver_it_says_so(lookup):
    code = (
        f"import sparsec.runtime as r\ntry: r.load({str(lookup.path)!r})\nexcept r.TargetError as e: print(e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    if done.stdout == "":
        pytest.skip("this machine has an NVIDIA driver and a GPU")
    assert "NVIDIA driver" in done.stdout and len(done.stdout.splitlines()) == 1
