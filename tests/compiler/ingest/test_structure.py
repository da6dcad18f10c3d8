"""Damaged structure is refused before any library looks at it; harmless gaps are filled."""

import numpy as np
import onnx
import pytest
from onnx import helper

from sparsec.compiler.ingest import ingest

F = onnx.TensorProto.FLOAT


def model(nodes, inputs=("x",), outputs=("y",), initializers=(), **options):
    infos = [helper.make_tensor_value_info(name, F, [2]) for name in inputs]
    results = [helper.make_tensor_value_info(name, F, [2]) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", infos, results, list(initializers))
    options.setdefault("opset_imports", [helper.make_opsetid("", 17)])
    return helper.make_model(graph, ir_version=8, **options)


RELU = helper.make_node("Relu", ["x"], ["y"])


def test_sound_model_passes(same, ops):
    assert ops(same(model([RELU]))) == ["Relu"]


def test_nodes_get_unique_names(same, save):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], name="n"),
        helper.make_node("Neg", ["a"], ["y"], name="n"),
    ]
    assert [node.name for node in ingest(save(model(nodes))).graph] == ["n", "n_1"]
    assert [node.name for node in same(model([RELU])).graph] == ["Relu_0"]


def test_unsorted_nodes_are_sorted(save, ops):
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    assert ops(ingest(save(model(nodes)))) == ["Relu", "Neg"]


@pytest.mark.parametrize("name", ["a b", "a/b:0", "ünï", "two\nlines", "x" * 300, "%s{0}"])
def test_odd_value_names_are_kept(save, name):
    odd = model([helper.make_node("Relu", [name], ["y"])], inputs=[name])
    assert ingest(save(odd)).graph.inputs[0].name == name


def test_domain_ai_onnx_is_the_default_domain(same):
    node = helper.make_node("Relu", ["x"], ["y"], domain="ai.onnx")
    result = same(model([node], opset_imports=[helper.make_opsetid("ai.onnx", 17)]))
    assert next(iter(result.graph)).domain == ""


@pytest.mark.parametrize(
    ("damaged", "text"),
    [
        (model([RELU], opset_imports=[helper.make_opsetid("com.microsoft", 1)]), "imports no opset for them"),
        (model([RELU], opset_imports=[helper.make_opsetid("", 6)]), "of opset 6, sparsec takes 7 to 26"),
        (model([RELU], opset_imports=[helper.make_opsetid("", 99)]), "of opset 99, sparsec takes 7 to 26"),
        (
            model([RELU], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx", 18)]),
            "imports domain '' in two versions, 17 and 18",
        ),
        (model([RELU], outputs=[]), "the model has no output"),
        (model([RELU], outputs=["z"]), "output 'z' is defined by nothing"),
        (model([helper.make_node("Relu", ["q"], ["y"])]), "Relu 'Relu_0' reads 'q', which nothing defines"),
        (model([RELU, RELU]), "'y' is defined twice, the second time by"),
        (
            model([helper.make_node("Relu", ["x"], ["x"])], outputs=["x"]),
            "'x' is defined twice, the second time by 'Relu_0'",
        ),
        (model([RELU], inputs=["x", "x"]), "an input named 'x' is defined twice"),
        (model([helper.make_node("", ["x"], ["y"])]), "node 0 has no operator type"),
        (
            model(
                [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Relu", ["a"], ["b"])],
                outputs=["a"],
            ),
            "depend on each other in a circle",
        ),
    ],
)
def test_damage_is_named(refusal, damaged, text):
    assert text in refusal(damaged)


def test_no_opset_at_all(refusal):
    bare = model([RELU])
    del bare.opset_import[:]
    assert "names no opset" in refusal(bare)


def weight(**changes) -> onnx.TensorProto:
    tensor = onnx.numpy_helper.from_array(np.ones(2, np.float32), "w")
    for key, value in changes.items():
        if key == "dims":
            tensor.dims[:] = value
        else:
            setattr(tensor, key, value)
    return tensor


ADD = helper.make_node("Add", ["x", "w"], ["y"])


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (weight(dims=[3]), "tensor 'w' of FLOAT [3] needs 12 bytes, the file has 8"),
        (weight(dims=[-2]), "tensor 'w' has shape [-2]: sizes cannot be negative"),
        (weight(dims=[1 << 40, 1 << 40]), "needs"),
        (weight(data_type=77), "tensor 'w' has element type 77, which ONNX does not define"),
        (weight(data_type=onnx.TensorProto.STRING), "holds strings as raw bytes"),
        (weight(name=""), "initializer '' is defined twice or has no name"),
    ],
)
def test_damaged_weights(refusal, tensor, text):
    assert text in refusal(model([ADD], initializers=[tensor]))


