"""The helpers that read and rewrite graphs, where no pass's own test reaches."""

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes import graph
from sparsec.passes.fold import fold


def value(model: ir.Model, name: str) -> ir.Value:
    found = [v for n in model.graph for v in n.outputs if v.name == name]
    return (found + [v for v in model.graph.inputs if v.name == name])[0]


def test_constants(model_of):
    body = "a = Constant <value_float = 2.0> () b = Identity(a) c = Add(x, b) d = Add(c, w) y = Add(d, v)"
    model = model_of(body, "float[2,3,4,5] x, float v", constants="float[1,1] w = {3}, float v = {1}")
    assert graph.const_scalar(value(model, "b")) == 2.0
    assert graph.const_scalar(model.graph.initializers["w"]) == 3.0
    assert graph.const_array(value(model, "v")) is None, "the caller may replace it"
    assert graph.const_array(value(model, "x")) is None and graph.const_array(None) is None
    assert graph.const_scalar(value(model, "c")) is None


@pytest.mark.parametrize(
    "shape, target, certain",
    [
        ((), (2, 3), True),
        ((1,), (2, 3), True),
        ((3,), (2, 3), True),
        ((2, 1), (2, 3), True),
        ((2,), (2, 3), False),
        ((1, 1, 1), (2, 3), False),
        ((3,), (2, "n"), False),
        ((3,), None, False),
        ((1,), None, False),
        ((), None, True),
    ],
)
def test_broadcasts_into(shape, target, certain):
    x = ir.Value(name="x", shape=None if target is None else ir.Shape(target))
    assert graph.broadcasts_into(shape, x) is certain


def test_between_and_dead(model_of, op_types):
    model = model_of("a = Exp(x) b = Sin(x) c = Add(a, b) d = Abs(c) e = Neg(c) y = Identity(d)")
    names = {n.op_type: n for n in model.graph}
    assert graph.op_list(graph.nodes_between(value(model, "a"), names["Abs"])) == "Add, Abs"
    assert graph.op_list(graph.nodes_between(value(model, "x"), names["Abs"])) == "Exp, Sin, Add, Abs"
    between = graph.nodes_between(value(model, "x"), names["Abs"], stop=value(model, "b"))
    assert graph.op_list(between) == "Exp, Add, Abs"
    assert graph.nodes_between(value(model, "e"), names["Abs"]) == []
    assert graph.depends_on(value(model, "d"), value(model, "x"))
    assert not graph.depends_on(value(model, "x"), value(model, "d"))
    graph.remove_dead([value(model, "e"), value(model, "d"), None])
    assert op_types(model) == ["Exp", "Sin", "Add", "Abs", "Identity"], "what is read stays"


def test_between_does_not_recurse(model_of):
    """Deeper than Python's recursion limit."""
    steps = " ".join(f"a{i + 1} = Neg(a{i})" for i in range(3000))
    model = model_of(f"a0 = Exp(x) {steps} y = Abs(a3000)")
    assert len(graph.nodes_between(value(model, "x"), list(model.graph)[-1])) == 3002


def test_names(model_of):
    model = model_of("a = Exp(x) y = Abs(a)")
    assert graph.free_name(model, "b") == "b"
    assert graph.free_name(model, "a") == "a_1"
    assert graph.add_constant(model, "x", np.zeros(2, np.float32)).name == "x_1"
    first = next(iter(model.graph))
    assert graph.node_name(first) == "n0_Exp"
    first.name = None
    assert graph.node_name(first) == "a"


def test_fold_agrees_with_onnx_runtime(model_of, run_ort):
    """Shape arithmetic of every operator that fold knows, ending in one vector."""
    body = """
      s = Shape(x) p = Shape <start = 1, end = 3> (x) g = Gather(s, i2)
      u = Unsqueeze(g, i0) q = Concat <axis = 0> (p, u)
      one = Constant <value_int = 1> () n = Add(g, one) r = Range(one, n, one)
      c = Cast <to = 7> (r) l = CastLike(c, s)
      m = Reshape(l, shape) t = Transpose <perm = [1, 0]> (m) sl = Slice(t, i0, i2v, i0)
      z = Sub(sl, one) w = Mul(z, z) sq = Unsqueeze(w, i0) un = Squeeze(sq, i0)
      e = Expand(un, es) id = Identity(e) v = Reshape(id, flat) y = Concat <axis = 0> (q, v)"""
    constants = (
        "int64 i2 = {2}, int64[1] i0 = {0}, int64[1] i2v = {2}, int64[2] shape = {2, 2}, "
        "int64[3] es = {3, 1, 1}, int64[1] flat = {-1}"
    )
    model = model_of(body, "float[2,3,4,5] x", "int64[N] y", constants)
    expected = run_ort(model, {"x": np.zeros((2, 3, 4, 5), np.float32)})
    np.testing.assert_array_equal(fold(model.graph.outputs[0]), expected)


def test_fold_says_none_where_it_does_not_know(model_of):
    body = "s = Shape(x) a = Add(s, n) b = Slice(s, big, big) c = Reshape(s, bad) e = Exp(x) y = Shape(e)"
    model = model_of(body, "float[N,3] x, int64[2] n", "int64[2] y", "int64[1] big = {9}, int64[1] bad = {7}")
    assert fold(value(model, "s")) is None and fold(value(model, "a")) is None
    assert fold(value(model, "e")) is None and fold(None) is None
    x = value(model, "x")
    np.testing.assert_array_equal(fold(value(model, "s"), {x: (4, 3)}), [4, 3])
    assert fold(value(model, "b"), {x: (4, 3)}).size == 0
    assert fold(value(model, "c"), {x: (4, 3)}) is None
