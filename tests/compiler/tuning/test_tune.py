"""Tuning: what is measured, what a compilation takes from it, and that its bytes can be made again."""

import json

import numpy as np
import onnx
import pytest

from sparsec.compiler.pipeline import compile_model
from sparsec.compiler.request import CompileRequest, native_level
from sparsec.compiler.tuning import tune as tune_module
from sparsec.compiler.tuning.candidates import Candidate, with_tiles
from sparsec.compiler.tuning.database import Database
from sparsec.compiler.tuning.measure import context
from sparsec.compiler.tuning.tune import tune
from sparsec.schedules.contraction import Gemm
from sparsec.schedules.contraction_spec import to_text
from sparsec.schedules.layout import DENSE, Pattern
from sparsec.schedules.target import X86_LEVELS

RNG = np.random.default_rng(0)
V4 = X86_LEVELS["v4"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def network(tmp_path, text_graph):
    """A 1:2 layer, two equal dense ones, and a convolution."""
    proto = text_graph(
        "(float[1,64,6,6] x) => (y) { c = Conv(x, w0) s = Constant<value_ints=[36,64]>() r = Reshape(c, s) "
        "a = MatMul(r, w1) b = MatMul(a, w2) y = MatMul(b, w2) }"
    )
    sparse = RNG.standard_normal((64, 64)).astype(np.float32)
    sparse.reshape(32, 2, 64)[:, 0] = 0
    weights = {
        "w0": RNG.standard_normal((64, 64, 1, 1)).astype(np.float32),
        "w1": sparse,
        "w2": RNG.standard_normal((64, 64)).astype(np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def tuned(network, **options):
    return tune(
        CompileRequest(str(network), "", target="native"), Database(), log=lambda line: None, **options
    )


def test_candidates():
    assert list(map(str, with_tiles(Gemm((128,), 64, 96), V4)))[0] == "dense"
    both = list(map(str, with_tiles(Gemm((128,), 64, 96, Pattern(2, 4, 32)), V4)))
    assert both[0] == "dense" and "sparse" in both and len(set(both)) == len(both)
    for text in both:
        assert str(Candidate.parse(text)) == text
    layer = Gemm((128,), 64, 96, Pattern(2, 4, 32))
    assert Candidate("dense", 2).spec(layer).pattern == DENSE
    assert Candidate("sparse").spec(layer) == layer


def test_every_structure_is_measured_once(network):
    records = tuned(network)
    assert [(r["op"], r["pattern"], len(r["layers"])) for r in records] == [
        ("Conv", "dense", 1),
        ("Gemm", "1:2x64", 1),
        ("Gemm", "dense", 2),
    ]
    assert all(r["new"] and r["level"] == native_level() for r in records)
    assert all(0 < seconds < 1 for r in records for seconds in r["times"].values())
    again = tuned(network)
    assert [r["times"] for r in again] == [r["times"] for r in records]
    assert not any(r["new"] for r in again)
    assert all(r["new"] for r in tuned(network, again=True))


def test_what_was_measured_before_an_interruption_stays(network, monkeypatch):
    measure, calls = tune_module.measure, []

    def interrupted(weights, candidates, level):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(weights, candidates, level)

    monkeypatch.setattr(tune_module, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tuned(network)
    assert len(Database().read(context(native_level()))) == 1


def test_a_compilation_takes_the_best_tiles_and_can_be_repeated(network, tmp_path):
    """With times that are made up: the first layer of the network is fastest in tiles of one panel."""
    level = native_level()
    for spec in [found for found in tune_module._structures(read(network)) if found.pattern == DENSE]:
        Database().add(context(level), {to_text(spec): {"dense": 2.0, "dense/1": 1.0}})
    first = compile_model(CompileRequest(str(network), str(tmp_path / "a"), target="native"))
    assert set(first["tiles"]) == {level}
    assert len(first["tiles"][level]) == 2 and set(first["tiles"][level].values()) == {1}
    plain = compile_model(
        CompileRequest(
            str(network), str(tmp_path / "b"), target="native", choices=written(tmp_path, first, {})
        )
    )
    assert plain["tiles"] == {}
    assert (tmp_path / "a").read_bytes() != (tmp_path / "b").read_bytes()
    again = compile_model(
        CompileRequest(
            str(network),
            str(tmp_path / "c"),
            target="native",
            choices=written(tmp_path, first, first["tiles"]),
        )
    )
    assert again["tiles"] == first["tiles"]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def read(network):
    from sparsec import passes
    from sparsec.compiler.channels_last import channels_last
    from sparsec.compiler.ingest import ingest

    model = ingest(network)
    passes.run_pipeline(model, ())
    channels_last(model)
    return model


def written(folder, report, tiles):
    path = folder / "choices.json"
    path.write_text(json.dumps({"choices": report["choices"], "tiles": tiles}))
    return str(path)


def test_levels_without_a_permute_are_tuned_as_they_are_packed(text_graph, tmp_path, monkeypatch):
    """So a compilation finds every time that it asks for."""
    proto = text_graph("(float[5,64] x) => (y) { y = MatMul(x, w) }")
    weight = RNG.standard_normal((64, 32)).astype(np.float32)
    weight.reshape(32, 2, 32)[:, 0, ::2] = weight.reshape(32, 2, 32)[:, 1, 1::2] = 0
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    tune(CompileRequest(str(path), "", target="x86:v2"), Database(), log=lambda line: None)
    (structure,) = Database().read(context("v2"))
    assert '"permute": false' in structure
    monkeypatch.setattr("sparsec.compiler.tuning.measure.measure", None)
    report = compile_model(CompileRequest(str(path), str(tmp_path / "m.sparsec"), target="x86:v2"))
    assert list(report["choices"]) and report["receipt"]["levels"] == ["v2"]
