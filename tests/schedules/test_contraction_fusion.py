"""Contractions behind real operator fusion: FuseOps and FuseTIR around the anchor, then the rule."""

import math

import numpy as np
import pytest
import torch
import tvm
from tvm import relax, te, tirx

from sparsec.schedules import tir
from sparsec.schedules.batch_matmul import BatchMatmul
from sparsec.schedules.contraction import Gemm, conv, find_anchor
from sparsec.schedules.contraction_rule import rule, why_not
from sparsec.schedules.layout import Pattern
from sparsec.schedules.target import X86_LEVELS

CPUS = [
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]


def fused_function(spec, extra_shapes, tail):
    """The one fused function of ``tail(builder, anchor, *extras)`` behind the anchor of ``spec``."""
    builder = relax.BlockBuilder()
    anchor = builder.add_func(spec.prim_func(), "anchor")
    own = (
        [(spec.a_shape, "float32"), (spec.b_shape, "float32")]
        if isinstance(spec, BatchMatmul)
        else [(spec.x_shape, "float32"), *spec.weight_args()]
    )
    inputs = [*own, *((s, "float32") for s in extra_shapes)]
    variables = [relax.Var(f"p{i}", relax.TensorType(s, d)) for i, (s, d) in enumerate(inputs)]
    operands, extras = (
        variables[: len(inputs) - len(extra_shapes)],
        variables[len(inputs) - len(extra_shapes) :],
    )
    with builder.function("main", variables):
        with builder.dataflow():
            y = builder.emit(
                relax.call_tir(anchor, operands, out_ty=relax.TensorType(spec.y_shape, "float32"))
            )
            out = builder.emit_output(tail(builder, y, *extras))
        builder.emit_func_output(out)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
        relax.transform.DeadCodeElimination(),
    ]
    mod = tvm.ir.transform.Sequential(passes)(builder.get())
    calls = [binding.value for block in mod["main"].body.blocks for binding in block.bindings]
    calls = [call for call in calls if isinstance(call, relax.Call)]
    assert len(calls) == 1, mod
    return mod[calls[0].args[0]]


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("m,k,n", [(5, 16, 33), (31, 40, 64)])
def test_bias_relu_residual(run_kernel, assert_close, cpu, m, k, n):
    gemm = Gemm((1, m), k, n)

    def tail(builder, y, bias, residual):
        y = builder.emit(relax.op.add(y, bias))
        y = builder.emit(relax.op.nn.relu(y))
        return relax.op.add(y, residual)

    func = fused_function(gemm, [(n,), gemm.y_shape], tail)
    rng = np.random.default_rng(0)
    x, w, b, r = (rng.standard_normal(s).astype("f") for s in (gemm.x_shape, (n, k), (n,), gemm.y_shape))
    got = run_kernel(rule(func, cpu), cpu, [x, *gemm.pack(w), b, r], gemm.y_shape)
    assert_close(got, np.maximum(x.astype("d") @ w.T.astype("d") + b, 0) + r)


def random(rng, *shapes):
    return [rng.standard_normal(s).astype("f") for s in shapes]


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("pattern", [Pattern(), Pattern(2, 4, 32), Pattern(2, 4)], ids=str)
def test_gelu_waits_in_the_output(run_kernel, assert_close, pruned_weight, cpu, pattern):
    gemm = Gemm((2, 9), 48, 41, pattern)

    def tail(builder, y, bias):
        return relax.op.nn.gelu(builder.emit(relax.op.add(y, bias)))

    func = fused_function(gemm, [(41,)], tail)
    rng = np.random.default_rng(1)
    x, b = random(rng, gemm.x_shape, (41,))
    w = pruned_weight(rng, pattern, 41, 1, 48)[:, 0]
    got = run_kernel(rule(func, cpu), cpu, [x, *gemm.pack(w), b], gemm.y_shape)
    y = x.astype("d") @ w.T.astype("d") + b
    assert_close(got, y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2))))


