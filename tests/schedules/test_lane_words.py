"""Patterns that each output channel has for itself, in bfloat16 and int8: words picked lane by lane."""

import ml_dtypes
import numpy as np
import pytest
import tvm

from sparsec.schedules import lane_words, schedule
from sparsec.schedules.contraction import Conv, Gemm, conv, packed_for
from sparsec.schedules.contraction_rule import ranked_plans
from sparsec.schedules.elements import BFLOAT16, BFLOAT16_WEIGHTS, FLOAT32, INT8
from sparsec.schedules.layout import Pattern, choice_words, choices_of
from sparsec.schedules.target import LEVELS

ISA = {
    "v3": ("avx2", "fma"),
    "v4": ("avx512bw", "avx512vl"),
    "v4vnni": ("avx512_vnni",),
    "v4bf16": ("avx512_bf16",),
}
HERE = {level: pytest.param(level, id=level, marks=pytest.mark.isa(*needs)) for level, needs in ISA.items()}
PRECISE = [
    *[pytest.param(level, "bfloat16", marks=HERE[level].marks) for level in ("v3", "v4", "v4bf16")],
    *[pytest.param(level, "int8", marks=HERE[level].marks) for level in ("v3", "v4vnni")],
]
#: Rows, inputs, outputs.
GEMMS = {
    "2:4": (Pattern(2, 4), 5, 67, 33),  # four windows, three inputs behind them; a channel behind two panels
    "4:8x4": (Pattern(4, 8, 4), 31, 49, 7),  # three windows, of which a permute takes two; a narrow tile
    "1:4": (Pattern(1, 4), 9, 16, 17),  # one window
    "4:16x2": (Pattern(4, 16, 2), 1, 129, 16),  # both halves of a window in a word; a single row
    "3:4": (Pattern(3, 4), 2, 33, 15),
}
CONVS = {
    "pads": conv(1, 5, 7, 35, 18, 3, 3, (2, 1), (1, 1), (1, 1, 1, 1), 1, Pattern(2, 4)),
    "groups": conv(2, 4, 3, 64, 48, 3, 1, (1, 1), (1, 1), (1, 0, 1, 0), 2, Pattern(1, 4, 8)),
    "pointwise": conv(1, 4, 5, 48, 16, 1, 1, pattern=Pattern(2, 4)),
}


def rounded(x):
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def run(spec, level, x, arrays):
    """The sums of ``spec``, as the definition stands where ``level`` is None."""
    cpu = LEVELS[level or "v2"]
    mod = tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")})
    if level:
        mod = schedule(mod, cpu)
        assert mod["main"].attrs["sparsec.rule"] == "contraction"
    lib = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(spec.y_shape, -1, spec.kind.sums))
    lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (x, *arrays)], y)
    return y.numpy()


def check(spec, level, weight, product):
    """Against exact sums of what is stored, int8 to the last bit; ``product(x, weight)`` has float64."""
    x = np.random.default_rng(5).standard_normal(spec.x_shape).astype("f")
    assert spec.kind is (INT8 if spec.precision == "int8" else BFLOAT16) and not spec.strips
    if spec.kind is INT8:
        weight = np.clip(np.rint(weight * 60), -128, 127).astype("f")
        stored = spec.kind.stored_activations(x)
        seen, kept = stored.astype("d"), weight.astype("d")
    else:
        stored, seen, kept = spec.kind.stored_activations(x), rounded(x), rounded(weight)
    arrays = spec.pack(weight)
    assert [(a.shape, str(a.dtype)) for a in arrays] == spec.weight_args()
    got, want = run(spec, level, stored, arrays), product(seen, kept)
    slack = 0 if spec.kind is INT8 else 1e-5 * np.abs(want).max()
    assert got.shape == want.shape and np.abs(got - want).max() <= slack
    np.testing.assert_array_equal(spec.unpack(arrays), kept)


@pytest.mark.parametrize("level,precision", PRECISE)
@pytest.mark.parametrize("name", GEMMS)
def test_products(pruned_weight, level, precision, name):
    pattern, m, k, n = GEMMS[name]
    weight = pruned_weight(np.random.default_rng(k), pattern, n, 1, k)[:, 0]
    check(Gemm((m,), k, n, pattern, precision=precision), level, weight, lambda x, w: x @ w.T)


def windows(spec: Conv):
    def product(x, w):
        torch = pytest.importorskip("torch")
        x, w = torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(w).permute(0, 3, 1, 2)
        x = torch.nn.functional.pad(x, [spec.pads[i] for i in (1, 3, 0, 2)])
        y = torch.conv2d(x, w, None, spec.strides, 0, spec.dilations, spec.groups)
        return y.permute(0, 2, 3, 1).numpy()

    return product


