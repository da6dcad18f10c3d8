"""LSTM, GRU and RNN against ONNX Runtime's operators, one direction at a time."""

import numpy as np
import onnxruntime
import pytest
import tvm
from onnx import helper

from sparsec.schedules import RULE, math, recurrent, schedule
from sparsec.schedules.recurrent import GATES, Recurrent
from sparsec.schedules.target import X86_LEVELS

INPUTS = 3


def onnx_runtime(spec: Recurrent, x, w, r, bias, h0, c0) -> list[np.ndarray]:
    attributes = {"hidden_size": spec.hidden, "direction": "reverse" if spec.reverse else "forward"}
    if spec.clip:
        attributes["clip"] = spec.clip
    if spec.kind == "gru":
        attributes["linear_before_reset"] = int(spec.linear_before_reset)
    feeds = {"x": x, "w": w[None], "r": r[None], "b": bias[None], "h0": h0[None]}
    inputs, outputs = ["x", "w", "r", "b", "", "h0"], ["y", "y_h"]
    if spec.kind == "lstm":
        feeds["c0"], inputs, outputs = c0[None], inputs + ["c0"], outputs + ["y_c"]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node(spec.kind.upper(), inputs, outputs, **attributes)],
        "g",
        [value(n, 1, a.shape) for n, a in feeds.items()],
        [value(n, 1, None) for n in outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


def compare(run_kernel, spec: Recurrent, level="v3", scheduled=True):
    rng = np.random.default_rng(0)
    columns = GATES[spec.kind] * spec.hidden

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    x = normal(spec.steps, spec.batch, INPUTS)
    w, r, bias = normal(columns, INPUTS), normal(columns, spec.hidden), normal(2 * columns)
    h0, c0 = normal(2, spec.batch, spec.hidden)
    own, carried = bias[:columns].copy(), bias[columns:].copy()
    extra = []
    if spec.linear_before_reset:
        extra = [carried[2 * spec.hidden :].copy()]
        carried[2 * spec.hidden :] = 0
    inputs = [x @ w.T + own + carried, r.T, *extra, h0] + [c0] * (spec.kind == "lstm")
    assert [i.shape for i in inputs] == spec.inputs
    func = spec.prim_func()
    math.install()
    if scheduled:
        func = schedule(tvm.IRModule({"main": func}), X86_LEVELS[level])["main"]
        assert str(func.attrs[RULE]) == "recurrent"
    got = run_kernel(func, X86_LEVELS[level], inputs, *spec.outputs)
    want = onnx_runtime(spec, x, w, r, bias, h0, c0)
    for a, b in zip(got, want, strict=False):
        np.testing.assert_allclose(a, b.reshape(a.shape), rtol=1e-5, atol=5e-6)


VARIANTS = [("rnn", False), ("lstm", False), ("gru", False), ("gru", True)]


@pytest.mark.parametrize("kind,linear", VARIANTS)
@pytest.mark.parametrize("batch,hidden", [(1, 1), (1, 33), (5, 31), (2, 16), (9, 7)])
def test_layer_is_onnx_runtime_s(run_kernel, kind, linear, batch, hidden):
    compare(run_kernel, Recurrent(kind, 5, batch, hidden, batch == 5, linear))


@pytest.mark.parametrize("kind,linear", VARIANTS)
def test_clip_bounds_what_enters_an_activation(run_kernel, kind, linear):
    compare(run_kernel, Recurrent(kind, 4, 3, 24, True, linear, clip=0.3), level="v2")


@pytest.mark.parametrize("kind,linear", VARIANTS)
def test_definition_means_what_its_kernel_computes(run_kernel, kind, linear):
    compare(run_kernel, Recurrent(kind, 3, 2, 5, False, linear), scheduled=False)


def test_one_step(run_kernel):
    compare(run_kernel, Recurrent("lstm", 1, 1, 20))


def test_what_is_not_computed_is_refused():
    with pytest.raises(
        ValueError, match="Recurrent: required one of lstm, gru, rnn, found mgu; correct the kind"
    ):
        Recurrent("mgu", 1, 1, 1)
    with pytest.raises(
        ValueError, match="GRU: required the activations sigmoid, tanh, found Relu, tanh; rebuild"
    ):
        recurrent.check("gru", ["Relu", "tanh"])
    for what in ("sequence_lens", "peepholes", "input_forget"):
        with pytest.raises(ValueError, match="LSTM: required no .*, found some; rebuild the layer without"):
            recurrent.check("lstm", **{what: True})
    recurrent.check("lstm", ["Sigmoid", "Tanh", "Tanh"])
    recurrent.check("rnn")