@pytest.mark.parametrize("cpu", CPUS)
def test_convolution_scale_clip_residual(run_kernel, assert_close, cpu):
    spec = conv(1, 9, 20, 5, 19, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1))

    def tail(builder, y, scale, residual):
        y = builder.emit(relax.op.clip(builder.emit(relax.op.multiply(y, scale)), -1.0, 2.0))
        return relax.op.add(y, residual)

    func = fused_function(spec, [(1, 1, 1, 19), spec.y_shape], tail)
    x, w, scale, residual = random(
        np.random.default_rng(2), spec.x_shape, (19, 3, 3, 5), (1, 1, 1, 19), spec.y_shape
    )
    got = run_kernel(rule(func, cpu), cpu, [x, *spec.pack(w), scale, residual], spec.y_shape)
    tx, tw = (torch.from_numpy(v.astype("d")).permute(0, 3, 1, 2) for v in (x, w))
    y = torch.nn.functional.conv2d(tx, tw, padding=1).permute(0, 2, 3, 1).numpy()
    assert_close(got, np.clip(y * scale, -1, 2) + residual)


@pytest.mark.parametrize("cpu", CPUS)
def test_depthwise_with_a_long_epilogue(run_kernel, assert_close, cpu):
    """Channels that are computed twice (19 is no multiple of a vector) must not see the epilogue twice."""
    spec = conv(1, 6, 7, 19, 19, 3, 3, (1, 1), (1, 1), (1, 1, 1, 1), 19)

    def tail(builder, y, bias):
        y = builder.emit(relax.op.add(y, bias))
        for _ in range(6):
            y = builder.emit(relax.op.add(builder.emit(relax.op.multiply(y, y)), bias))
            y = builder.emit(relax.op.multiply(y, relax.const(0.25)))
        return relax.op.add(y, bias)

    func = fused_function(spec, [(19,)], tail)
    x, w, b = random(np.random.default_rng(3), spec.x_shape, (19, 3, 3, 1), (19,))
    got = run_kernel(rule(func, cpu), cpu, [x, *spec.pack(w), b], spec.y_shape)
    tx, tw = (torch.from_numpy(v.astype("d")).permute(0, 3, 1, 2) for v in (x, w))
    y = torch.nn.functional.conv2d(tx, tw, padding=1, groups=19).permute(0, 2, 3, 1).numpy() + b
    for _ in range(6):
        y = (y * y + b) * 0.25
    assert_close(got, y + b)


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("b_order", [(), (0, 1, 3, 2)], ids=["NN", "NT"])
def test_attention_scores_with_scale_and_mask(run_kernel, assert_close, cpu, b_order):
    spec = BatchMatmul((1, 3), (1, 3), 17, 24, 21, (), b_order)

    def tail(builder, y, mask):
        return relax.op.add(builder.emit(relax.op.multiply(y, relax.const(0.125))), mask)

    func = fused_function(spec, [(1, 1, 17, 21)], tail)
    a, b, mask = random(np.random.default_rng(4), (1, 3, 17, 24), (1, 3, 24, 21), (1, 1, 17, 21))
    stored_b = b.transpose(b_order) if b_order else b
    got = run_kernel(rule(func, cpu), cpu, [a, stored_b, mask], spec.y_shape)
    assert_close(got, (a.astype("d") @ b.astype("d")) * 0.125 + mask)


