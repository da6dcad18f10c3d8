"""What the tests of ingest share: models written as text, and the comparison with ONNX Runtime."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.compiler.ingest import IngestError, ingest


@pytest.fixture
def text_model():
    """``text_model("(float[2] x) => (float[2] y) { y = Relu(x) }", opset=17)``: ONNX's own text form."""

    def build(body: str, opset: int = 17, domains: str = "", functions: str = "") -> onnx.ModelProto:
        imports = f'"" : {opset}' + (f", {domains}" if domains else "")
        return onnx.parser.parse_model(f"<ir_version: 8, opset_import: [{imports}]> g {body} {functions}")

    return build


@pytest.fixture
def save(tmp_path):
    """Write a model (or bytes) to a file and return its path."""

    def write(model, name: str = "model.onnx"):
        path = tmp_path / name
        path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
        return path

    return write


@pytest.fixture
def refusal(save):
    """The text of the IngestError that ``model`` raises."""

    def run(model, **options) -> str:
        with pytest.raises(IngestError) as caught:
            ingest(save(model), **options)
        text = str(caught.value)
        assert "\n" not in text
        return text

    return run


@pytest.fixture
def same(save, ort_run):
    """Ingest ``model``, compare its numbers with the original's in ONNX Runtime, return what came out."""

    def run(
        model, feeds: dict | None = None, *, log=None, seed: int = 0, rtol: float = 1e-5, **options
    ) -> ir.Model:
        path = save(model)
        result = ingest(path, log=log.append if log is not None else lambda line: None, **options)
        proto = ir.to_proto(result)
        onnx.checker.check_model(proto, full_check=True)
        for value in (v for node in result.graph for v in node.outputs if v.name):
            assert value.shape is not None and value.shape.is_static(), value
        assert not any(value.name in result.graph.initializers for value in result.graph.inputs)
        names = [node.name for node in result.graph]
        assert all(names) and len(set(names)) == len(names)
        feeds = {**_random(result, seed), **(feeds or {})}
        want, got = ort_run(path, feeds), ort_run(proto.SerializeToString(), feeds)
        assert list(want) == list(got)
        for name, array in want.items():
            assert got[name].shape == array.shape and got[name].dtype == array.dtype, name
            scale = np.abs(array.astype(np.float64)).max(initial=0)
            np.testing.assert_allclose(got[name], array, rtol=0, atol=rtol * scale + 1e-6, err_msg=name)
        return result

    return run


def _random(model: ir.Model, seed: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    feeds = {}
    for value in model.graph.inputs:
        shape, dtype = value.shape.numpy(), value.dtype.numpy()
        if dtype.kind == "b":
            feeds[value.name] = generator.integers(0, 2, shape).astype(bool)
        elif dtype.kind in "iu":
            feeds[value.name] = generator.integers(0, 4, shape).astype(dtype)
        else:
            feeds[value.name] = generator.standard_normal(shape).astype(dtype)
    return feeds


@pytest.fixture
def ops():
    """The operators of a model's graph, in order."""
    return lambda model: [node.op_type for node in model.graph]
