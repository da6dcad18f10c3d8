"""``sparsec inspect`` on models and artifacts: true facts, and a page that stands alone."""

import json
import zipfile
from html.parser import HTMLParser

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

VOID = {"meta", "br"}


class Page(HTMLParser):
    """Collects tags and attributes and checks that tags nest."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.seen, self.attributes, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def strange(tmp_path):
    """A model whose names try to break lines and tags."""
    weight = np.zeros((8, 8), np.float32)
    weight[:4] = 1
    nodes = [helper.make_node("MatMul", ["x\n<b>", "w"], ["y"], "<script>alert(1)</script>\nlayer")]
    x = helper.make_tensor_value_info("x\n<b>", TensorProto.FLOAT, ["<i>n", 8])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    path = tmp_path / "a b\n<u>.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    return path


def test_a_model_is_counted_right(call, digits):
    found = json.loads(call("inspect", digits, "--json").stdout)
    model = onnx.load(digits)
    assert found["bytes"] == digits.stat().st_size
    assert sum(found["ops"].values()) == len(model.graph.node)
    assert found["parameters"] == sum(int(np.prod(t.dims)) for t in model.graph.initializer)
    assert found["inputs"] == [{"name": "image", "dtype": "float32", "dims": ["batch", 1, 8, 8]}]
    assert [layer["pattern"] for layer in found["layers"]] == ["dense", "2:4x16", "2:4x16", "dense"]
    for layer, expected in zip(found["layers"][1:3], (0.5, 0.5), strict=True):
        assert layer["zeros"] == pytest.approx(expected, abs=0.01)


def test_a_model_as_text(call, digits):
    result = call("inspect", digits)
    assert result.exit_code == 0
    assert "/2/Conv  Conv  64x32x3x3   73.7 kB  50.0 %  2:4x16" in result.stdout
    assert "batch x 1 x 8 x 8" in result.stdout


def test_strange_names_stay_on_their_line(call, strange):
    result = call("inspect", strange)
    assert result.exit_code == 0
    assert "x\\n<b>" in result.stdout
    assert "<script>alert(1)</script>\\nlayer" in result.stdout


def test_the_page_stands_alone(call, digits):
    page = Page(call("inspect", digits, "--html").stdout)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.seen)
    assert not [value for name, value in page.attributes if name in ("src", "href", "srcset")]
    text = call("inspect", digits, "--html").stdout
    assert "url(" not in text and "@import" not in text and "http" not in text
    assert "2:4x16" in page.text and "48,442" in page.text


def test_the_page_escapes_names(call, strange):
    page = Page(call("inspect", strange, "--html").stdout)
    assert not {"script", "b", "i", "u"} & (set(page.seen) - {"b", "i"})
    assert "<script>alert(1)</script>\\nlayer" in page.text
    assert page.seen.count("b") == 4  # the cards' own


def test_what_is_no_model_is_one_line(call, one_line, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(b"\x00" * 100)
    result = call("inspect", path)
    assert result.exit_code == 1
    assert one_line(result)


def test_an_artifact_is_told_from_its_manifest(call, artifact):
    found = json.loads(call("inspect", artifact, "--json").stdout)
    with zipfile.ZipFile(artifact) as opened:
        manifest = json.loads(opened.read("manifest.json"))
    assert found["kind"] == "artifact"
    assert found["source_sha256"] == manifest["source_sha256"]
    assert found["layers"] == manifest["layers"]
    text = call("inspect", artifact).stdout
    assert "2:4x16" in text and "image" in text and "model." in text


def test_an_artifacts_page_stands_alone(call, artifact):
    text = call("inspect", artifact, "--html").stdout
    page = Page(text)
    assert "script" not in page.seen and "http" not in text
    assert "error against ONNX Runtime" in page.text


def test_a_damaged_artifact_is_one_line(call, one_line, artifact, tmp_path):
    data = bytearray(artifact.read_bytes())
    data[len(data) // 2] ^= 1
    path = tmp_path / "damaged.sparsec"
    path.write_bytes(data)
    result = call("inspect", path)
    assert result.exit_code == 1
    assert "damaged artifact" in one_line(result)
