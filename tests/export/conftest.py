"""One small network compiled for every machine, and what is made of it; each thing is made once."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from sparsec.compiler import export
from sparsec.compiler.export.source import open_source
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[1,7,9,3] x, int64[5] i) => (y, n) {
    t = Transpose <perm = [0, 3, 1, 2]> (x)
    c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (t, k)
    r = Relu(c)
    p = GlobalAveragePool(r)
    f = Flatten(p)
    e = MatMul(f, w)
    y = Softmax(e)
    n = Gather(table, i)
}"""


@pytest.fixture(scope="session")
def network(tmp_path_factory) -> Path:
    model = onnx.parser.parse_model(GRAPH)
    rng = np.random.default_rng(2)
    arrays = {
        "k": rng.standard_normal((17, 3, 3, 3)).astype(np.float32),
        "w": rng.standard_normal((17, 15)).astype(np.float32),
        "table": np.arange(31, dtype=np.int64),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in arrays.items())
    path = tmp_path_factory.mktemp("network") / "Tiny Net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture(scope="session")
def artifact(network, tmp_path_factory):
    """``artifact(target)`` -> the exportable artifact for it."""
    made = {}

    def compiled(target: str = "x86:v2") -> Path:
        if target not in made:
            made[target] = tmp_path_factory.mktemp("artifact") / "Tiny Net.sparsec"
            compile_model(CompileRequest(str(network), str(made[target]), target=target, exportable=True))
        return made[target]

    return compiled


@pytest.fixture(scope="session")
def exported(artifact, tmp_path_factory):
    """``exported(form, target)`` -> the folder; not to be changed."""
    made = {}

    def folder(form: str, target: str = "x86:v2") -> Path:
        if (form, target) not in made:
            made[form, target] = tmp_path_factory.mktemp("exported") / form
            export.export(open_source(artifact(target), None, None, None), form, made[form, target])
        return made[form, target]

    return folder


@pytest.fixture(scope="session")
def feeds() -> dict[str, np.ndarray]:
    x = np.random.default_rng(8).standard_normal((1, 7, 9, 3)).astype(np.float32)
    return {"x": x, "i": np.array([0, 30, 7, 7, 15])}
