"""Products on tensor cores, under the emulator: every thread order, one run with all accesses checked."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparsec.schedules import bits
from sparsec.schedules.contraction import Gemm, conv
from sparsec.schedules.cuda import Gpu
from sparsec.schedules.cuda.tensor_gemm import (
    TensorConv,
    TensorGemm,
    find_anchor,
    on_tensor_cores,
    why_not,
)
from sparsec.schedules.cuda.tensor_kernel import rule
from sparsec.schedules.cuda.tensor_tile import TILES, Tile, cycles, tile_for
from sparsec.schedules.cuda.tile import with_tile
from sparsec.schedules.layout import Pattern

RULE = "tensor_gemm"
SMALL = {
    "one warp": Tile(16, 8, 1, 1, 1, 2),
    "warps side by side": Tile(64, 16, 2, 2, 1, 3),
    "warps along k": Tile(32, 16, 1, 1, 4, 4),
    "all": Tile(32, 32, 2, 2, 2, 2),
}
# Rows, k, n: a row, tails everywhere, whole tiles; copies of 16, 8 and 4 bytes.
SIZES = [(1, 8, 1), (17, 204, 31), (33, 264, 36), (32, 256, 64)]
FORMS = [("float16", False), ("float16", True), ("bfloat16", False), ("bfloat16", True), ("tf32", False)]
IDS = [f"{dtype} {'2:4' if sparse else 'dense'}" for dtype, sparse in FORMS]
ROUND = {
    "float16": lambda a: bits.from_float16(bits.to_float16(a)),
    "bfloat16": lambda a: bits.from_bfloat16(bits.to_bfloat16(a)),
    "tf32": lambda a: bits.to_tf32(a).view(np.float32),
}


def weight_of(rng, spec):
    weight = rng.standard_normal(spec.weight_shape).astype(np.float32)
    if spec.picked:
        n, m, share = spec.picked
        blocks = -(-spec.n // (16 * share)), *spec.weight_shape[1:-1], spec.weight_shape[-1] // m, m
        keep = (np.argsort(rng.random(blocks), axis=-1) < n).reshape(*blocks[:-2], -1)
        return weight * np.repeat(keep, 16 * share, axis=0)[: spec.n]
    if not spec.sparse:
        return weight
    groups = weight.reshape(*weight.shape[:-1], -1, 4)
    return np.where(np.argsort(rng.random(groups.shape), axis=-1) < 2, groups, 0).reshape(weight.shape)


def stored(spec, x):
    """``x`` as it lies in memory."""
    return x if spec.dtype == "tf32" else getattr(bits, f"to_{spec.dtype}")(x)


def operands(spec, seed=0):
    """X and the weight, not rounded, and their product rounded in float64."""
    rng = np.random.default_rng(seed)
    weight, x = weight_of(rng, spec), rng.standard_normal(spec.x_shape).astype(np.float32)
    rounded_x, rounded_w = (ROUND[spec.dtype](a).astype(np.float64) for a in (x, weight))
    if isinstance(spec, TensorGemm):
        return stored(spec, x), weight, rounded_x @ rounded_w.T
    torch = pytest.importorskip("torch")
    top, left, bottom, right = spec.pads
    padded = np.pad(rounded_x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    want = torch.nn.functional.conv2d(
        torch.from_numpy(padded.transpose(0, 3, 1, 2).copy()),
        torch.from_numpy(rounded_w.transpose(0, 3, 1, 2).copy()),
        stride=spec.strides,
        dilation=spec.dilations,
    )
    return stored(spec, x), weight, want.numpy().transpose(0, 2, 3, 1)


def close(got, want, part=1e-6):
    """Sums of exact products: float32 rounds at the end, and where sums are added."""
    assert got.shape == want.shape
    return np.abs(got - want).max() <= part * np.abs(want).max()


def computed(spec, x, weight):
    """What the definition computes on a CPU, as it stands."""
    func = spec.prim_func().with_attr("global_symbol", "main")
    library = tvm.tirx.build(tvm.IRModule({"main": func}), target="llvm", pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(spec.y_shape, 77, np.float32))
    library["main"](*(tvm.runtime.tensor(a) for a in (x, *spec.pack(weight))), y)
    return y.numpy()


#: 1x1 with a stride; odd pads, a dilation, few channels; a window with no border.
CONVOLUTIONS = [
    {"in_h": 5, "in_w": 5, "in_c": 8, "out_c": 16, "k_h": 1, "k_w": 1, "strides": (2, 2)},
    {"in_h": 6, "in_w": 7, "in_c": 4, "out_c": 9, "k_h": 3, "k_w": 3, "pads": (1, 2, 0, 1)},
    {"in_h": 9, "in_w": 8, "in_c": 20, "out_c": 20, "k_h": 3, "k_w": 2, "dilations": (2, 1)},
]


@pytest.mark.parametrize("dtype, sparse", FORMS, ids=IDS)
@pytest.mark.parametrize("m, k, n", SIZES[:2])
def test_the_definition_is_the_product(m, k, n, dtype, sparse):
    spec = TensorGemm((m,), k, n, sparse, dtype)
    x, weight, want = operands(spec)
    assert close(computed(spec, x, weight), want, 1e-5)


@pytest.mark.parametrize("shape", CONVOLUTIONS)
def test_the_definition_is_the_convolution(shape):
    for sparse in (False, True):
        spec = TensorConv(2, **shape, sparse=sparse)
        x, weight, want = operands(spec)
        assert close(computed(spec, x, weight), want, 1e-5)


@pytest.mark.parametrize("shape, form", list(zip(CONVOLUTIONS * 2, FORMS, strict=False)))
def test_convolutions_are_right_in_every_order(run_emulated, shape, form):
    sparse, dtype = form[1], form[0]
    spec = TensorConv(2, **shape, sparse=sparse, dtype=dtype)
    x, weight, want = operands(spec)
    kernel = with_tile(spec.prim_func(), SMALL["all"])
    checked = shape is CONVOLUTIONS[1]
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=checked):
        assert close(y, want)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "2:4"])
@pytest.mark.parametrize("tile", SMALL.values(), ids=SMALL)
def test_tiles_are_right_in_every_order(run_emulated, tile, sparse):
    spec = TensorGemm((17,), 204, 31, sparse)
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


@pytest.mark.parametrize("tile", TILES, ids=[f"{t.channels}x{t.tokens}" for t in TILES])
def test_the_tiles_to_choose_from(run_emulated, tile):
    spec = TensorGemm((1, tile.tokens + 1), 72, tile.channels + 4, sparse=True)
    x, weight, want = operands(spec)
    kernel = with_tile(spec.prim_func(), tile)
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=False):
        assert close(y, want)


def test_a_tile_is_as_large_as_keeps_all_multiprocessors_at_work(gpu):
    def size(rows, n, k=4096, sparse=False):
        tile = tile_for(TensorGemm((rows,), k, n, sparse), gpu)
        return tile.channels * tile.tokens

    assert size(1, 768) == 16 * 8
    assert size(1, 1 << 16) > 16 * 8
    assert size(4096, 4096, sparse=True) == 128 * 128
    assert size(128, 768) < size(128, 4096) <= size(4096, 4096)
    layer = TensorConv(1, 7, 7, 512, 512, 3, 3, pads=(1, 1, 1, 1))
    best = tile_for(layer, gpu)
    assert cycles(layer, best, gpu) == min(cycles(layer, tile, gpu) for tile in TILES)


@pytest.mark.parametrize("dtype, sparse", FORMS[2:], ids=IDS[2:])
def test_other_formats(run_emulated, dtype, sparse):
    spec = TensorGemm((5,), 72, 20, sparse, dtype)
    x, weight, want = operands(spec)
    kernel = with_tile(spec.prim_func(), SMALL["all"])
    for y in run_emulated(kernel, RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32), checked=False):
        assert close(y, want)


#: 1:4 and 2:8 are picked among eight neighbours, 4:16 among sixteen, 4:8 in two steps.
PICKED = [(1, 4, 2), (2, 8, 1), (4, 16, 2), (4, 8, 1)]


@pytest.mark.parametrize("picked", PICKED[1:3])
def test_the_definition_is_the_product_of_what_lanes_pick(picked):
    spec = TensorGemm((3,), 208, 37, picked=picked)
    x, weight, want = operands(spec)
    assert close(computed(spec, x, weight), want, 1e-5)


@pytest.mark.parametrize("picked", PICKED)
def test_what_lanes_pick_is_right_in_every_order(run_emulated, picked):
    """Rows, columns and channels that are no whole tiles; a warp has two groups of bands, or one."""
    spec = TensorGemm((17,), 208, 52, dtype="bfloat16", picked=picked)
    x, weight, want = operands(spec)
    tile = Tile(64, 32, 1, 2, 2, 2) if picked[2] == 2 else SMALL["all"]
    outputs = [x, *spec.pack(weight)], (spec.y_shape, np.float32)
    for y in run_emulated(with_tile(spec.prim_func(), tile), RULE, *outputs, checked=picked == (4, 16, 2)):
        assert close(y, want)


def test_convolutions_of_what_lanes_pick(run_emulated):
    shape = {"in_h": 6, "in_w": 5, "in_c": 24, "out_c": 36, "k_h": 3, "k_w": 2, "pads": (1, 1, 0, 1)}
    spec = TensorConv(2, **shape, picked=(1, 4, 2))
    x, weight, want = operands(spec)
    for y in run_emulated(spec.prim_func(), RULE, [x, *spec.pack(weight)], (spec.y_shape, np.float32)):
        assert close(y, want)


def fused(spec, tail, *extra):
    """The function of ``tail(builder, y, *extras)`` behind ``spec``."""
    builder = relax.BlockBuilder()
    anchor = builder.add_func(spec.prim_func(), "anchor")
    own = [(spec.x_shape, spec.number.activation), *spec.weight_args()]
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
    small, large = (tile_for(spec, Gpu((name,))) for name in ("sm_89", "sm_90"))
    assert small.words(spec).total * 4 <= 99 * 1024 and large.words(spec).total * 4 <= 227 * 1024
    assert small.words(TensorGemm((4096,), 4096, 4096, sparse=True)).total < small.words(spec).total


def test_layers_become_products():
    """As the compiler asks for them; every other spec stays as it is."""
    named = "bfloat16 on tensor cores"
    for spec, want, weight in (
        (Gemm((5,), 7, 9, precision=named), TensorGemm((5,), 8, 9, dtype="bfloat16"), (9, 7)),
        (Gemm((5,), 6, 9, Pattern(2, 4), precision=named), TensorGemm((5,), 8, 9, True, "bfloat16"), (9, 6)),
        (
            conv(1, 5, 5, 3, 8, 1, 1, precision=named),
            TensorConv(1, 5, 5, 4, 8, 1, 1, dtype="bfloat16"),
            (8, 1, 1, 3),
        ),
        (
            conv(2, 5, 6, 8, 4, 3, 3, (2, 1), (1, 2), (1, 0, 1, 1), precision=named),
            TensorConv(2, 5, 6, 8, 4, 3, 3, (2, 1), (1, 2), (1, 0, 1, 1), dtype="bfloat16"),
            (4, 3, 3, 8),
        ),
    ):
        assert on_tensor_cores(spec) == want and why_not(spec) is None
        assert [a.shape for a in want.pack(np.zeros(weight, np.float32))] == [
            s for s, _ in want.weight_args()
        ]
    for pattern, k, picked in (
        (Pattern(1, 4, 32), 64, (1, 4, 2)),
        (Pattern(4, 16, 48), 64, (4, 16, 1)),
        (Pattern(1, 4, 8), 64, ()),  # eight channels are no fragment
        (Pattern(4, 16, 16), 72, ()),  # groups that are not whole
        (Pattern(1, 8, 64), 64, (2, 8, 4)),  # a lane would keep two, and not a fragment's four
        (Pattern(3, 8, 16), 64, (4, 8, 1)),
        (Pattern(2, 4, 32), 64, ()),  # these two are for the instruction
        (Pattern(1, 2, 32), 64, ()),
        (Pattern(9, 16, 32), 64, ()),
        (Pattern(3, 4, 32), 64, ()),
    ):
        made = on_tensor_cores(Gemm((5,), k, 96, pattern, precision=named))
        assert (made.picked, made.sparse) == (picked, not picked)
    for plain in (Gemm((5,), 7, 9), conv(1, 5, 5, 8, 8, 3, 3, groups=8, precision="int8")):
        assert on_tensor_cores(plain) is plain
    assert why_not(conv(1, 5, 5, 8, 8, 3, 3, groups=8)) == "a depthwise convolution"
    assert why_not(conv(1, 5, 5, 8, 8, 3, 3, groups=2)) == "a convolution in groups"


def test_what_is_refused():
    with pytest.raises(ValueError, match="TensorGemm: required a multiple of 2 inputs, found 13; pad them"):
        TensorGemm((1,), 13, 16)
    with pytest.raises(ValueError, match="TensorGemm: required a multiple of 4 inputs, found 14; pad them"):
        TensorGemm((1,), 14, 16, sparse=True)
    with pytest.raises(ValueError, match="required one of float16, bfloat16, tf32, found float32"):
        TensorGemm((1,), 16, 16, dtype="float32")
    with pytest.raises(ValueError, match="TensorGemm: required a 16-bit format for zeros, found tf32"):
        TensorGemm((1,), 16, 16, sparse=True, dtype="tf32")
    with pytest.raises(ValueError, match="Tile: required whole fragments for each warp and two stages"):
        Tile(24, 8, 1, 1, 1, 2)
    with pytest.raises(ValueError, match="TensorGemm.pack: required a weight of shape"):
        TensorGemm((1,), 16, 16).pack(np.zeros((16, 18), np.float32))


def test_other_functions_are_left_to_other_rules(gpu):
    assert find_anchor(Gemm((4,), 16, 16).prim_func()) is None
    assert rule(Gemm((4,), 16, 16).prim_func(), gpu) is None
