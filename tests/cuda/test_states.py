"""Models that keep state on a GPU: step by step, through launched, captured and replayed runs."""

import numpy as np
import pytest

from sparsec.runtime import InputError, RunError, load

COUNTER = """(int64[1] at, float[3,5] past) => (y, present) {
    step = Constant <value_float = 1.5> ()
    rows = Gather <axis = 0> (past, at)
    present = Add(past, step)
    y = Relu(rows)
}"""
STEPS = 7  # two memories change places: both are launched, captured and replayed


@pytest.fixture
def counter(compile_for_gpu, text_model, driver):
    compiled = compile_for_gpu(text_model(COUNTER), states={"past": "present"})
    driver.be(compiled.emulated)
    return compiled


def run(model, at: int = 1) -> float:
    return model({"at": np.array([at])})["y"].max()


def test_each_step_reads_what_the_one_before_has_left(counter, driver):
    with load(counter.path) as model:
        assert [t.name for t in model.inputs] == ["at"] and [t.name for t in model.outputs] == ["y"]
        assert [t.name for t in model.states] == ["past"]
        assert [run(model) for _ in range(STEPS)] == [1.5 * step for step in range(STEPS)]
        assert (driver.counters.captures, driver.counters.graph_launches) == (2, STEPS - 1)
        np.testing.assert_array_equal(model.snapshot()["past"], np.full((3, 5), 1.5 * STEPS, np.float32))


def test_reset_and_restore(counter):
    with load(counter.path) as model:
        for _ in range(3):
            run(model)
        middle = model.snapshot()
        assert run(model) == 4.5
        model.reset()
        assert [run(model), run(model)] == [0, 1.5]
        model.restore(middle)
        other = model.context()
        other.restore({"past": middle["past"] + 1})
        assert (run(model), run(other)) == (4.5, 5.5)
        with pytest.raises(InputError, match="one array for each state"):
            model.restore({})


def test_a_run_that_fails_leaves_the_state_as_it_was(counter):
    with load(counter.path) as model:
        for step in range(4):
            with pytest.raises(RunError, match="an index is outside"):
                run(model, at=3)
            assert run(model) == 1.5 * step


def test_a_profile_is_a_run(counter):
    with load(counter.path) as model:
        model.profile({"at": np.array([0])}, repeats=2)
        before = model.snapshot()["past"][0, 0]
        assert before > 0 and run(model) == before
