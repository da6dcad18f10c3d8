"""softmax, sparsemax, entmax and norms against float64 and ONNX Runtime: any size, any axis, limits."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import helper

from sparsec.passes.ops.entmax import entmax as exact_entmax
from sparsec.schedules import RULE, entmax, layer_norm, math, schedule, softmax, sparsemax
from sparsec.schedules.target import X86_LEVELS

SIZES = [1, 7, 8, 31, 33, 129]
SHAPES = [((3, 0), -1), ((2, 0, 5), 1), ((2, 0, 33), -2), ((0, 17), 0)]


def sized(shape: tuple, size: int) -> tuple[int, ...]:
    return tuple(d or size for d in shape)


def kernel(func, level="v3"):
    math.install()
    done = schedule(tvm.IRModule({"main": func}), X86_LEVELS[level])["main"]
    assert str(done.attrs[RULE]) != "unscheduled"
    return done


def onnx_runtime(op: str, x: np.ndarray, **attributes) -> np.ndarray:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "g",
        [value("x", 1, x.shape)],
        [value("y", 1, x.shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def sparsemax_by_sorting(x: np.ndarray, axis: int) -> np.ndarray:
    """Martins and Astudillo 2016, algorithm 1, in float64."""
    x = np.moveaxis(x.astype(np.float64), axis, -1)
    z = x - x.max(-1, keepdims=True)
    ordered = -np.sort(-z, -1)
    sums = np.cumsum(ordered, -1)
    rank = np.arange(1, z.shape[-1] + 1)
    count = (1 + rank * ordered > sums).sum(-1, keepdims=True)
    tau = (np.take_along_axis(sums, count - 1, -1) - 1) / count
    return np.moveaxis(np.maximum(z - tau, 0), -1, axis)


@pytest.mark.parametrize("shape,axis", SHAPES)
def test_softmax(run_kernel, shape, axis):
    rng = np.random.default_rng(0)
    for size in SIZES:
        full = sized(shape, size)
        x = (rng.standard_normal(full) * 5).astype(np.float32)
        z = x.astype(np.float64) - x.max(axis, keepdims=True)
        want = np.exp(z) / np.exp(z).sum(axis, keepdims=True)
        got = run_kernel(kernel(softmax.softmax(full, axis)), X86_LEVELS["v3"], [x], full)
        np.testing.assert_allclose(got, want, rtol=2e-6 + 1e-7 * size**0.5, atol=1e-9)
        got = run_kernel(kernel(softmax.log_softmax(full, axis)), X86_LEVELS["v3"], [x], full)
        np.testing.assert_allclose(got, np.log(want), rtol=2e-6, atol=4e-6)


@pytest.mark.parametrize("shape,axis", SHAPES)
def test_sparsemax(run_kernel, shape, axis):
    rng = np.random.default_rng(1)
    for size in SIZES:
        full = sized(shape, size)
        func = kernel(sparsemax.sparsemax(full, axis))
        plain = rng.standard_normal(full)
        masked = np.where(rng.random(full) < 0.3, -np.inf, plain * 20 + 1000)
        np.put_along_axis(masked, np.zeros_like(masked.argmax(axis, keepdims=True)), 1000.0, axis)
        for x in (plain * 0, plain * 0.01, np.round(plain * 2) / 2, masked, plain * 1e30):
            x = x.astype(np.float32)
            got = run_kernel(func, X86_LEVELS["v3"], [x], full)
            np.testing.assert_allclose(got, sparsemax_by_sorting(x, axis), atol=2e-6, rtol=0)
            np.testing.assert_allclose(got.sum(axis), 1, atol=1e-5)


@pytest.mark.parametrize("size", [17, 25, 197, 300, 513, 1001])
def test_sparsemax_counts_no_element_twice_where_vectors_overlap(run_kernel, size):
    x = np.random.default_rng(9).standard_normal((5, size)).astype(np.float32)
    x[0, -1] = x[0].max() + 0.1
    x[1, -9] = x[1].max() + 0.5
    got = run_kernel(kernel(sparsemax.sparsemax(x.shape)), X86_LEVELS["v3"], [x], x.shape)
    np.testing.assert_allclose(got, sparsemax_by_sorting(x, -1), atol=1e-6, rtol=0)


def test_sparsemax_of_a_vocabulary(run_kernel):
    x = np.random.default_rng(2).standard_normal((2, 32000)).astype(np.float32)
    x[1] *= 1e-4
    got = run_kernel(kernel(sparsemax.sparsemax(x.shape)), X86_LEVELS["v3"], [x], x.shape)
    want = sparsemax_by_sorting(x, -1)
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=0)
    assert (got[0] > 0).sum() == (want[0] > 0).sum()


def assert_shares(got, x, alpha, axis):
    """Within 1e-5 of the largest share of each row, as bisection in float64 has it."""
    want = exact_entmax(x.astype(np.float64), alpha, axis)
    assert (np.abs(got - want).max(axis) <= 1e-5 * want.max(axis)).all()
    np.testing.assert_allclose(got.sum(axis), 1, atol=1e-5)


V4 = pytest.mark.isa("avx512f", "avx512vl")


@pytest.mark.parametrize(
    "level, alpha, shape, axis",
    [
        ("v3", 1.5, (5, 1), -1),
        ("v3", 1.5, (6, 33), -1),
        ("v3", 1.5, (2, 1001), -1),
        ("v3", 1.5, (2, 15, 33), 1),
        ("v3", 1.1, (4, 65), -1),
        ("v3", 1.3, (5, 7), -1),
        ("v3", 1.4, (3, 17, 2), 1),
        ("v3", 2.0, (2, 31), -1),
        pytest.param("v4", 1.5, (3, 197), -1, marks=V4),
        pytest.param("v4", 1.05, (3, 129), -1, marks=V4),
        pytest.param("v4", 1.8, (2, 300), -1, marks=V4),
    ],
)
def test_entmax(run_kernel, level, alpha, shape, axis):
    """All equal, nearly, ties, far apart, masked by -inf; saturating; the winner where vectors overlap."""
    rng = np.random.default_rng(1)
    plain = rng.standard_normal(shape)
    masked = np.where(rng.random(shape) < 0.3, -np.inf, plain * 20 + 1000)
    first = np.zeros_like(masked.argmax(axis, keepdims=True))
    np.put_along_axis(masked, first, 1000.0, axis)
    ending = plain.copy()
    np.put_along_axis(ending, first - 1, 9.0, axis)
    cases = [plain * 0, plain * 1e-4, plain, np.round(plain * 2) / 2, masked, plain * 1e30, ending]
    x = np.concatenate(cases).astype(np.float32)
    got = run_kernel(kernel(entmax.entmax(x.shape, alpha, axis), level), X86_LEVELS[level], [x], x.shape)
    assert_shares(got, x, alpha, axis)
    assert (got[np.isneginf(x)] == 0).all()


def test_entmax_of_a_vocabulary(run_kernel):
    x = np.random.default_rng(2).standard_normal((3, 32000)).astype(np.float32)
    x[1] *= 1e-4
    x[2] *= 4
    got = run_kernel(kernel(entmax.entmax(x.shape, 1.5)), X86_LEVELS["v3"], [x], x.shape)
    # A row that is nearly flat is a sum of 32000 equal terms in float32.
    np.testing.assert_allclose(got, exact_entmax(x.astype(np.float64), 1.5), atol=1e-7, rtol=2e-4)


@pytest.mark.parametrize("alpha", [1.3, 1.5])
def test_a_row_does_not_depend_on_its_neighbours(run_kernel, alpha):
    """Rows are taken together until the last of them has ended; the others stay as they are."""
    rng = np.random.default_rng(7)
    x = rng.standard_normal((8, 65)).astype(np.float32)
    func = kernel(entmax.entmax((8, 65), alpha))
    got = run_kernel(func, X86_LEVELS["v3"], [x], x.shape)
    x[1::2] = rng.standard_normal((4, 65)) * 1e-4
    np.testing.assert_array_equal(run_kernel(func, X86_LEVELS["v3"], [x], x.shape)[::2], got[::2])


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_entmax_row_with_nan_or_inf_is_nan(run_kernel, alpha):
    x = np.random.default_rng(5).standard_normal((4, 33)).astype(np.float32)
    x[0, 7], x[1, 32], x[2] = np.nan, np.inf, -np.inf
    got = run_kernel(kernel(entmax.entmax(x.shape, alpha)), X86_LEVELS["v3"], [x], x.shape)
    assert np.isnan(got[:3]).all()
    assert_shares(got[3:], x[3:], alpha, -1)


@pytest.mark.parametrize("alpha", [1.3, 1.5, 2.0])
def test_the_definition_of_entmax_is_right_unscheduled(run_kernel, alpha):
    math.install()
    x = np.random.default_rng(3).standard_normal((3, 9, 2)).astype(np.float32) * 2
    x[0, :4, 0], x[1] = -np.inf, 3.0
    got = run_kernel(entmax.entmax(x.shape, alpha, 1), X86_LEVELS["v3"], [x], x.shape)
    assert_shares(got, x, alpha, 1)


@pytest.mark.parametrize("alpha", [1.0, 2.5])
def test_an_alpha_without_a_kernel_is_refused(alpha):
    with pytest.raises(ValueError, match=f"entmax: required an alpha above 1, at most 2, found {alpha}"):
        entmax.entmax((3, 4), alpha)


def test_definitions_mean_what_their_kernels_compute(run_kernel):
    """The unscheduled functions, built as they are."""
    x = np.random.default_rng(3).standard_normal((3, 4, 9)).astype(np.float32)
    x[0, 0, :4] = -np.inf
    z = x.astype(np.float64) - x.max(1, keepdims=True)
    exact = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    cpu = X86_LEVELS["v3"]
    np.testing.assert_allclose(run_kernel(softmax.softmax(x.shape, 1), cpu, [x], x.shape), exact, rtol=1e-5)
    got = run_kernel(sparsemax.sparsemax(x.shape, 1), cpu, [x], x.shape)
    np.testing.assert_allclose(got, sparsemax_by_sorting(x, 1), atol=1e-6)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_at_the_limits_is_onnx_runtime_s(run_kernel, op, axis):
    x = np.random.default_rng(4).standard_normal((20, 20)).astype(np.float32)
    x[0, 3], x[1, 4], x[2, 5], x[5, 19] = np.nan, np.inf, -np.inf, 88.0
    x[3], x[:, 11], x[4] = -np.inf, -np.inf, 7.0
    make = softmax.softmax if op == "Softmax" else softmax.log_softmax
    got = run_kernel(kernel(make(x.shape, axis)), X86_LEVELS["v3"], [x], x.shape)
    np.testing.assert_allclose(got, onnx_runtime(op, x, axis=axis), rtol=3e-6, atol=3e-6)


def test_sparsemax_row_with_nan_or_inf_is_nan(run_kernel):
    x = np.random.default_rng(5).standard_normal((4, 33)).astype(np.float32)
    x[0, 7], x[1, 32], x[2] = np.nan, np.inf, -np.inf
    got = run_kernel(kernel(sparsemax.sparsemax(x.shape)), X86_LEVELS["v3"], [x], x.shape)
    assert np.isnan(got[:3]).all()
    np.testing.assert_allclose(got[3], sparsemax_by_sorting(x[3:], -1)[0], atol=1e-6)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_layer_norm(run_kernel, bias, offset):
    rng = np.random.default_rng(6)
    for size in SIZES:
        for shape, axis in (((4, size), -1), ((2, 3, size, 5), 2)):
            x = (rng.standard_normal(shape) * 3 + offset).astype(np.float32)
            scale, shift = rng.standard_normal((2, *shape[axis:])).astype(np.float32)
            axes = tuple(range(axis % len(shape), len(shape)))
            z = x.astype(np.float64)
            want = (z - z.mean(axes, keepdims=True)) / np.sqrt(z.var(axes, keepdims=True) + 1e-5) * scale
            inputs = [x, scale, shift] if bias else [x, scale]
            func = kernel(layer_norm.layer_norm(shape, axis, 1e-5, bias))
            got = run_kernel(func, X86_LEVELS["v3"], inputs, shape)
            # The mean is a float32: what it loses to the offset is lost in every implementation.
            np.testing.assert_allclose(got, want + shift * bias, atol=1e-5 + 5e-7 * offset, rtol=1e-5)


def test_rms_norm(run_kernel):
    rng = np.random.default_rng(7)
    for size in SIZES:
        x, scale = (
            rng.standard_normal((3, size)).astype(np.float32),
            rng.standard_normal(size).astype(np.float32),
        )
        want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * scale
        got = run_kernel(
            kernel(layer_norm.rms_norm(x.shape, -1, 1e-6)), X86_LEVELS["v3"], [x, scale], x.shape
        )
        np.testing.assert_allclose(got, want, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("level", ["v2", "v4"])
def test_other_levels(run_kernel, level):
    if level == "v4" and "avx512f" not in cpu_flags():
        pytest.skip("needs a processor with avx512f")
    x = np.random.default_rng(8).standard_normal((5, 45)).astype(np.float32)
    z = np.exp(x.astype(np.float64))
    cpu = X86_LEVELS[level]
    got = run_kernel(kernel(softmax.softmax(x.shape), level), cpu, [x], x.shape)
    np.testing.assert_allclose(got, z / z.sum(-1, keepdims=True), rtol=3e-6)
    got = run_kernel(kernel(sparsemax.sparsemax(x.shape), level), cpu, [x], x.shape)
    np.testing.assert_allclose(got, sparsemax_by_sorting(x, -1), atol=1e-6)


def cpu_flags() -> str:
    return Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize(
    "make", [softmax.softmax, sparsemax.sparsemax, lambda shape: entmax.entmax(shape, 1.3)]
)
def test_rows_take_no_memory_from_the_runtime(make):
    func = kernel(make((64, 1000))).with_attr("global_symbol", "main")
    ir = tvm.tirx.build(func, target=X86_LEVELS["v4"].tvm_target(), pipeline="s_tir").inspect_source("ll")
    assert "AllocWorkspace" not in ir
    assert "<16 x float>" in ir
    assert "@expf" not in ir


@pytest.mark.parametrize("name,make", [("softmax", softmax.softmax), ("sparsemax", sparsemax.sparsemax)])
def test_an_axis_that_does_not_exist_is_refused(name, make):
    with pytest.raises(ValueError, match=f"{name}: required an axis from -2 to 1, found 2; correct the axis"):
        make((3, 4), 2)
