"""Products with weights of 8 and 4 bits: kernels against integers and float64, packing there and back."""

import numpy as np
import pytest
import tvm

from sparsec.runtime import cpu
from sparsec.schedules import math, schedule
from sparsec.schedules.elements import from_bfloat16, to_bfloat16
from sparsec.schedules.group_activations import LIMIT, Groups, place
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import LEVELS
from sparsec.schedules.weight_quant import QuantGemm, scale_dtype, why_not

RUNS = [level for level in ("v4bf16", "v4", "v3", "v2") if level in cpu.levels()]


@pytest.fixture(scope="module")
def run():
    """``run(func, level, inputs, outputs)``: what a function writes into arrays of such shapes and types."""
    math.install()

    def call(func, level, inputs, outputs):
        mod = schedule(tvm.IRModule({"main": func.with_attr("global_symbol", "main")}), LEVELS[level])
        lib = tvm.tirx.build(mod, target=LEVELS[level].tvm_target(), pipeline="s_tir")
        made = [tvm.runtime.tensor(np.full(shape, 77, dtype)) for shape, dtype in outputs]
        lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in inputs], *made)
        return [array.numpy() for array in made]

    return call


def constants(spec, rng, extreme=False):
    """Values, scales and zero points that ``spec`` packs; ``extreme`` ones at the ends of their range."""
    low, high = (-128, 127) if spec.bits == 8 else (-8, 7)
    choose = (lambda s: rng.choice([low, high], s)) if extreme else (lambda s: rng.integers(low, high + 1, s))
    q = choose((spec.n, spec.k)).astype(np.int8)
    for top in range(0, spec.n, spec.pattern.block):
        for left in range(0, spec.k, spec.pattern.m):
            dropped = left + rng.permutation(spec.pattern.m)[spec.pattern.n :]
            q[top : top + spec.pattern.block, dropped[dropped < spec.k]] = 0
    shape = (spec.n, spec.groups.count)
    scale = (rng.random(shape) + 0.5).astype("f") * rng.choice([-1, 1], shape).astype("f")
    scale = from_bfloat16(to_bfloat16(scale)) if spec.scale == "uint16" else scale
    zero = choose(shape) if spec.zeros else np.zeros(shape)
    return q, scale, zero.astype(np.int8)


def weight_of(spec, q, scale, zero):
    """The float64 weight by the formula."""
    group = np.arange(spec.k) // spec.group
    return (q.astype("d") - zero[:, group]) * scale.astype("d")[:, group]


def seen(spec, rounded):
    """The float64 activations that a kernel multiplies, back in their places."""
    (ordered, _), (scale, _) = (np.moveaxis(a, -2, 0) for a in rounded)
    order = np.arange(spec.groups.depth)
    natural = ordered[..., place(order) if spec.pattern.dense else order].astype("d")
    return (natural * np.repeat(scale.astype("d"), spec.group, -1))[..., : spec.k]


SPECS = [
    QuantGemm((1,), 64, 64, 8, 32),
    QuantGemm((7,), 100, 129, 8, 16, scale="uint16"),
    QuantGemm((1,), 129, 31, 4, 32, scale="uint16"),
    QuantGemm((2, 3), 256, 17, 4, 256, zeros=True),
    QuantGemm((5,), 256, 70, 8, 256, zeros=True, scale="uint16"),
    QuantGemm((1,), 96, 130, 4, 32, Pattern(2, 4, 32), scale="uint16"),
    QuantGemm((3,), 100, 100, 8, 32, Pattern(1, 4, 16)),
    QuantGemm((1,), 64, 192, 8, 64, Pattern(2, 8, 96)),
]
#: Each on the best level, and on another one by turns: what a level does depends little on the size.
PAIRS = [(s, v) for i, s in enumerate(SPECS) for v in {RUNS[0], RUNS[i % len(RUNS)]}]
NAMES = [f"{v}-{s.k}x{s.n}:{s.bits}/{s.group}{'z' * s.zeros}-{s.pattern.n}:{s.pattern.m}" for s, v in PAIRS]


