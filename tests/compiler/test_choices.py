"""Sparse or dense: by measurement, by estimate, as told; and what a user reads about it."""

import dataclasses
import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec import passes
from sparsec.compiler import choices, request
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.choices import Choices, choose
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.request import CompileRequest
from sparsec.compiler.tuning import measure
from sparsec.compiler.tuning.database import Database
from sparsec.schedules.layout import DENSE

REQUEST = CompileRequest("m.onnx", "m.sparsec")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


def pruned(rows, columns, block, seed=0):
    """[rows, columns] with two of four along the rows, positions shared by ``block`` columns."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((rows, columns)).astype(np.float32)
    for column in range(0, columns, block):
        for row in range(0, rows, 4):
            weight[row + rng.permutation(4)[:2], column : column + block] = 0
    return weight


@pytest.fixture
def model(tmp_path, text_graph):
    """Three layers: ``shared`` and ``rows`` are 2:4, ``full`` is dense."""
    proto = text_graph("(float[7,64] x) => (y) { a = MatMul(x, w1) b = MatMul(a, w2) y = MatMul(b, w3) }")
    for node, name in zip(proto.graph.node, ("shared", "rows", "full"), strict=True):
        node.name = name
    full = np.random.default_rng(3).standard_normal((64, 64)).astype(np.float32)
    weights = {"w1": pruned(64, 64, 32), "w2": pruned(64, 64, 1, seed=1), "w3": full}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = ingest(path)
    passes.run_pipeline(graph, ())
    channels_last(graph)
    assert [node.op_type for node in graph.graph] == ["NMMatMul", "NMMatMul", "MatMul"]
    return graph


@pytest.fixture
def timed(monkeypatch):
    """``timed(shared=(dense, sparse), rows=...)`` replaces the stop-watch; returns the measurements made."""

    def use(**seconds):
        calls = []

        def stop_watch(weights, candidates, level):
            calls.append(level)
            assert len(weights) <= 2
            assert all(list(map(str, tried)) == ["dense", "sparse"] for tried in candidates.values())
            by_block = {spec: seconds["shared" if spec.pattern.block > 1 else "rows"] for spec in weights}
            return {
                choices.to_text(s): dict(zip(("dense", "sparse"), t, strict=True))
                for s, t in by_block.items()
            }

        monkeypatch.setattr(measure, "measure", stop_watch)
        return calls

    return use


def test_the_faster_kernel_wins(model, timed):
    timed(shared=(2.0, 1.0), rows=(1.0, 1.5))
    found = choose(model, REQUEST, ("v3",))
    assert found.kernels == {"shared": "sparse", "rows": "dense"}
    assert [(f.node, f.outcome, f.reason) for f in found.findings] == [
        ("shared", "applied", "measured: sparse 0.50x the time of dense"),
        (
            "rows",
            "declined",
            "measured: sparse 1.50x the time of dense; "
            "a pattern shared by 16 output channels or more runs at the dense kernel's rate",
        ),
    ]


@pytest.mark.parametrize(("sparse", "kernel"), [(1.0, "sparse"), (1.02, "sparse"), (1.04, "dense")])
def test_near_tie_goes_to_the_smaller_kernel(sparse, kernel, model, timed):
    timed(shared=(1.0, sparse), rows=(1.0, sparse))
    assert choose(model, REQUEST, ("v3",)).kernels == {"shared": kernel, "rows": kernel}


def test_measured_once(model, timed):
    calls = timed(shared=(2.0, 1.0), rows=(2.0, 1.0))
    first = choose(model, REQUEST, ("v3",))
    assert choose(model, REQUEST, ("v3",)) == first
    assert calls == ["v3"]
    choose(model, REQUEST, ("v2",))
    assert calls == ["v3", "v2"], "another level is another measurement"


def test_the_best_level_that_runs_here_is_measured(model, timed, monkeypatch):
    calls = timed(shared=(2.0, 1.0), rows=(2.0, 1.0))
    monkeypatch.setattr(request.cpu, "features", lambda: frozenset(request.cpu.V3))
    choose(model, REQUEST, ("v4", "v3"))
    assert calls == ["v3"]


def test_estimated_where_nothing_runs_here(model, monkeypatch):
    monkeypatch.setattr(request.cpu, "features", lambda: frozenset())
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured all the same"))
    found = choose(model, REQUEST, ("v4", "v3"))
    assert found.kernels == {"shared": "sparse", "rows": "sparse"}
    assert found.findings[0].reason == "estimated: sparse 0.50x the time of dense"
    assert all(f.reason.startswith("estimated: ") for f in found.findings)


@pytest.mark.parametrize(("kept", "m", "kernel"), [(2, 4, "sparse"), (1, 8, "dense")])
def test_what_int8_kernels_skip_of_each_channel(kept, m, kernel, tmp_path, text_graph, monkeypatch):
    """A word of four inputs comes from 16 neighbours, or there is none."""
    monkeypatch.setattr(request.cpu, "features", lambda: frozenset())
    weight = np.random.default_rng(1).integers(1, 100, (64, 64)).astype(np.int8)
    order = np.random.default_rng(2).random((64, 64 // m, m)).argsort(axis=-1)
    weight *= (order < kept).reshape(64, 64).T  # [k, n]
    proto = text_graph("(uint8[7,64] x) => (int32[7,64] y) { y = MatMulInteger(x, w) }")
    proto.graph.node[0].name = "layer"
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "bytes.onnx"
    path.write_bytes(proto.SerializeToString())
    graph = ingest(path)
    passes.run_pipeline(graph, ())
    found = choose(graph, REQUEST, ("v4vnni",))
    assert found.kernels == {"layer": kernel}
    skipped = (
        "int8 kernels skip only what 16 channels share, and on x86 what patterns leave out that keep 4, 8 or"
    )
    assert found.findings[0].reason.startswith(skipped) == (kernel == "dense")


def test_off(model, monkeypatch):
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured all the same"))
    request = CompileRequest("m.onnx", "m.sparsec", sparsity="off")
    found = choose(model, request, ("v3",))
    assert found.kernels == {"shared": "dense", "rows": "dense"}
    assert {(f.outcome, f.reason) for f in found.findings} == {("declined", "sparsity is off")}


def test_require(model, timed):
    request = CompileRequest("m.onnx", "m.sparsec", sparsity="require")
    timed(shared=(2.0, 1.0), rows=(1.0, 1.5))
    with pytest.raises(CompileError) as caught:
        choose(model, request, ("v3",))
    assert str(caught.value) == (
        "--sparsity require: 1 layers would be slower sparse: rows (2:4, measured: sparse 1.50x the time of "
        "dense); prune them to a shared pattern such as 2:4x32, or use --sparsity auto"
    )


def test_require_that_holds(model, timed):
    request = CompileRequest("m.onnx", "m.sparsec", sparsity="require")
    timed(shared=(2.0, 1.0), rows=(1.0, 1.0))
    assert choose(model, request, ("v3",)).kernels == {"shared": "sparse", "rows": "sparse"}


def test_unknown_sparsity():
    with pytest.raises(CompileError, match="sparsity must be one of auto, require, off, found 'maybe'"):
        CompileRequest("m.onnx", "m.sparsec", sparsity="maybe")


def replay(model, path):
    return choose(model, CompileRequest("m.onnx", "m.sparsec", choices=str(path)), ("v3",))


@pytest.mark.parametrize("wrap", [lambda given: given, lambda given: {"format": 1, "choices": given}])
def test_replay(wrap, model, tmp_path, monkeypatch):
    """The choices themselves, or a manifest that holds them."""
    monkeypatch.setattr(measure, "measure", lambda *_: pytest.fail("measured all the same"))
    given = {"shared": "dense", "rows": "sparse"}
    (tmp_path / "c.json").write_text(json.dumps(wrap(given)))
    found = replay(model, tmp_path / "c.json")
    assert found.kernels == given
    assert [(f.node, f.outcome, f.reason) for f in found.findings] == [
        ("shared", "declined", "as given by --choices"),
        ("rows", "applied", "as given by --choices"),
    ]


@pytest.mark.parametrize("content", [None, b"", b"{", b"\xff\xfe"])
def test_choices_that_cannot_be_read(content, model, tmp_path):
    path = tmp_path / "c.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CompileError, match="choices '.*c.json' cannot be read as JSON: .") as caught:
        replay(model, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"shared": "sparse"},
        {"shared": "sparse", "rows": "dense", "full": "dense"},
        {"shared": "sparse", "rows": "fast"},
        {"shared": "sparse", "rows": 1},
        {"shared": "sparse", "rows": ["sparse"]},
        {"choices": None},
        ["shared", "rows"],
        3,
        None,
    ],
    ids=str,
)
def test_choices_that_do_not_fit(given, model, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(given))
    path = tmp_path / "c.json"
    with pytest.raises(CompileError) as caught:
        replay(model, path)
    assert str(caught.value) == (
        f"choices '{path}' must map each of the 2 layers with a pattern to 'sparse' or 'dense'; "
        "take the 'choices' of an artifact of the same model"
    )


@pytest.mark.parametrize(
    "tiles", [3, {"v3": 2}, {"v3": {"gemm": 0}}, {"v3": {"gemm": "2"}}, {"v3": {"gemm": True}}]
)
def test_tiles_that_do_not_fit(tiles, model, tmp_path):
    given = {"choices": {"shared": "dense", "rows": "sparse"}, "tiles": tiles}
    (tmp_path / "c.json").write_text(json.dumps(given))
    with pytest.raises(CompileError, match="'tiles' must map CPU levels to kernels to panels; take those"):
        replay(model, tmp_path / "c.json")


def test_tuned_times_decide(model, timed):
    """The best tile of each kernel, out of whatever candidates the database has."""
    calls = timed()
    layers = [choices.products(node)[0][0] for node in model.graph if "m" in node.attributes]
    times = {"dense": 2.0, "dense/1": 1.0, "sparse": 1.5, "sparse/2": 1.4}
    Database().add(measure.context("v3"), {choices.to_text(spec): times for spec in layers})
    found = choose(model, REQUEST, ("v3",))
    assert found.kernels == {"shared": "dense", "rows": "dense"}
    assert found.findings[0].reason == "measured: sparse 1.40x the time of dense"
    assert found.layers == {
        choices.to_text(dataclasses.replace(s, pattern=DENSE)): choices.to_text(s) for s in layers
    }
    assert calls == []


def test_real_measurement(model):
    """A fraction of a second for each pair, and numbers that can be compared."""
    found = choose(model, REQUEST, ("v4", "v3", "v2"))
    assert set(found.kernels) == {"shared", "rows"}
    assert all(f.reason.startswith("measured: sparse ") for f in found.findings)
    again = choose(model, REQUEST, ("v4", "v3", "v2"))
    assert again == found


def test_nothing_to_choose(tmp_path, text_graph):
    graph = ir.from_proto(text_graph("(float[7] x) => (y) { y = Relu(x) }"))
    assert choose(graph, REQUEST, ("v3",)) == Choices()


def test_cpu_name():
    assert measure.cpu_name() not in ("", "unknown")