@pytest.mark.parametrize("level,precision", PRECISE)
@pytest.mark.parametrize("name", CONVS)
def test_windows(pruned_weight, level, precision, name):
    spec = Conv(**{**vars(CONVS[name]), "precision": precision})
    shape = spec.out_c, spec.k_h, spec.k_w, spec.depth
    weight = pruned_weight(np.random.default_rng(1), spec.pattern, shape[0], spec.k_h * spec.k_w, shape[3])
    check(spec, level, weight.reshape(shape), windows(spec))


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_the_definition_is_right_unscheduled(pruned_weight, precision):
    weight = pruned_weight(np.random.default_rng(4), Pattern(2, 4), 19, 1, 37)[:, 0]
    spec = Gemm((2, 3), 37, 19, Pattern(2, 4), precision=precision)
    check(spec, None, weight, lambda x, w: x @ w.T)


@pytest.mark.isa("avx512_vnni")
def test_sums_at_both_ends():
    """Every choice of every lane, with bytes that a product of pairs would saturate."""
    spec = Gemm((6,), 64, 40, Pattern(2, 4), precision="int8")
    rng = np.random.default_rng(7)
    x = rng.choice(np.array([0, 255], np.uint8), spec.x_shape)
    kept = np.argsort(rng.random((40, 16, 4)), axis=-1) < 2
    w = (rng.choice([-128, 127], (40, 64)) * kept.reshape(40, 64)).astype("f")
    np.testing.assert_array_equal(run(spec, "v4vnni", x, spec.pack(w)), x.astype("i8") @ w.T.astype("i8"))


@pytest.mark.parametrize("group", [2, 4])
def test_choices_of_words_round_trip(group):
    single = np.random.default_rng(group).integers(0, 16, (3, 8, 16, 1))
    words = lane_words.joined(choice_words(single), group)
    assert words.shape == (3, 8 // group, 2 * group)
    np.testing.assert_array_equal(choices_of(words)[2, 1, 5], single[2, group : 2 * group, 5, 0])
    np.testing.assert_array_equal(lane_words.split(words, group), choice_words(single))


def test_which_patterns_are_words():
    def kind(*pattern, precision, rows=64, k=64, **more):
        return Gemm((rows,), k, 64, Pattern(*pattern), precision=precision, **more).kind

    assert kind(2, 4, precision="bfloat16") is BFLOAT16
    assert kind(1, 8, precision="bfloat16") is BFLOAT16
    assert kind(1, 16, precision="bfloat16", rows=8) is BFLOAT16_WEIGHTS  # one of a window is no pair
    assert kind(3, 7, precision="bfloat16") is FLOAT32  # strips
    assert kind(2, 4, precision="bfloat16", permute=False) is FLOAT32
    for pattern in ((2, 4), (1, 4), (2, 4, 8)):
        assert not Gemm((8,), 64, 64, Pattern(*pattern), precision="int8").packed.dense
    for spec in (
        Gemm((8,), 64, 64, Pattern(1, 8), precision="int8"),
        Gemm((8,), 15, 64, Pattern(2, 4), precision="int8"),
        Gemm((8,), 64, 64, Pattern(2, 4, scattered=True), precision="int8"),
        Gemm((8,), 64, 64, Pattern(2, 4), precision="int8", permute=False),
    ):
        assert spec.packed.dense or spec.packed.form(spec.k) == "dense"


def test_other_cpus_get_a_packing_of_their_own():
    for precision in ("bfloat16", "int8"):
        spec = Gemm((64,), 64, 64, Pattern(2, 4), precision=precision)
        other = packed_for(spec, False)
        assert other != spec and other.weight_args() != spec.weight_args()


@pytest.mark.isa("avx512_vnni", "avx512_bf16")
@pytest.mark.parametrize(
    "level,precision,pattern,shuffle",
    [
        ("v4bf16", "bfloat16", (2, 4), "vpermw"),
        ("v4vnni", "int8", (2, 4), "vpshufb"),
    ],
)
def test_a_word_is_a_shuffle_and_a_product(level, precision, pattern, shuffle):
    """Nothing else in a row of a tile; choices are taken apart before it."""
    spec, cpu = Gemm((26,), 64, 16, Pattern(*pattern), precision=precision), LEVELS[level]
    rows = ranked_plans(cpu, spec)[0][1].most_rows(16)
    mod = schedule(tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")}), cpu)
    asm = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir").inspect_source("asm")
    assert rows >= 26 and asm.count(shuffle) == asm.count("vpdpbusd") + asm.count("vdpbf16ps") == 26