def by_hand(gemm, follow):
    """A function of the anchor and what ``follow(Y)`` computes from it, fused without Relax."""
    definition = gemm.prim_func()
    inputs = [
        te.placeholder(s, d, name=f"p{i}")
        for i, (s, d) in enumerate([(gemm.x_shape, "float32"), *gemm.weight_args()])
    ]
    block = find_anchor(definition)[1]
    x, w = inputs
    k = te.reduce_axis((0, gemm.k), name="k")
    y = te.compute(
        gemm.y_shape,
        lambda i, j: te.sum(x[i, k] * w[j // 16, k, j % 16], axis=k),
        name="gemm",
        attrs={key: str(value) for key, value in block.annotations.items()},
    )
    outputs = follow(y)
    return te.create_prim_func([*inputs, *outputs])


@pytest.mark.parametrize("cpu", CPUS)
def test_two_outputs(run_kernel, assert_close, cpu):
    gemm = Gemm((11,), 24, 37)

    def follow(y):
        half = te.compute(y.shape, lambda i, j: y[i, j] * 0.5, name="half")
        return [half, te.compute(y.shape, lambda i, j: half[i, j] + 3.0, name="more")]

    func = by_hand(gemm, follow)
    x, w = random(np.random.default_rng(5), gemm.x_shape, (37, 24))
    half, more = run_kernel(rule(func, cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape, gemm.y_shape)
    want = x.astype("d") @ w.T.astype("d") * 0.5
    assert_close(half, want)
    assert_close(more, want + 3)


@pytest.mark.parametrize("cpu", CPUS)
def test_two_outputs_of_a_long_epilogue(run_kernel, assert_close, cpu):
    """The raw value waits in the first output, which must be written after the second has read it."""
    gemm = Gemm((11,), 24, 37)

    def follow(y):
        def poly(i, j):
            value = y[i, j]
            for step in range(8):
                value = value * 0.5 + y[i, j] * float(step)
            return value

        return [
            te.compute(y.shape, poly, name="poly"),
            te.compute(y.shape, lambda i, j: y[i, j] + 1.0, name="one"),
        ]

    func = by_hand(gemm, follow)
    x, w = random(np.random.default_rng(6), gemm.x_shape, (37, 24))
    poly, one = run_kernel(rule(func, cpu), cpu, [x, *gemm.pack(w)], gemm.y_shape, gemm.y_shape)
    y = x.astype("d") @ w.T.astype("d")
    want = y
    for step in range(8):
        want = want * 0.5 + y * step
    assert_close(poly, want)
    assert_close(one, y + 1)


@pytest.mark.parametrize("follow,reason", [
    (lambda y: [te.compute((9, 9), lambda i, j: y[j, i], name="turned")], "turned: it reads the contraction"),
    (lambda y: [te.compute((9,), lambda i: y[i, i], name="diagonal")], "diagonal: it reads the contraction"),
    (lambda y: [total(y)], "total: not one plain store"),
], ids=["transposed", "diagonal", "reduced"])  # fmt: skip
def test_what_is_no_epilogue_is_declined_with_the_reason(follow, reason):
    func = by_hand(Gemm((9,), 24, 9), follow)
    assert rule(func, X86_LEVELS["v3"]) is None
    assert why_not(func).startswith(reason)


def total(y):
    j = te.reduce_axis((0, 9), name="j")
    return te.compute((9,), lambda i: te.sum(y[i, j], axis=j), name="total")


def test_a_function_with_control_flow_is_declined():
    definition = Gemm((4,), 8, 9).prim_func()
    root = definition.body.block
    body = tirx.IfThenElse(definition.params[0][0, 0] > 0.0, root.body, None)
    block = tir.Block([], [], [], "root", body)
    func = tirx.PrimFunc(definition.params, tir.BlockRealize([], tirx.const(True), block))
    assert rule(func, X86_LEVELS["v3"]) is None
    assert why_not(func) == "blocks: required a nest of loops and blocks, found IfThenElse"


def test_an_empty_dimension_is_declined():
    assert why_not(Gemm((0,), 8, 9).prim_func()) == "an empty dimension"


def test_a_block_with_a_predicate_is_declined():
    definition = Gemm((4,), 8, 9).prim_func()
    realize = definition.body.block.body
    while isinstance(realize, tirx.For):
        realize = realize.body
    guarded = tir.BlockRealize(realize.iter_values, definition.params[0][0, 0] > 0.0, realize.block)
    func = tirx.PrimFunc(definition.params, guarded)
    assert rule(func, X86_LEVELS["v3"]) is None
    assert why_not(func) == "blocks: required no predicates, found one on gemm"


def test_a_function_without_a_contraction_is_declined():
    x = te.placeholder((4,), name="x")
    func = te.create_prim_func([x, te.compute((4,), lambda i: x[i] + 1.0)])
    assert rule(func, X86_LEVELS["v3"]) is None
    assert why_not(func) == "no contraction in the function"
    assert why_not(Gemm((4,), 8, 9).prim_func()) is None
