"""Row kernels under the emulator: every thread order, accesses checked, rows of a warp and of a block."""

import numpy as np
import pytest
import torch

from sparsec.passes.ops.entmax import entmax as exact_entmax
from sparsec.schedules import bits, entmax, layer_norm, softmax, sparsemax
from sparsec.schedules.cuda.row import MemoryRow
from sparsec.schedules.cuda.rows import rule
from sparsec.schedules.halves import HALVES

# A warp with rows to spare, tails, several elements each; a block; a block that reads its row again.
SHAPES = [(3, 1), (9, 31), (2, 5, 129), (8, 256), (2, 1500), (1, 33000)]


def ids(shape):
    return "x".join(map(str, shape))


def torch_sparsemax(x):
    """By sorting (Martins and Astudillo 2016, algorithm 1), in float64."""
    x = x - x.amax(-1, keepdim=True)
    z = torch.sort(x, dim=-1, descending=True).values
    rank = torch.arange(1, x.shape[-1] + 1, dtype=x.dtype)
    support = (1 + rank * z > z.cumsum(-1)).sum(-1, keepdim=True)
    tau = (torch.gather(z.cumsum(-1), -1, support - 1) - 1) / support
    return torch.clamp(x - tau, min=0)


PROJECTIONS = {
    "softmax": (softmax.softmax, lambda x: torch.softmax(x, -1)),
    "log_softmax": (softmax.log_softmax, lambda x: torch.log_softmax(x, -1)),
    "sparsemax": (sparsemax.sparsemax, torch_sparsemax),
}


@pytest.mark.parametrize("shape", SHAPES, ids=ids)
@pytest.mark.parametrize("op", PROJECTIONS)
def test_projections(run_emulated, assert_close, op, shape):
    definition, oracle = PROJECTIONS[op]
    x = (np.random.default_rng(0).standard_normal(shape) * 2).astype(np.float32)
    want = oracle(torch.from_numpy(x.astype(np.float64))).numpy()
    for y in run_emulated(definition(shape), "row", [x], (shape, np.float32), checked=shape == (2, 1500)):
        assert_close(y, want)


@pytest.mark.parametrize("x", [[[1.0, 1.0, 1.0, 1.0]], [[0.0, 5.0, 0.0, 0.0]], [[-1e30, 0.0, 0.25, 1e30]]])
def test_sparsemax_of_ties_and_extremes(run_emulated, assert_close, x):
    x = np.array(x, np.float32)
    want = torch_sparsemax(torch.from_numpy(x.astype(np.float64))).numpy()
    for y in run_emulated(sparsemax.sparsemax(x.shape), "row", [x], (x.shape, np.float32), checked=False):
        assert_close(y, want)


@pytest.mark.parametrize("alpha, length", [(1.5, 41), (1.3, 41), (1.5, 1500), (1.5, 33000)])
def test_entmax(run_emulated, assert_close, alpha, length):
    """Rows that end early and late, ties, masks, one winner; rows without an answer."""
    rows = 10 if length == 41 else 4
    x = np.random.default_rng(0).standard_normal((rows, length)) * np.geomspace(30, 1e-4, rows)[:, None]
    x[0, ::3], x[1, 5:9] = -np.inf, x[1].max()
    x[-3, 7], x[-2, 3], x[-1] = np.nan, np.inf, -np.inf
    if rows == 10:
        x[2, 40] = 1e30
    x = x.astype(np.float32)
    want = exact_entmax(x[:-3].astype(np.float64), alpha)
    func = entmax.entmax(x.shape, alpha)
    for y in run_emulated(func, "row", [x], (x.shape, np.float32), checked=length == 1500):
        assert_close(y[:-3], want)
        assert np.isnan(y[-3:]).all()


@pytest.mark.parametrize("op", PROJECTIONS)
@pytest.mark.parametrize("length", [5, 1100])
def test_rows_of_nan_and_infinity_are_nan(run_emulated, op, length):
    x = np.zeros((4, length), np.float32)
    x[0, 3], x[1, 1], x[2] = np.nan, np.inf, -np.inf
    for y in run_emulated(PROJECTIONS[op][0](x.shape), "row", [x], (x.shape, np.float32), checked=False):
        assert np.isnan(y[:3]).all()
        assert np.isfinite(y[3]).all()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape, axis", [((7, 33), 1), ((2, 3, 5, 8), 2), ((2, 2048), -1)])
def test_layer_norm(run_emulated, assert_close, shape, axis, bias):
    rng = np.random.default_rng(0)
    inner = shape[axis:]
    # A large offset costs no digits.
    x = (rng.standard_normal(shape) + 100).astype(np.float32)
    scale, shift = rng.standard_normal((2, *inner)).astype(np.float32)
    func = layer_norm.layer_norm(shape, axis, 1e-5, bias)
    double = [torch.from_numpy(a.astype(np.float64)) for a in (x, scale, shift)]
    want = torch.nn.functional.layer_norm(
        double[0], inner, double[1], double[2] if bias else None, 1e-5
    ).numpy()
    inputs = [x, scale, shift] if bias else [x, scale]
    for y in run_emulated(func, "row", inputs, (shape, np.float32), checked=bias):
        assert_close(y, want)


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
def test_layer_norm_of_16_bits(run_emulated, half):
    rng = np.random.default_rng(0)
    x, scale, shift = rng.standard_normal((5, 72)), rng.standard_normal(72), rng.standard_normal(72)
    double = map(torch.from_numpy, (scale, shift))
    want = torch.nn.functional.layer_norm(torch.from_numpy(x), (72,), *double)
    want = want.to(getattr(torch, half.name)).double().numpy()
    func = layer_norm.layer_norm(x.shape, 1, 1e-5, True, half)
    inputs = [a.astype(np.float32) for a in (x, scale, shift)]
    for y in run_emulated(func, "row", inputs, (x.shape, np.uint16), checked=False):
        found = getattr(bits, f"from_{half.name}")(y)
        # Equal, but where float32's rounding crossed the middle of two neighbours.
        assert (found == want).mean() > 0.97 and np.abs(found - want).max() < 2.0**-7 * np.abs(want).max()


def test_rms_norm(run_emulated, assert_close):
    rng = np.random.default_rng(0)
    x, scale = rng.standard_normal((5, 72)).astype(np.float32), rng.standard_normal(72).astype(np.float32)
    want = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * scale
    func = layer_norm.rms_norm(x.shape, 1, 1e-6)
    for y in run_emulated(func, "row", [x, scale], (x.shape, np.float32), checked=False):
        assert_close(y, want)


def test_rows_are_kept_in_registers_where_they_fit():
    import tvm

    rows = {}
    for extent in (1024, 8192, 32768, 32772):
        x = tvm.tirx.decl_buffer((2, extent), "float32")
        row = MemoryRow.of(x, x, 1)
        rows[extent] = row.threads, row.kept
    assert rows == {1024: (32, True), 8192: (256, True), 32768: (1024, True), 32772: (512, False)}


def test_what_is_left_to_other_rules(gpu):
    assert rule(softmax.softmax((4, 5, 6), 1), gpu) is None
    assert rule(softmax.softmax((0, 5)), gpu) is None
