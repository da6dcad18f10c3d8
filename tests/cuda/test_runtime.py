"""The runtime on a GPU: memory, contexts, graphs, and every failure in one line."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sparsec.runtime import InputError, RunError, TargetError, load

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
