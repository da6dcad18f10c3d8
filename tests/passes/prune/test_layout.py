"""Patterns as layouts: names, order of columns, and the choice of the best."""

import numpy as np
import pytest

from sparsec.passes import PassError
from sparsec.passes.nm_pattern import NM
from sparsec.passes.prune import Layout, Unstructured, parse_pattern


@pytest.mark.parametrize("text", ["2:4", "1:8x32", "60%", "12.5%x16"])
def test_names_round_trip(text):
    assert str(parse_pattern(text)) == text


@pytest.mark.parametrize("text", ["0%", "100%", "50%x0", "4:2", "half", "%"])
def test_other_names_are_refused(text):
    with pytest.raises(PassError, match="pattern"):
        parse_pattern(text)


def test_groups_come_first_and_no_group_crosses_a_tap():
    layout = Layout.of(NM(2, 4), 3, inputs=6, taps=2)
    assert layout.order.tolist() == [0, 1, 2, 3, 6, 7, 8, 9, 4, 5, 10, 11]
    assert (layout.groups, layout.grouped) == (2, 8)
    columns = np.arange(12)[None] * 10
    np.testing.assert_array_equal(layout.restore(columns[:, layout.order]), columns)


def test_unstructured_is_one_group_as_long_as_the_row():
    layout = Layout.of(Unstructured(0.75, 16), 5, inputs=10, taps=3)
    assert (layout.groups, layout.n, layout.m, layout.block) == (1, 8, 30, 5)


@pytest.mark.parametrize("pattern", [NM(2, 4), NM(1, 3, 4), NM(3, 8, 8), Unstructured(0.5, 4)])
def test_the_best_have_the_highest_sum_over_the_block(pattern):
    score = np.random.default_rng(0).random((10, 17))
    layout = Layout.of(pattern, 10, 17)
    keep = layout.best(score[:, layout.order])
    for index in range(layout.blocks):
        total = score[layout.block_rows(index)].sum(axis=0)
        for start in range(0, layout.grouped, layout.m):
            group = range(start, start + layout.m)
            wanted = sorted(group, key=lambda j: -total[j])[: layout.n]
            assert {j for j in group if keep[index, j]} == set(wanted)
        assert keep[index, layout.grouped :].all()
    assert layout.spread(keep).shape == (10, 17)
