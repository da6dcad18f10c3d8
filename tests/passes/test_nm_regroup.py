"""Blocks whose channels are not adjacent: sorted where that is free, and the reason where it is not."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from sparsec.passes import run_pipeline

RNG = np.random.default_rng(0)


def blocks(outputs, inputs, n=2, m=4, block=16):
    """`[outputs, inputs]` with n:m shared by runs of `block` rows."""
    mask = np.zeros((outputs // block, inputs // m, m), bool)
    for group in mask.reshape(-1, m):
        group[RNG.choice(m, n, replace=False)] = True
    return np.repeat(mask.reshape(outputs // block, inputs), block, axis=0) * RNG.standard_normal(
        (outputs, inputs)
    )


def model_of(first, second, ends=("y",)):
    """MatMul, Add, Relu, MatMul; `ends` are the outputs."""
    nodes = [
        helper.make_node("MatMul", ["x", "P"], ["a"], name="first"),
        helper.make_node("Add", ["a", "b"], ["c"], name="bias"),
        helper.make_node("Relu", ["c"], ["d"], name="relu"),
        helper.make_node("MatMul", ["d", "Q"], ["y"], name="second"),
    ]
    constants = {"P": first.T, "b": RNG.standard_normal(len(first)), "Q": second.T}
    weights = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in constants.items()]
    port = helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, first.shape[1]])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends]
    graph = helper.make_graph(nodes, "g", [port], outputs, weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, strict_mode=True))


@pytest.fixture
def regroup(ort_run):
    """Runs all recognisers; the function stays; -> (findings of this pass, patterns by name)."""

    def run(model):
        feeds = {"x": RNG.standard_normal((5, model.graph.inputs[0].shape[1])).astype(np.float32)}
        before = ort_run(ir.to_proto(model).SerializeToString(), feeds)
        findings = [f for f in run_pipeline(model, "") if f.pass_name == "regroup-channels"]
        onnx.checker.check_model(ir.to_proto(model))
        for name, value in ort_run(ir.to_proto(model).SerializeToString(), feeds).items():
            np.testing.assert_allclose(value, before[name], rtol=1e-5, atol=1e-4)
        patterns = {
            node.name: tuple(node.attributes[k].value for k in ("n", "m", "block"))
            for node in model.graph
            if node.domain == "ai.sparsec"
        }
        return findings, patterns

    return run


@pytest.mark.parametrize("block", [4, 16, 32])
def test_mixed_rows_are_sorted_into_blocks(block, regroup):
    first = blocks(64, 24, block=block)[RNG.permutation(64)]
    (finding,), patterns = regroup(model_of(first, RNG.standard_normal((8, 64))))
    assert finding.applied and finding.node == "first"
    assert finding.reason == (
        f"its 64 outputs put in another order, folded into the layers around: 2:4x{block} where it was 2:4"
    )
    assert patterns == {"first": (2, 4, block)}


def test_classes_of_any_size_keep_the_widest_blocks(regroup):
    """32 rows of one kind and 4 of each of 5 others: blocks of 4 is what all of them fill."""
    kinds = np.repeat(np.arange(6), [32, 4, 4, 4, 4, 4])
    first = blocks(6 * 4, 24, block=4)[kinds * 4] * RNG.uniform(1, 2, (52, 24))
    (finding,), patterns = regroup(model_of(first[RNG.permutation(52)], RNG.standard_normal((8, 52))))
    assert finding.applied and patterns == {"first": (2, 4, 4)}


def test_blocks_that_are_adjacent_are_left_alone(regroup):
    findings, patterns = regroup(model_of(blocks(64, 24), RNG.standard_normal((8, 64))))
    assert findings == [] and patterns == {"first": (2, 4, 16)}


def test_rows_of_their_own_are_left_alone(regroup):
    findings, patterns = regroup(model_of(blocks(64, 24, block=1), RNG.standard_normal((8, 64))))
    assert findings == [] and patterns == {"first": (2, 4, 1)}


def test_channels_that_are_an_output_stay(regroup):
    first = blocks(64, 24)[RNG.permutation(64)]
    (finding,), patterns = regroup(model_of(first, RNG.standard_normal((8, 64)), ends=("y", "d")))
    assert not finding.applied and patterns == {"first": (2, 4, 1)}
    assert finding.reason == (
        "2:4x16 where it is 2:4, were outputs with the same zeros beside each other; "
        "they cannot move: d is an output of the model"
    )


def test_the_pattern_of_the_next_layer_is_not_spoilt(regroup):
    first = blocks(64, 24)[RNG.permutation(64)]
    (finding,), patterns = regroup(model_of(first, blocks(32, 64)))
    assert not finding.applied and patterns == {"first": (2, 4, 1), "second": (2, 4, 16)}
    assert finding.reason.endswith("they stay: second would lose its pattern 2:4x16")
