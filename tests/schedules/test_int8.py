"""int8 kernels against int64 sums on every CPU level: extremes, odd sizes, windows over zero points."""

from dataclasses import replace

import numpy as np
import pytest
import tvm
from integer_sums import EXTREMES, convolved, operands

from sparsec.schedules import schedule
from sparsec.schedules.contraction import Gemm, conv, find_anchor
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.elements import INT8
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.quads import windows_of
from sparsec.schedules.target import LEVELS

ISA = {
    "v2": (),
    "v3": ("avx2", "fma"),
    "v3vnni": ("avx512_vnni", "avx512vl"),
    "v4": ("avx512bw", "avx512vl"),
    "v4vnni": ("avx512_vnni",),
}
HERE = [pytest.param(level, id=level, marks=pytest.mark.isa(*needs)) for level, needs in ISA.items()]
#: Those whose products differ.
FAST = [level for level in HERE if level.id in ("v3", "v3vnni", "v4vnni")]


def run(spec, level, x, arrays):
    """The sums of ``spec``, scheduled for ``level``; as it stands where that is None."""
    cpu = LEVELS[level or "v2"]
    mod = tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")})
    if level:
        mod = schedule(mod, cpu)
        assert mod["main"].attrs["sparsec.rule"] == "contraction"
    if level == "v3vnni":  # the same instruction in the other encoding, which more machines have
        cpu = replace(cpu, features=("+avx512vnni", "+avx512vl"))
    lib = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir")
    y = tvm.runtime.tensor(np.full(spec.y_shape, -1, np.int32))
    lib["main"](*[tvm.runtime.tensor(np.ascontiguousarray(a)) for a in (x, *arrays)], y)
    return y.numpy()


@pytest.mark.parametrize("level", HERE)
@pytest.mark.parametrize("m,k,n", [(1, 1, 1), (7, 3, 129), (15, 5, 16), (33, 7, 15), (2, 129, 33)])
def test_products_of_every_size(level, m, k, n):
    spec = Gemm((m,), k, n, precision="int8")
    x, w = operands(np.random.default_rng(k), spec.x_shape, (n, k), extreme=k % 2 == 1)
    arrays = spec.pack(w)
    np.testing.assert_array_equal(run(spec, level, x, arrays), x.astype("i8") @ w.T.astype("i8"))
    np.testing.assert_array_equal(spec.unpack(arrays), w)


@pytest.mark.parametrize("level", HERE)
def test_no_product_saturates(level):
    """Every pair of extremes in every place of a word, and sums at both ends."""
    spec = Gemm((16,), 4, 16, precision="int8")
    ends = np.array(np.meshgrid(*[[0, 1]] * 4)).reshape(4, 16).T
    x, w = (values[ends] for values in EXTREMES)
    np.testing.assert_array_equal(run(spec, level, x, spec.pack(w)), x.astype("i8") @ w.T.astype("i8"))


@pytest.mark.parametrize("level", FAST)
@pytest.mark.parametrize(
    "pattern,k,n",
    [
        (Pattern(2, 4, 32), 131, 70),  # a tail of 3 inputs, and of 6 channels
        (Pattern(1, 4, 16), 700, 33),  # vectors of words from four loads, from two, and single words
        (Pattern(2, 8, 48), 50, 96),
        (Pattern(3, 4, 16), 31, 16),
        (Pattern(1, 8, 32), 67, 40),  # wider than a window
        (Pattern(2, 4, 32), 12, 32),  # smaller than a window
        (Pattern(1, 8), 40, 33),  # for each channel, and no whole word of a window: dense
    ],
    ids=str,
)
def test_patterns(level, pattern, k, n):
    spec = Gemm((5,), k, n, pattern, precision="int8")
    x, w = operands(np.random.default_rng(k), spec.x_shape, (n, k), pattern)
    arrays = spec.pack(w)
    np.testing.assert_array_equal(run(spec, level, x, arrays), x.astype("i8") @ w.T.astype("i8"))
    np.testing.assert_array_equal(spec.unpack(arrays), w)


CONVS = {
    "pads": conv(1, 9, 7, 3, 18, 3, 3, (2, 2), (1, 1), (1, 1, 1, 1), precision="int8"),
    "uneven": conv(2, 6, 8, 16, 31, 2, 3, (1, 2), (2, 1), (0, 2, 1, 0), precision="int8"),
    "plain": conv(1, 5, 5, 5, 16, 3, 3, precision="int8"),
    "pointwise": conv(1, 4, 4, 17, 16, 1, 1, precision="int8"),
    "groups": conv(1, 5, 5, 12, 8, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 2, precision="int8"),
    "shared": conv(1, 5, 5, 32, 32, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 1, Pattern(2, 4, 32), "int8"),
    "shared-groups": conv(2, 4, 3, 64, 64, 3, 1, (2, 1), (1, 1), (1, 0, 1, 0), 2, Pattern(1, 4, 32), "int8"),
    "depthwise": conv(1, 9, 9, 33, 33, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 33, precision="int8"),
    "depthwise-wide": conv(1, 7, 9, 18, 36, 5, 5, (2, 2), (1, 1), (2, 1, 2, 2), 18, precision="int8"),
    "depthwise-dilated": conv(1, 9, 9, 7, 7, 3, 3, (1, 1), (2, 2), (2, 2, 2, 2), 7, precision="int8"),
    "depthwise-plain": conv(1, 6, 6, 17, 17, 3, 1, (1, 1), (1, 1), (0, 0, 0, 0), 17, precision="int8"),
}  # fmt: skip


