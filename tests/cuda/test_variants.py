"""One file for GPUs with a network in several patterns: kernels of their own, weights of a common table."""

import zipfile

import numpy as np
import onnx
import pytest

from sparsec.compiler.cuda import road
from sparsec.runtime import load
from sparsec.runtime.artifact import Artifact

VARIANTS = ("2:4", "1:4")
RNG = np.random.default_rng(5)
SPARSE = RNG.standard_normal((64, 48), np.float32)
DENSE = RNG.standard_normal((48, 256), np.float32)  # what all variants share


def largest(n: int) -> np.ndarray:
    """Of each 4 inputs (rows) of SPARSE the n largest."""
    groups = np.abs(SPARSE).reshape(-1, 4, 48)
    rank = (-groups).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return np.where((rank < n).reshape(SPARSE.shape), SPARSE, np.float32(0))


@pytest.fixture(scope="module")
def compiled(compile_for_gpu, text_model):
    body = "(float[5,64] x, float[64,48] w, float[48,256] v) => (y) { h = MatMul(x, w) y = MatMul(h, v) }"
    model = onnx.load_from_string(text_model(body))
    for name, weight in (("w", largest(2)), ("v", DENSE)):
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    del model.graph.input[1:]
    return compile_for_gpu(model.SerializeToString(), variants=VARIANTS, sparsity="require")


def member(compiled, name: str) -> bytes:
    return zipfile.ZipFile(compiled.path).read(name)


@pytest.mark.parametrize(("variant", "n", "beside"), [(None, 2, ""), ("2:4", 2, ""), ("1:4", 1, ".1-4")])
def test_each_variant_runs_its_own_kernels(compiled, driver, variant, n, beside):
    from cuda_emulator import library

    source = member(compiled, f"kernels{beside}.cu").decode()
    assert Artifact(compiled.path, variant=variant).kernels == member(compiled, f"kernels{beside}.fatbin")
    driver.be(library(source))
    x = RNG.standard_normal((5, 64), np.float32)
    wanted = x.astype(np.float64) @ largest(n) @ DENSE
    with load(compiled.path, variant=variant) as model:
        assert model.variants == VARIANTS and model.manifest["layers"][0]["pattern"] == f"{n}:4"
        for _ in range(3):  # launched, captured, replayed
            np.testing.assert_allclose(model(x)["y"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_what_they_share_is_stored_once(compiled):
    assert member(compiled, "kernels.fatbin") != member(compiled, "kernels.1-4.fatbin")
    assert DENSE.nbytes < len(member(compiled, "weights.bin")) < DENSE.nbytes + SPARSE.nbytes
    assert road.SOURCE in zipfile.ZipFile(compiled.path).namelist()
