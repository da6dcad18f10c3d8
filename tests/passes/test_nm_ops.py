"""The N:M operators: function bodies, NumPy meanings and shapes, against the plain operators."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from sparsec.passes.ops import nm
from sparsec.passes.ops.base import install

OPS = {op.name: op for op in nm.OPS}
PATTERN = {"n": 2, "m": 4, "block": 1}

CASES = [
    ("MatMul", [(3, 8), (8, 5)], {}),
    ("MatMul", [(2, 1, 3, 8), (8, 5)], {}),
    ("Gemm", [(3, 8), (8, 5)], {}),
    ("Gemm", [(3, 8), (8, 5), (5,)], {}),
    ("Gemm", [(3, 8), (8, 5), (3, 1)], {"beta": 0.5}),
    ("Gemm", [(8, 3), (5, 8), (1,)], {"transA": 1, "transB": 1, "alpha": 0.25, "beta": 2.0}),
    ("Conv", [(2, 8, 9, 7), (6, 8, 3, 3)], {}),
    ("Conv", [(2, 8, 9, 7), (6, 8, 3, 3), (6,)], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ("Conv", [(2, 8, 9, 7), (6, 4, 3, 3), (6,)], {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1]}),
    ("Conv", [(1, 8, 9, 7), (6, 8, 2, 3)], {"dilations": [1, 2]}),
    ("Conv", [(1, 8, 9, 7), (6, 8, 2, 4)], {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("Conv", [(1, 8, 9, 7), (6, 8, 2, 4)], {"auto_pad": "SAME_LOWER", "strides": [1, 2]}),
    ("Conv", [(1, 8, 9, 7), (6, 8, 3, 3)], {"auto_pad": "VALID"}),
    ("Conv", [(1, 8, 9), (6, 8, 3)], {}),
    ("Conv", [(1, 4, 5, 6, 5), (6, 4, 3, 1, 2), (6,)], {}),
    ("ConvTranspose", [(2, 8, 5, 4), (8, 6, 3, 3)], {}),
    (
        "ConvTranspose",
        [(2, 8, 5, 4), (8, 3, 3, 2), (6,)],
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 2, 1]},
    ),
    (
        "ConvTranspose",
        [(1, 4, 5, 4), (4, 6, 2, 3)],
        {"dilations": [2, 1], "output_padding": [1, 0], "strides": [3, 1]},
    ),
    ("ConvTranspose", [(1, 4, 5, 4), (4, 6, 3, 4)], {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    ("ConvTranspose", [(1, 4, 5, 4), (4, 6, 3, 4)], {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    ("ConvTranspose", [(1, 4, 5, 4), (4, 6, 3, 3)], {"output_shape": [10, 8], "strides": [2, 2]}),
    ("ConvTranspose", [(1, 4, 5), (4, 6, 3), (6,)], {"auto_pad": "VALID", "strides": [2]}),
]


def one_node(op, shapes, attributes, domain="", dims=None, opset=20):
    """A model of one node; `dims` replaces the first input's shape."""
    shapes = [dims or shapes[0], *shapes[1:]]
    inputs = [
        ir.Value(name=f"i{i}", shape=ir.Shape(s), type=ir.TensorType(ir.DataType.FLOAT))
        for i, s in enumerate(shapes)
    ]
    node = ir.node(op, inputs, attributes, domain=domain, name="the node")
    node.outputs[0].name, node.outputs[0].dtype = "y", ir.DataType.FLOAT
    graph = ir.Graph(inputs, node.outputs, nodes=[node], opset_imports={"": opset}, name="g")
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("op, shapes, attributes", CASES)
def test_body_meaning_and_shape_are_those_of_the_plain_operator(op, shapes, attributes, ort_run, tmp_path):
    rng = np.random.default_rng(0)
    feeds = {f"i{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    plain = ort_run(ir.to_proto(one_node(op, shapes, attributes)).SerializeToString(), feeds)["y"]

    model = one_node(f"NM{op}", shapes, {**attributes, **PATTERN}, domain="ai.sparsec")
    node = model.graph[0]
    model.graph.outputs[0].dtype, model.graph.outputs[0].shape = OPS[f"NM{op}"].infer(node)
    install(model, OPS[f"NM{op}"])
    path = tmp_path / "m.onnx"
    ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    np.testing.assert_array_equal(ort_run(path, feeds)["y"], plain)

    reference = OPS[f"NM{op}"].reference(*feeds.values(), **attributes, **PATTERN)
    assert reference.dtype == np.float32
    np.testing.assert_allclose(reference, plain, rtol=1e-5, atol=2e-5)
    assert tuple(node.outputs[0].shape) == plain.shape and node.outputs[0].dtype == ir.DataType.FLOAT


# onnx's evaluator wants every attribute and input of a function spelled out.
SPELLED_OUT = [
    ("Gemm", [(8, 3), (5, 8), (1,)], {"transA": 1, "transB": 1, "alpha": 0.25, "beta": 2.0}),
    (
        "Conv",
        [(2, 8, 9, 7), (6, 4, 3, 3), (6,)],
        {
            "auto_pad": "NOTSET",
            "group": 2,
            "kernel_shape": [3, 3],
            "strides": [2, 1],
            "pads": [1, 0, 2, 1],
            "dilations": [1, 2],
        },
    ),
]


@pytest.mark.parametrize("op, shapes, attributes", SPELLED_OUT)
def test_body_runs_in_the_reference_evaluator(op, shapes, attributes):
    rng = np.random.default_rng(0)
    feeds = {f"i{i}": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(shapes)}
    model = one_node(f"NM{op}", shapes, {**attributes, **PATTERN}, domain="ai.sparsec")
    install(model, OPS[f"NM{op}"])
    (y,) = ReferenceEvaluator(ir.to_proto(model)).run(None, feeds)
    (plain,) = ReferenceEvaluator(ir.to_proto(one_node(op, shapes, attributes))).run(None, feeds)
    np.testing.assert_array_equal(y, plain)


@pytest.mark.parametrize(
    "op, dims, other, attributes, expected",
    [
        ("MatMul", ["batch", "seq", 8], (8, 5), {}, ["batch", "seq", 5]),
        ("Gemm", ["batch", 8], (5, 8), {"transB": 1}, ["batch", 5]),
        ("Gemm", [8, "batch"], (8, 5), {"transA": 1}, ["batch", 5]),
        ("Conv", ["batch", 8, 9, "width"], (6, 8, 3, 3), {"pads": [1, 1, 1, 1]}, ["batch", 6, 9, None]),
        ("ConvTranspose", ["batch", 8, 9, "width"], (8, 3, 2, 2), {"group": 2}, ["batch", 6, 10, None]),
    ],
)
def test_symbolic_dims_go_through(op, dims, other, attributes, expected):
    model = one_node(f"NM{op}", [None, other], {**attributes, **PATTERN}, domain="ai.sparsec", dims=dims)
    dtype, shape = OPS[f"NM{op}"].infer(model.graph[0])
    assert dtype == ir.DataType.FLOAT
    assert [d if isinstance(d, int) else d.value for d in shape] == expected


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "ConvTranspose"])
def test_unknown_shapes_stay_unknown(op):
    node = one_node(f"NM{op}", [(3, 8), (8, 5)], PATTERN, domain="ai.sparsec").graph[0]
    node.inputs[0].shape = None
    assert OPS[f"NM{op}"].infer(node) == (ir.DataType.FLOAT, None)


def test_every_attribute_and_input_is_explained():
    for op in nm.OPS:
        assert all(a.meaning for a in op.attributes.values()) and all(text for _, text in op.inputs)
        assert {"n", "m", "block"} <= {k for k, a in op.attributes.items() if a.required}