@pytest.mark.parametrize("spec,level", PAIRS, ids=NAMES)
def test_products(run, spec, level):
    rng = np.random.default_rng(spec.k)
    made = constants(spec, rng, extreme=spec.zeros)
    x = rng.standard_normal(spec.x_shape).astype("f")
    if spec.zeros:
        x = np.sign(x)  # every activation is the largest of its group
    rounded = run(spec.groups.prim_func(), level, [x], spec.groups.args())
    arrays = spec.pack(*made)
    assert [(a.shape, str(a.dtype)) for a in arrays] == [(tuple(s), d) for s, d in spec.weight_args()]
    (y,) = run(spec.prim_func(), level, [*rounded, *arrays], [(spec.y_shape, "float32")])
    weight = weight_of(spec, *made)
    magnitude = np.abs(seen(spec, rounded)) @ np.abs(weight).T
    assert (np.abs(y - seen(spec, rounded) @ weight.T) <= 2e-6 * magnitude + 1e-6).all()
    error = np.abs(y - x.astype("d") @ weight.T).max()
    assert error <= 4e-5 * np.abs(x.astype("d") @ weight.T).max()
    np.testing.assert_allclose(spec.unpack(arrays), weight, rtol=1e-6)


@pytest.mark.parametrize("level", [RUNS[0], RUNS[-1]])
@pytest.mark.parametrize("k,size", [(1, 16), (33, 16), (200, 256)])
def test_activations(run, level, k, size):
    groups = Groups((3,), k, size)
    x = np.random.default_rng(k).standard_normal((3, k)).astype("f") * np.float32(1e3)
    x[1] = 0
    got = run(groups.prim_func(), level, [x], groups.args())
    want = groups.quantise(x)
    numbers, both = got[0][:, 0, : groups.depth], np.ascontiguousarray(got[0][:, 1, : groups.depth])
    np.testing.assert_array_equal(got[1][:, 0], want[1][:, 0])
    # Without a fused multiply-add a number half way may fall to either side.
    assert np.abs(numbers.astype(int) - want[0][:, 0, : groups.depth]).max() <= (level == "v2")
    np.testing.assert_array_equal(got[1][:, 1], numbers.reshape(3, -1, size).sum(-1, dtype=int))
    most = np.abs(numbers).reshape(3, -1, size).max(-1)
    assert (most[[0, 2]] == LIMIT).all() and (most[1] == 0).all()
    upper, lower = np.split(both.view(np.int8).astype(int), 2, -1)
    np.testing.assert_array_equal(256 * upper + lower, numbers[:, place(np.arange(groups.depth))])


def test_what_is_not_finite_stays_so(run):
    spec = QuantGemm((3,), 32, 16, 8, 16)
    made = constants(spec, np.random.default_rng(0))
    x = np.ones(spec.x_shape, "f")
    x[0, 3], x[1, 30] = np.nan, np.inf
    rounded = run(spec.groups.prim_func(), RUNS[0], [x], spec.groups.args())
    (y,) = run(spec.prim_func(), RUNS[0], [*rounded, *spec.pack(*made)], [(spec.y_shape, "float32")])
    assert not np.isfinite(y[:2]).any() and np.isfinite(y[2]).all()


def test_sizes():
    """A byte or a nibble a weight, and two bytes a group."""
    for bits, group in ((8, 64), (4, 32)):
        spec = QuantGemm((1,), 768, 3072, bits, group, scale="uint16")
        size = sum(np.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in spec.weight_args())
        assert size == 768 * 3072 * (bits / 8 + 2 / group)


def test_scales_are_stored_without_loss():
    assert scale_dtype(np.array([0.5, 3.0, 1 + 2**-7], "f")) == "uint16"
    assert scale_dtype(np.array([0.5, 1 + 2**-8], "f")) == "float32"


@pytest.mark.parametrize(
    "bits,group,pattern,zeros,reason",
    [
        (5, 32, DENSE, False, "8 or 4 bits are required, found 5"),
        (8, 24, DENSE, False, "groups of a multiple of 16 channels, at most 256, are required, found 24"),
        (8, 512, DENSE, True, "at most 256"),
        (8, 32, Pattern(2, 4, 32), True, "a pattern takes no zero points"),
        (8, 32, Pattern(1, 8, 16), False, "among 16 channels"),
        (8, 32, Pattern(2, 4), False, "patterns shared by a multiple of 16 channels are required"),
        (4, 16, Pattern(1, 4, 16), False, "no whole words"),
    ],
)
def test_what_is_refused(bits, group, pattern, zeros, reason):
    assert reason in why_not(bits, group, pattern, zeros)
    with pytest.raises(ValueError, match="QuantGemm"):
        QuantGemm((1,), 64, 64, bits, group, pattern, zeros=zeros)
