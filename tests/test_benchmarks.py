"""The harness: pruning, turns, numbers that agree, rows that replace each other, and the committed pages."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # at the end, where it shadows nothing
    sys.path.append(str(ROOT))

from benchmarks import goals, report, results  # noqa: E402
from benchmarks.accuracy import page, store  # noqa: E402
from benchmarks.prune import VARIANTS, Variant, prune  # noqa: E402
from benchmarks.rows import compared, difference  # noqa: E402
from benchmarks.turns import Child, EngineError, Entrant, by_turns, compete  # noqa: E402


def model(nodes, weights, shape, out) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.fixture
def files(tmp_path):
    """A matrix product as an ONNX file, and its inputs."""
    file, feeds = tmp_path / "m.onnx", tmp_path / "feeds.npz"
    onnx.save(
        model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": normal(64, 48)}, (2, 64), (2, 48)), file
    )
    np.savez(feeds, x=normal(2, 64))
    return file, feeds


# Pruning.


@pytest.mark.parametrize("variant", ["2:4x1", "2:4x4", "2:4x32", "1:4x32"])
def test_the_largest_of_each_group_stay(variant):
    v, w = VARIANTS[variant], normal(49, 1, 34)  # the last block is short, the row has a tail of two
    mask = v.mask(w)
    assert mask[..., 32:].all()
    for first in range(0, 49, v.block):
        block = slice(first, first + v.block)
        for group in range(0, 32, v.m):
            score = np.abs(w[block, 0, group : group + v.m]).sum(0)
            want = np.zeros(v.m, bool)
            want[np.argsort(-score)[: v.n]] = True
            assert (mask[block, 0, group : group + v.m] == want).all()


def test_a_share_of_zeros_anywhere():
    w = normal(40, 9, 50)
    mask = Variant(share=0.9).mask(w)
    assert mask.mean() == pytest.approx(0.1, abs=1e-3)
    assert np.abs(w[mask]).min() >= np.abs(w[~mask]).max()


def test_only_weights_change_and_a_tied_embedding_stays_dense():
    words, w, conv = normal(100, 64), normal(64, 64), normal(16, 32, 3, 3)
    nodes = [
        helper.make_node("Transpose", ["words"], ["head"], perm=[1, 0]),
        helper.make_node("Gather", ["words", "index"], ["picked"]),
        helper.make_node("Add", ["x", "picked"], ["a"]),
        helper.make_node("Gemm", ["a", "w"], ["b"], transB=1),
        helper.make_node("MatMul", ["b", "head"], ["y"]),
        helper.make_node("Conv", ["image", "conv"], ["c"]),
    ]
    made = model(
        nodes,
        {"words": words, "index": np.int64(3), "w": w, "conv": conv, "image": normal(1, 32, 4, 4)},
        (2, 64),
        (2, 100),
    )
    assert prune(made, VARIANTS["2:4x4"]) == 3
    onnx.checker.check_model(made)
    stored = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    assert (stored["words"] == words).all() and "w" not in stored
    used = {node.op_type: stored.get(node.input[1]) for node in made.graph.node}
    assert "Transpose" not in used
    mask = VARIANTS["2:4x4"].mask
    assert (used["Gemm"] == np.where(mask(w[:, None])[:, 0], w, 0)).all()
    assert (used["MatMul"] == np.where(mask(words[:, None])[:, 0], words, 0).T).all()
    taps = conv.reshape(16, 32, 9).swapaxes(1, 2)
    assert (used["Conv"].reshape(16, 32, 9).swapaxes(1, 2) == np.where(mask(taps), taps, 0)).all()


def test_grouped_convolutions_and_small_layers_stay_dense():
    nodes = [
        helper.make_node("Conv", ["x", "depthwise"], ["a"], group=64),
        helper.make_node("Conv", ["a", "small"], ["y"]),
    ]
    weights = {"depthwise": normal(64, 1, 5, 5), "small": normal(8, 64, 1, 1)}
    made = model(nodes, weights, (1, 64, 9, 9), (1, 8, 5, 5))
    assert prune(made, VARIANTS["2:4x1"]) == 0


# Turns.


def test_engines_run_by_turns_and_agree(files):
    file, feeds = files
    entrants = [Entrant("onnxruntime", "onnxruntime", file), Entrant("other", "onnxruntime", file)]
    facts, outputs = compete(entrants, feeds, 1, 0.03)
    with np.load(feeds) as stored:
        x = stored["x"].astype(np.float64)
    want = x @ normal(64, 48)
    for label in ("onnxruntime", "other"):
        assert np.abs(outputs[label][0] - want).max() < 1e-4
        assert facts[label]["calls"] >= 3 and 0 < facts[label]["p50_ms"] <= facts[label]["p90_ms"]
        assert facts[label]["cold_seconds"] > 0 and facts[label]["peak_bytes"] > 1e6
    assert compared(facts, outputs)["other"]["error"] == 0


def test_an_engine_is_stopped_while_it_is_not_at_its_turn(files, tmp_path):
    child = Child(Entrant("onnxruntime", "onnxruntime", files[0]), 1, files[1], tmp_path)

    def state():
        return Path(f"/proc/{child._process.pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    try:
        child.turn(0.01)
        for _ in range(1000):
            if state() == "T":
                break
        assert state() == "T"
        assert len(child.turn(0.01)) >= 1
    finally:
        child.close()


def test_an_engine_that_fails_costs_only_itself(files, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    good, bad = Entrant("onnxruntime", "onnxruntime", files[0]), Entrant("bad", "onnxruntime", broken)
    facts, outputs = compete([bad, good], files[1], 1, 0.02)
    assert "INVALID_PROTOBUF" in facts["bad"]["failed"] and list(outputs) == ["onnxruntime"]
    with pytest.raises(EngineError, match=r"9999 threads need 9999 cores, this process may use \d+"):
        compete([good], files[1], 9999, 0.02)


def test_every_engine_gets_the_same_rounds():
    class Fake:
        def __init__(self):
            self.turns = 0

        def turn(self, seconds):
            self.turns += 1
            return [0.002, 0.001, 0.003]

    running = {"a": Fake(), "b": Fake()}
    found = by_turns(running, 0.0)
    assert running["a"].turns == running["b"].turns == 3
    assert found["a"].to_json()["p50_ms"] == pytest.approx(2.0) and found["a"].to_json()["calls"] == 9


# Numbers.


def test_a_wrong_result_is_called_wrong():
    y = normal(4, 5)
    outputs = {"onnxruntime": [y], "sparsec": [y * 1.01], "openvino": [y * 1.01], "torch": [y[:2]]}
    facts = {name: {"precision": "bf16" if name == "openvino" else "f32", "p50_ms": 1.0} for name in outputs}
    facts = compared(facts, outputs)
    assert facts["sparsec"]["wrong"] and facts["torch"]["wrong"]
    assert "wrong" not in facts["openvino"] and "wrong" not in facts["onnxruntime"]
    assert goals.ratio({"engines": facts}) is None, "a wrong result has no speed"


def test_int8_is_measured_by_the_floats():
    y = normal(4, 5)
    outputs = {"onnxruntime": [y * 1.2], "sparsec": [y * 0.75], "openvino": [y * 0.6]}
    facts = compared({name: {"precision": "int8"} for name in outputs}, outputs, floats=[y])
    assert [found["error"] for found in facts.values()] == [0.2, 0.25, 0.4]
    assert [found.get("wrong", False) for found in facts.values()] == [False, False, True]


@pytest.mark.parametrize("change", [lambda y: 2 * y, lambda y: -y, lambda y: 0 * y, lambda y: y * np.nan])
def test_the_difference_sees(change):
    assert difference([change(normal(3, 3))], [normal(3, 3)]) >= 0.999


# Results and pages.


def row(ms: float, **changes) -> dict:
    engines = {"sparsec": {"p50_ms": ms, "p90_ms": ms}, "onnxruntime": {"p50_ms": 10.0, "p90_ms": 10.0}}
    made = {"model": "bert", "variant": "2:4x32", "batch": 1, "threads": 1, "target": "native"}
    return made | {"engines": engines} | changes


def test_a_row_measured_again_replaces_the_old_one(tmp_path):
    first, second = ({"date": d, "machine": "m", "versions": {}, "command": "c"} for d in ("1", "2"))
    results.add("models", row(6.0), first, tmp_path)
    results.add("models", row(5.0, threads=2), first, tmp_path)
    results.add("models", row(7.0), second, tmp_path)
    found = results.load(tmp_path)
    assert [(r["threads"], r["engines"]["sparsec"]["p50_ms"], r["run"]) for r in found["models"]] == [
        (1, 7.0, "2"),
        (2, 5.0, "1"),
    ]
    results.add("models", row(4.0, threads=2), second, tmp_path)
    assert list(results.load(tmp_path)["runs"]) == ["2"], "a run without a row is forgotten"


def test_goals_are_ratios_in_one_row():
    assert [(g.ratio, ok) for g, _, ok in goals.met(row(5.9))] == [(0.6, True)]
    assert [(g.ratio, ok) for g, _, ok in goals.met(row(6.1))] == [(0.6, False)]
    (strict,) = goals.asked("gpt2_decode", "dense")
    assert strict.ratio == 0.8
    assert {g.against for g in goals.asked("minilm", "2:4x1")} == {"peer", "deepsparse"}


def test_a_precision_has_rows_and_goals_of_its_own(tmp_path):
    engines = {"sparsec_bf16": 6.1, "onnxruntime": 20.0, "openvino": 10.0}
    engines = {name: {"p50_ms": ms, "p90_ms": ms} for name, ms in engines.items()}
    lower = row(6.0, precision="bf16", engines=engines)
    assert [(g.ratio, value, ok) for g, value, ok in goals.met(lower)] == [(0.62, 0.61, True)]
    run = {"date": "1", "machine": "m", "versions": {}, "command": "c"}
    for each in (row(6.0), lower, lower):
        results.add("models", each, run, tmp_path)
    found = results.load(tmp_path)
    assert [goals.precision_of(r) for r in found["models"]] == ["fp32", "bf16"]
    assert "## native, batch 1, 1 thread, bf16" in report.models(found)


def test_pictures_are_drawn_from_rows_and_are_the_same_every_time(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks import plots

    kernel = {"name": "gemm 128x8x8 2:4x4", "family": "gemm", "variant": "2:4x4", "target": "native"}
    kernel |= {"flops": 1e9, "engines": row(5.0)["engines"]}
    found = {"models": [row(6.0), row(9.0, variant="dense")], "kernels": [kernel], "peaks": [{"flops": 1e11}]}
    texts = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.write(found, tmp_path / name)
        texts.append([(tmp_path / name / picture).read_text() for picture in ("models.svg", "kernels.svg")])
    assert texts[0] == texts[1]
    assert "bert" in texts[0][0] and "2:4x32" in texts[0][0] and "90%" not in texts[0][0]
    assert "2:4x4" in texts[0][1]


def test_the_pages_are_made_from_the_results():
    found = json.loads((results.FOLDER / "results.json").read_text())
    for name, make in report.PAGES.items():
        assert (results.FOLDER / name).read_text() == make(found), "run python -m benchmarks report"


def test_the_page_of_accuracies_is_made_from_the_results():
    assert (results.FOLDER / "accuracy.md").read_text() == page.page(store.load()), (
        "run python -m benchmarks report"
    )


def test_an_accuracy_measured_again_replaces_the_old_one(tmp_path):
    file, key = tmp_path / "a.json", {"network": "mlp", "pattern": "2:4", "method": "search"}
    for pruned, pattern in ((0.5, "2:4"), (0.9, "1:4"), (0.97, "2:4")):
        store.add("digits", key | {"pattern": pattern, "dense": 0.98, "pruned": pruned}, file)
    assert [(r["pattern"], r["pruned"]) for r in store.load(file)["digits"]] == [("1:4", 0.9), ("2:4", 0.97)]
    assert "| search | 97.0 | 90.0 |" in page.page(store.load(file))


def test_what_was_trained_is_told():
    row = {"seconds": 1200.0, "steps": 3000, "start": 0.7, "ms": 9.0, "dense_ms": 13.5, "speed": 1.5}
    found = {"trained": [row | {"pattern": p, "cosine": c} for p, c in (("2:4x32", 0.94), ("2:4", 0.97))]}
    lines = page.page(found).splitlines()
    first = lines.index("| 2:4 | 20 | 3000 | 0.700 | 0.970 | 9.00 | 13.50 | 1.50x |")
    assert lines[first + 1].startswith("| 2:4x32 | 20 | 3000 | 0.700 | 0.940 |")


def test_the_frontier_is_told_and_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    row = {"patterns": "2:4 3:4x32", "method": "sparsegpt", "layers": {"2:4": 20, "3:4x32": 4}}
    rows = [row | {"latency": a, "speed": 1 / a, "cosine": c} for a, c in ((0.8, 0.97), (0.6, 0.91))]
    found = {"frontier": rows}
    assert "| 2:4 3:4x32 | 0.8 | 1.25x | 0.970 | 20 2:4, 4 3:4x32 |" in page.page(found)
    page.write(found, tmp_path)
    assert "mean cosine to its embedding" in (tmp_path / "frontier.svg").read_text()
