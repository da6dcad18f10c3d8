"""Contractions behind real operator fusion: FuseOps and FuseTIR around the anchor, then the rule."""

import numpy as np
import pytest
import tvm
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.contraction_rule import rule
from sparsec.schedules.target import X86_LEVELS
from tvm import relax

CPUS = [
    pytest.param(X86_LEVELS["v3"], id="v3", marks=pytest.mark.isa("avx2", "fma")),
    pytest.param(X86_LEVELS["v4"], id="v4", marks=pytest.mark.isa("avx512f", "avx512vl")),
]


def fused_function(spec, extra_shapes, tail):
    """The one fused function of ``tail(builder, anchor, *extras)`` behind the anchor of ``spec``."""
    builder = relax.BlockBuilder()
    anchor = builder.add_func(spec.prim_func(), "anchor")
    inputs = [(spec.x_shape, "float32"), *spec.weight_args(), *((s, "float32") for s in extra_shapes)]
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