def test_weights_in_typed_fields(same, refusal):
    tensor = helper.make_tensor("w", F, [2], [1.0, 2.0])
    assert len(same(model([ADD], initializers=[tensor])).graph) == 1
    tensor.float_data.append(3.0)
    assert "needs 2 values in float_data, the file has 3" in refusal(model([ADD], initializers=[tensor]))


def test_duplicate_initializer(refusal):
    assert "initializer 'w' is defined twice" in refusal(model([ADD], initializers=[weight(), weight()]))


def test_undefined_element_type_of_an_input(refusal):
    odd = model([RELU])
    odd.graph.input[0].type.tensor_type.elem_type = 99
    assert "'x' has element type 99, which ONNX does not define" in refusal(odd)


def test_sparse_tensors(refusal):
    odd = model([RELU])
    odd.graph.sparse_initializer.add().dims.append(2)
    assert "export dense weights that contain zeros" in refusal(odd)
    sparse = onnx.SparseTensorProto(dims=[2])
    node = helper.make_node("Constant", [], ["y"], sparse_value=sparse)
    assert "holds a sparse tensor; export it dense" in refusal(model([node]))


def test_graphs_nested_too_deep(refusal):
    results = [helper.make_tensor_value_info("y", F, [2])]
    leaf = helper.make_graph([RELU], "leaf", [], results)
    node = RELU
    for _ in range(20):
        inner = helper.make_graph([node], "inner", [], results)
        node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=leaf)
    assert "lies more than 16 graphs deep" in refusal(model([node], inputs=["x", "c"]))


def function(name: str, *nodes, domain="d") -> onnx.FunctionProto:
    return helper.make_function(domain, name, ["x"], ["y"], list(nodes), [helper.make_opsetid("", 17)])


IMPORTS = [helper.make_opsetid("", 17), helper.make_opsetid("d", 1)]


@pytest.mark.parametrize(
    ("functions", "text"),
    [
        ([function("F", RELU), function("F", RELU)], "function 'F' of domain 'd' is defined twice"),
        (
            [function("F", helper.make_node("F", ["x"], ["y"], domain="d"))],
            "call each other in a circle: 'F'",
        ),
        ([function("F", RELU, domain="")], "function 'F' redefines an operator of the standard domain"),
        ([function("F", helper.make_node("Relu", ["q"], ["y"]))], "reads 'q', which nothing defines"),
        (
            [function("F", helper.make_node("Relu", ["x"], ["z"]))],
            "output of function 'F' 'y' is defined by nothing",
        ),
    ],
)
def test_damaged_functions(refusal, functions, text):
    call = helper.make_node("F", ["x"], ["y"], domain="d")
    assert text in refusal(model([call], opset_imports=IMPORTS, functions=functions))


def test_attribute_reference_outside_a_function(refusal):
    node = helper.make_node("LeakyRelu", ["x"], ["y"])
    node.attribute.add(name="alpha", ref_attr_name="alpha", type=onnx.AttributeProto.FLOAT)
    assert "attribute alpha refers to one of a function" in refusal(model([node]))


def test_what_a_library_trips_over_is_the_models_fault(refusal):
    node = helper.make_node("Constant", [], ["c"], value_float=1.0)
    node.attribute[0].name = "nonsense"
    text = refusal(model([node, helper.make_node("Mul", ["x", "c"], ["y"])]))
    assert "the model is not valid ONNX: Unrecognized attribute: nonsense" in text


def test_a_bug_of_ours_is_no_fault_of_the_model(save, monkeypatch):
    from sparsec.compiler.ingest import form

    monkeypatch.setattr(form, "settle", lambda model, integers: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ingest(save(model([RELU])))


def test_the_checker_does_not_look_for_external_data(save, tmp_path):
    from sparsec.compiler.ingest import load

    tensor = weight()
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="none.bin")
    assert load.fault(save(model([ADD], initializers=[tensor]))) is None