@pytest.mark.parametrize("level", FAST)
@pytest.mark.parametrize("name", CONVS)
def test_windows_over_zero_points(level, name):
    spec = CONVS[name]
    pattern, depth = getattr(spec, "pattern", DENSE), spec.in_c // getattr(spec, "groups", spec.in_c)
    for zero in (0, 255):
        spec = replace(spec, zero=zero)
        shape = (spec.out_c, spec.k_h, spec.k_w, depth)
        x, w = operands(np.random.default_rng(zero), spec.x_shape, shape, pattern, zero == 255)
        np.testing.assert_array_equal(run(spec, level, x, spec.pack(w)), convolved(spec, x, w))


@pytest.mark.parametrize(
    "spec",
    [
        Gemm((2, 3), 21, 37, precision="int8"),
        Gemm((3,), 34, 40, Pattern(1, 8, 16), precision="int8"),
        CONVS["shared"],
        CONVS["depthwise-wide"],
    ],
    ids=str,
)
def test_the_definition_is_right_unscheduled(spec):
    matrix = isinstance(spec, Gemm)
    depth = spec.k if matrix else spec.in_c // getattr(spec, "groups", spec.in_c)
    shape = (spec.n, depth) if matrix else (spec.out_c, spec.k_h, spec.k_w, depth)
    x, w = operands(np.random.default_rng(4), spec.x_shape, shape, getattr(spec, "pattern", DENSE))
    want = x.astype("i8") @ w.T.astype("i8") if matrix else convolved(spec, x, w)
    np.testing.assert_array_equal(run(spec, None, x, spec.pack(w)), want)


@pytest.mark.parametrize(
    "n,m", [(1, 1), (2, 4), (1, 4), (3, 4), (2, 8), (4, 16), (3, 8), (1, 8), (5, 16), (6, 8)]
)
def test_choices_are_positions_within_windows(n, m):
    for channels in (16, 17, 31, 64, 129):
        pattern = Pattern(n, m, 16)
        windows = windows_of(pattern, channels)
        if windows is None:
            assert m > 4 or pattern.dense
            continue
        groups = np.arange(channels // m)[:, None] * m + np.arange(m - n, m)
        kept = np.concatenate([groups.ravel(), np.arange(channels // m * m, channels)])
        stored = np.pad(kept, (0, -len(kept) % 4), mode="edge")[None]
        starts = windows.start(np.arange(windows.words))
        assert starts.min() >= 0 and starts.max() <= channels - 16
        np.testing.assert_array_equal(windows.positions(windows.choices(stored)), stored)


def test_weights_that_are_no_int8_are_refused():
    with pytest.raises(ValueError, match="required weights that are int8 numbers, found 128.0; quantise"):
        Gemm((1,), 4, 1, precision="int8").pack(np.array([[1, 2, 128, 3]], "f"))


def test_specs_name_what_they_are():
    spec = CONVS["pads"]
    assert spec.kind is INT8 and find_anchor(spec.prim_func())[0] == spec
    assert "zero" not in to_text(spec) and '"zero": 9' in to_text(conv(1, 5, 5, 3, 4, 3, 3, zero=9))
    assert (
        CONVS["depthwise"].kind is INT8 and Gemm((1,), 40, 33, Pattern(2, 4), precision="int8").kind is INT8
    )


@pytest.mark.parametrize("level", ["v3vnni", "v4vnni"])
@pytest.mark.parametrize("pattern", [DENSE, Pattern(2, 4, 32)], ids=str)
def test_four_products_are_one_instruction(level, pattern):
    spec, cpu = Gemm((64,), 64, 64, pattern, precision="int8"), LEVELS[level]
    mod = schedule(tvm.IRModule({"main": spec.prim_func().with_attr("global_symbol", "main")}), cpu)
    asm = tvm.tirx.build(mod, target=cpu.tvm_target(), pipeline="s_tir").inspect_source("asm")
    assert "vpdpbusd" in asm and "vpmull" not in asm and "vpmadd" not in asm
    assert ("vpshufb" in asm) == (not pattern.dense)
