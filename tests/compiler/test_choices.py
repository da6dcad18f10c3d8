"""Sparse or dense: by measurement, by estimate, as told; and what a user reads about it."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec import passes
from sparsec.compiler import choices, request
from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.choices import choose
from sparsec.compiler.errors import CompileError
from sparsec.compiler.ingest import ingest
from sparsec.compiler.request import CompileRequest

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

        def measure(weights, cpu):
            calls.append(len(weights))
            assert len(weights) <= 2
            by_block = {spec: seconds["shared" if spec.pattern.block > 1 else "rows"] for spec in weights}
            return {choices.to_text(spec): pair for spec, pair in by_block.items()}

        monkeypatch.setattr(choices, "_measure", measure)
        return calls

    return use


def test_the_faster_kernel_wins(model, timed):
    timed(shared=(2.0, 1.0), rows=(1.0, 1.5))
    chosen, findings = choose(model, REQUEST, ("v3",))
    assert chosen == {"shared": "sparse", "rows": "dense"}
    assert [(f.node, f.outcome, f.reason) for f in findings] == [
        ("shared", "applied", "measured: sparse 0.50x the time of dense"),
        ("rows", "declined", "measured: sparse 1.50x the time of dense"),
    ]


@pytest.mark.parametrize(("sparse", "kernel"), [(1.0, "sparse"), (1.02, "sparse"), (1.04, "dense")])
def test_near_tie_goes_to_the_smaller_kernel(sparse, kernel, model, timed):
    timed(shared=(1.0, sparse), rows=(1.0, sparse))
    assert choose(model, REQUEST, ("v3",))[0] == {"shared": kernel, "rows": kernel}


def test_measured_once(model, timed):
    calls = timed(shared=(2.0, 1.0), rows=(2.0, 1.0))
    first = choose(model, REQUEST, ("v3",))
    assert choose(model, REQUEST, ("v3",)) == first
    assert calls == [2]
    choose(model, REQUEST, ("v2",))
    assert calls == [2, 2], "another level is another measurement"


def test_the_best_level_that_runs_here_is_measured(model, timed, monkeypatch):
    seen = []
    timed(shared=(2.0, 1.0), rows=(2.0, 1.0))
    measure = choices._measure
    monkeypatch.setattr(request, "features", lambda: set(request.LEVEL_FEATURES["v3"]))
    monkeypatch.setattr(
        choices, "_measure", lambda weights, cpu: seen.append(cpu.name) or measure(weights, cpu)
    )
    choose(model, REQUEST, ("v4", "v3"))
    assert seen == [choices.X86_LEVELS["v3"].name]


def test_estimated_where_nothing_runs_here(model, monkeypatch):
    monkeypatch.setattr(request, "features", lambda: set())
    monkeypatch.setattr(choices, "_measure", lambda *_: pytest.fail("measured all the same"))
    chosen, findings = choose(model, REQUEST, ("v4", "v3"))
    assert chosen == {"shared": "sparse", "rows": "sparse"}
    assert findings[0].reason == "estimated: sparse 0.50x the time of dense"
    assert all(f.reason.startswith("estimated: ") for f in findings)


def test_off(model, monkeypatch):
    monkeypatch.setattr(choices, "_measure", lambda *_: pytest.fail("measured all the same"))
    request = CompileRequest("m.onnx", "m.sparsec", sparsity="off")
    chosen, findings = choose(model, request, ("v3",))
    assert chosen == {"shared": "dense", "rows": "dense"}
    assert {(f.outcome, f.reason) for f in findings} == {("declined", "sparsity is off")}


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
    assert choose(model, request, ("v3",))[0] == {"shared": "sparse", "rows": "sparse"}


def test_unknown_sparsity():
    with pytest.raises(CompileError, match="sparsity must be one of auto, require, off, found 'maybe'"):
        CompileRequest("m.onnx", "m.sparsec", sparsity="maybe")


def replay(model, path):
    return choose(model, CompileRequest("m.onnx", "m.sparsec", choices=str(path)), ("v3",))


@pytest.mark.parametrize("wrap", [lambda given: given, lambda given: {"format": 1, "choices": given}])
def test_replay(wrap, model, tmp_path, monkeypatch):
    """The choices themselves, or a manifest that holds them."""
    monkeypatch.setattr(choices, "_measure", lambda *_: pytest.fail("measured all the same"))
    given = {"shared": "dense", "rows": "sparse"}
    (tmp_path / "c.json").write_text(json.dumps(wrap(given)))
    chosen, findings = replay(model, tmp_path / "c.json")
    assert chosen == given
    assert [(f.node, f.outcome, f.reason) for f in findings] == [
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


def test_real_measurement(model):
    """A fraction of a second for each pair, and numbers that can be compared."""
    chosen, findings = choose(model, REQUEST, ("v4", "v3", "v2"))
    assert set(chosen) == {"shared", "rows"}
    assert all(f.reason.startswith("measured: sparse ") for f in findings)
    again = choose(model, REQUEST, ("v4", "v3", "v2"))
    assert again == (chosen, findings)


def test_nothing_to_choose(tmp_path, text_graph):
    graph = ir.from_proto(text_graph("(float[7] x) => (y) { y = Relu(x) }"))
    assert choose(graph, REQUEST, ("v3",)) == ({}, [])


def test_cpu_name():
    assert choices.cpu_name() not in ("", "unknown")
