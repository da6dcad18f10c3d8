"""Products on tensor cores, under the emulator: every thread order, one run with all accesses checked."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparsec.schedules.cuda.tensor_gemm import TILES, TensorGemm, Tile, Words, find_anchor, tile_for
from sparsec.schedules.cuda.tensor_kernel import rule
from sparsec.schedules.cuda.tile import with_tile

RULE = "tensor_gemm"
SMALL = {
    "one warp": Tile(16, 8, 1, 1, 1, 2),
    "warps side by side": Tile(64, 16, 2, 2, 1, 3),
    "warps along k": Tile(32, 16, 1, 1, 4, 4),
    "all": Tile(32, 32, 2, 2, 2, 2),
}
# Rows, k, n: a row, tails everywhere, whole tiles.
SIZES = [(1, 8, 1), (17, 200, 31), (33, 264, 36), (32, 256, 64)]


def weight_of(rng, spec):
    dtype = "float32"
    weight = rng.standard_normal((spec.n, spec.k)).astype(dtype)
    if spec.sparse:
        groups = weight.reshape(spec.n, -1, 4)
        weight = np.where(np.argsort(rng.random(groups.shape), axis=-1) < 2, groups, 0).reshape(weight.shape)
    return weight.astype(half(spec.dtype))


def half(dtype):
    return np.float16 if dtype == "float16" else pytest.importorskip("ml_dtypes").bfloat16


def operands(spec, seed=0):
    rng = np.random.default_rng(seed)
    weight = weight_of(rng, spec)
    x = rng.standard_normal(spec.x_shape).astype(half(spec.dtype))
    return x, weight, x.astype(np.float64) @ weight.astype(np.float64).T


def close(got, want, part=1e-6):
    """Sums of exact products: float32 rounds at the end, and where sums are added."""
    assert got.shape == want.shape
    return np.abs(got - want).max() <= part * np.abs(want).max()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_the_definition_is_the_product(m, k, n, sparse):
    spec = TensorGemm((m,), k, n, sparse)
    x, weight, want = operands(spec)
    func = spec.prim_func().with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target="llvm", pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(spec.y_shape, 77, np.float32))
    library["main"](*(tvm.runtime.tensor(a) for a in (x, *spec.pack(weight))), y)
    assert close(y.numpy(), want, 1e-5)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("tile", SMALL.values(), ids=SMALL)
def test_tiles_are_right_in_every_order(run_emulated, tile, sparse):
    spec = TensorGemm((17,), 200, 31, sparse)
    x, weight, want = operands(spec)
    for y in run_emulated(
        with_tile(spec.prim_func(), tile), RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32)
    ):
        assert close(y, want)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("m, k, n", SIZES)
def test_sizes_are_right_in_every_order(run_emulated, m, k, n, sparse):
    spec = TensorGemm((m,), k, n, sparse)
    x, weight, want = operands(spec)
    kernel = with_tile(spec.prim_func(), SMALL["all"])
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=False):
        assert close(y, want)


@pytest.mark.parametrize("most, tile", TILES, ids=[f"{t.channels}x{t.tokens}" for _, t in TILES])
def test_the_tiles_that_are_chosen(run_emulated, gpu, most, tile):
    spec = TensorGemm((1, min(most, 1030) - 1), 72, 132, sparse=True)
    assert tile_for(spec, gpu.shared).channels == tile.channels
    x, weight, want = operands(spec)
    for y in run_emulated(
        spec.prim_func(), RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=False
    ):
        assert close(y, want)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
def test_bfloat16(run_emulated, sparse):
    spec = TensorGemm((5,), 72, 20, sparse, "bfloat16")
    x, weight, want = operands(spec)
    kernel = with_tile(spec.prim_func(), SMALL["all"])
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=False):
        assert close(y, want)


def fused(spec, tail, *extra):
    """The function of ``tail(builder, y, *extras)`` behind ``spec``."""
    builder = relax.BlockBuilder()
    anchor = builder.add_func(spec.prim_func(), "anchor")
    own = [(spec.x_shape, spec.dtype), *spec.weight_args()]
    inputs = [relax.Var(f"p{i}", relax.TensorType(s, d)) for i, (s, d) in enumerate([*own, *extra])]
    with builder.function("main", inputs):
        with builder.dataflow():
            y = relax.call_tir(anchor, inputs[: len(own)], out_ty=relax.TensorType(spec.y_shape, "float32"))
            out = builder.emit_output(tail(builder, builder.emit(y), *inputs[len(own) :]))
        builder.emit_func_output(out)
    steps = ("LegalizeOps", "AnnotateTIROpPattern", "FuseOps", "FuseTIR", "DeadCodeElimination")
    module = tvm.ir.transform.Sequential([getattr(relax.transform, s)() for s in steps])(builder.get())
    (function,) = (f for name, f in module.functions.items() if name.name_hint.startswith("fused"))
    return function


@pytest.mark.parametrize("n", [36, 31])
def test_bias_rounding_and_residual_are_fused(run_emulated, n):
    spec = TensorGemm((2, 9), 72, n, sparse=True)

    def tail(builder, y, bias, residual):
        y = builder.emit(relax.op.nn.relu(builder.emit(relax.op.add(y, bias))))
        y = builder.emit(relax.op.astype(y, "float16"))
        return relax.op.add(y, residual)

    x, weight, product = operands(spec)
    rng = np.random.default_rng(1)
    bias = rng.standard_normal(n).astype(np.float32)
    residual = rng.standard_normal(spec.y_shape).astype(np.float16)
    func = fused(spec, tail, ((n,), "float32"), (spec.y_shape, "float16"))
    kernel = with_tile(func, SMALL["all"])
    want = np.maximum(product + bias, 0).astype(np.float16).astype(np.float64) + residual
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight), bias, residual], (spec.y_shape, np.float16)):
        assert close(y, want, 2e-3)


def test_a_tile_fits_the_memory_that_there_is():
    spec = TensorGemm((4096,), 4096, 4096)
    for shared in (99 * 1024, 227 * 1024):
        assert Words.of(tile_for(spec, shared), sparse=False).total * 4 <= shared
    assert tile_for(spec, 72 * 1024).stages < tile_for(spec, 227 * 1024).stages


def test_what_is_refused():
    with pytest.raises(ValueError, match="TensorGemm: required k to be a multiple of 8, found 12; pad it"):
        TensorGemm((1,), 12, 16)
    with pytest.raises(ValueError, match="TensorGemm: required one of float16, bfloat16, found float32"):
        TensorGemm((1,), 16, 16, dtype="float32")
    with pytest.raises(ValueError, match="Tile: required whole fragments for each warp and two stages"):
        Tile(24, 8, 1, 1, 1, 2)
    with pytest.raises(ValueError, match="TensorGemm.pack: required a weight of shape"):
        TensorGemm((1,), 16, 16).pack(np.zeros((16, 8), np.float16))


def test_other_functions_are_left_to_other_rules(gpu):
    from sparsec.schedules.contraction import Gemm

    assert find_anchor(Gemm((4,), 16, 16).prim_func()) is None
    assert rule(Gemm((4,), 16, 16).prim_func(), gpu) is None
