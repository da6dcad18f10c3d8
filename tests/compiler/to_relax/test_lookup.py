"""Gather and its relatives: indices from the end, and indices that are outside."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from sparsec.compiler.errors import CompileError
from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest

RNG = np.random.default_rng(29)


def table(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


INDICES = {
    "scalar": np.array(3),
    "one": np.array([2]),
    "list": np.array([0, 6, 3, 3]),
    "from the end": np.array([-1, -7, 0]),
    "matrix": np.array([[0, 1], [6, -1], [2, 2]]),
}


@pytest.mark.parametrize(
    "constants", [(), ("i",), ("t",)], ids=["dynamic", "constant index", "constant table"]
)
@pytest.mark.parametrize("dtype", ["int32", "int64"])
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("case", INDICES)
def test_gather(case, axis, dtype, constants, single_op, same_as_ort):
    feeds = {"t": table(7, 7, 7), "i": INDICES[case].astype(dtype)}
    model = single_op("Gather", feeds, constants=constants, axis=axis)
    same_as_ort(model, {k: v for k, v in feeds.items() if k not in constants}, relative=0, absolute=0)


@pytest.mark.parametrize("dtype", ["float64", "int64", "uint8", "bool"])
def test_gather_of_other_types(dtype, single_op, same_as_ort):
    feeds = {"t": RNG.integers(0, 2, (7, 5)).astype(dtype), "i": INDICES["matrix"]}
    same_as_ort(single_op("Gather", feeds), feeds)


def test_embedding_with_what_follows(text_graph, same_as_ort):
    model = text_graph(
        """(int64[2,5] ids) => (y) {
            e = Gather(words, ids)  p = Gather(places, where)  a = Add(e, p)  y = Relu(a) }"""
    )
    constants = {"words": table(33, 17), "places": table(9, 17), "where": np.arange(5)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    same_as_ort(onnx.shape_inference.infer_shapes(model), {"ids": RNG.integers(0, 33, (2, 5))})


@pytest.mark.parametrize("index", [7, -8, 2**40])
def test_constant_index_outside(index, single_op, run_graph):
    feeds = {"t": table(7, 5), "i": np.array([0, index])}
    with pytest.raises(CompileError, match=r"Gather 'node': a constant index is outside \[-7, 7\)$"):
        run_graph(single_op("Gather", feeds, constants=("i",)), {"t": feeds["t"]})


OUTSIDE = {
    "Gather": np.array([[6, -7]]),
    "GatherElements": np.array([[6, -7, 0]]),
    "GatherND": np.array([[6, 2]]),
    "ScatterElements": np.array([[6, -7, 0]]),
    "ScatterND": np.array([[6], [-7]]),
    "RoiAlign": np.array([6, 0]),  # which image of the batch
}


@pytest.mark.parametrize("op", OUTSIDE)
def test_index_outside_at_run_time(op, tmp_path, single_op):
    """One line, no crash; and the model works on with the next input.

    A process of its own: a kernel that does not look writes beside its table.
    """
    feeds = {"t": table(7, 3), "i": OUTSIDE[op]}
    if op == "RoiAlign":
        feeds = {"t": table(7, 1, 5, 5), "boxes": np.array([[0, 0, 3, 3]] * 2, np.float32), "i": OUTSIDE[op]}
    if op.startswith("Scatter"):
        feeds["u"] = table(1, 3) if op == "ScatterElements" else table(2, 3)
    source, out = tmp_path / "m.onnx", tmp_path / "m.sparsec"
    source.write_bytes(single_op(op, feeds).SerializeToString())
    compile_model(CompileRequest(str(source), str(out), target="native", verify=False))
    np.savez(tmp_path / "feeds.npz", **feeds)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    errors = done.stdout.splitlines()
    assert len(errors) == 6
    for error in errors:
        assert f"{op} 'node': an index is outside [" in error


ASK = """
import sys
from pathlib import Path
import numpy as np
from sparsec.runtime import RunError, load
folder = Path(sys.argv[1])
with load(folder / "m.sparsec") as model, np.load(folder / "feeds.npz") as data:
    feeds = dict(data)
    first = model(feeds)["y"]
    for bad in (7, -8, 2**31, -(2**31) - 1, 2**62, -(2**63)):
        index = feeds["i"].copy()
        index.flat[0] = bad
        try:
            model({**feeds, "i": index})
        except RunError as error:
            print(error)
    np.testing.assert_array_equal(model(feeds)["y"], first)
"""


@pytest.mark.parametrize("axis", [0, 1])
def test_gather_elements(axis, single_op, same_as_ort):
    feeds = {"t": table(7, 7), "i": RNG.integers(-7, 7, (3, 5))}
    same_as_ort(single_op("GatherElements", feeds, axis=axis), feeds, relative=0, absolute=0)


@pytest.mark.parametrize(
    ("shape", "index", "batch"),
    [((7, 5, 3), (4, 2), 0), ((7, 5, 3), (4, 3), 0), ((7, 5, 3), (2, 4, 1), 0), ((4, 5, 3), (4, 6, 1), 1)],
    ids=str,
)
def test_gather_nd(shape, index, batch, single_op, same_as_ort):
    feeds = {"t": table(*shape), "i": RNG.integers(-3, 3, index)}
    same_as_ort(single_op("GatherND", feeds, batch_dims=batch), feeds, relative=0, absolute=0)


@pytest.mark.parametrize("reduction", ["none", "add", "mul", "max", "min"])
@pytest.mark.parametrize("op", ["ScatterElements", "ScatterND"])
def test_scatter(op, reduction, single_op, same_as_ort):
    index = np.array([[0, -1, 2], [5, 3, 6]]) if op == "ScatterElements" else np.array([[6], [-7]])
    updates = table(2, 3) if op == "ScatterElements" else table(2, 5)
    feeds = {"t": table(7, 5), "i": index, "u": updates}
    same_as_ort(single_op(op, feeds, reduction=reduction), feeds)
