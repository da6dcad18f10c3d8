"""External data comes from the model's own folder, by the sizes it says, or not at all."""

import os

import numpy as np
import onnx
import pytest
from onnx import helper

from sparsec.compiler.ingest import ingest

F = onnx.TensorProto.FLOAT
WEIGHTS = np.arange(12, dtype=np.float32)


def external(location="w.bin", offset=0, length=48, dims=(12,), data_type=F, **more) -> onnx.ModelProto:
    tensor = onnx.TensorProto(name="w", data_type=data_type, dims=dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entries = {"location": location, "offset": offset, "length": length, **more}
    for key, value in entries.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", F, [12])],
        [helper.make_tensor_value_info("y", F, [12])],
        [tensor],
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHTS.tobytes())
    return tmp_path


def test_mapped_and_equal_to_onnx_runtime(folder, same):
    assert len(same(external()).graph.initializers) == 1
    assert len(same(external(length=None, offset=None)).graph.initializers) == 1


def test_subfolder_and_unaligned_offset(folder, save):
    (folder / "sub").mkdir()
    (folder / "sub" / "w.bin").write_bytes(b"?" + WEIGHTS.tobytes())
    model = ingest(save(external("./sub//w.bin", offset=1)))
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), WEIGHTS)


def test_tensor_in_a_constant_node(folder, save):
    model = external()
    tensor = model.graph.initializer.pop()
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    assert np.array_equal(ingest(save(model)).graph.initializers["w"].const_value.numpy(), WEIGHTS)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (external("/etc/passwd"), "'/etc/passwd' is not a relative path with forward slashes"),
        (external("..\\w.bin"), "is not a relative path with forward slashes"),
        (external(""), "'' is not a relative path"),
        (external("a\0b"), "is not a relative path"),
        (external("../w.bin"), "leaves the model's folder by '..'"),
        (external("sub/../../w.bin"), "leaves the model's folder by '..'"),
        (external("none.bin"), "'none.bin' is missing; put it into the folder of the model"),
        (external("w.bin/x"), "cannot be opened (Not a directory)"),
        (external("."), "is not a regular file"),
        (external(offset=4), "bytes 4 to 52 are wanted from 'w.bin', which has 48"),
        (external(offset=1 << 40), "which has 48; the file is cut off"),
        (external(length=44), "44 bytes are given for FLOAT [12], which takes 48"),
        (external(dims=(1 << 40,)), "48 bytes are given for FLOAT"),
        (external(offset=-4), "offset '-4' is not a number of bytes"),
        (external(offset="1_0"), "offset '1_0' is not a number of bytes"),
        (external(length="٤"), "is not a number of bytes"),
        (external(length=6, data_type=onnx.TensorProto.INT4), "INT4 is not supported"),
        (external(data_type=onnx.TensorProto.STRING), "STRING is not supported"),
    ],
)
def test_refused(folder, refusal, model, text):
    said = refusal(model)
    assert "external data of 'w'" in said and text in said


def test_symbolic_links_are_refused(folder, refusal):
    (folder / "link.bin").symlink_to("w.bin")
    (folder / "dir").symlink_to(folder)
    assert "is or goes through a symbolic link; copy the real file" in refusal(external("link.bin"))
    assert "is or goes through a symbolic link" in refusal(external("dir/w.bin"))


def test_hard_links_pipes_and_empty_files_are_refused(folder, refusal):
    os.link(folder / "w.bin", folder / "second.bin")
    assert "has 2 hard links; copy it to a file of its own" in refusal(external("second.bin"))
    os.mkfifo(folder / "pipe")
    assert "is not a regular file" in refusal(external("pipe"))
    (folder / "empty.bin").touch()
    assert "which has 0; the file is cut off" in refusal(external("empty.bin"))
