"""The static memory plan: buffers that live at the same time never share a byte, and little is wasted."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.compiler.memory import Lifetime, aligned, assign_offsets
from sparsec.compiler.plan import ALIGN


@st.composite
def lifetimes(draw):
    first = draw(st.integers(0, 12))
    return Lifetime(draw(st.integers(0, 1000)), first, first + draw(st.integers(0, 12)))


def live_sums(buffers):
    """Aligned bytes that are alive at each step, counted one step at a time."""
    end = max((buffer.last for buffer in buffers), default=-1) + 1
    return [sum(aligned(b.size) for b in buffers if b.first <= step <= b.last) for step in range(end)]


@settings(deadline=None)  # other work on the machine is no failure
@given(st.lists(lifetimes(), max_size=24))
def test_no_overlap_in_space_and_time(buffers):
    offsets, total = assign_offsets(buffers)
    assert len(offsets) == len(buffers)
    for offset, buffer in zip(offsets, buffers, strict=True):
        assert offset >= 0 and offset % ALIGN == 0
        assert offset + buffer.size <= total
    owner = {}
    for index, buffer in enumerate(buffers):
        for step in range(buffer.first, buffer.last + 1):
            for line in range(offsets[index] // ALIGN, (offsets[index] + aligned(buffer.size)) // ALIGN):
                assert owner.setdefault((step, line), index) == index


@settings(deadline=None)
@given(st.lists(lifetimes(), max_size=24))
def test_between_the_live_sum_and_no_sharing(buffers):
    total = assign_offsets(buffers)[1]
    assert total % ALIGN == 0
    assert max(live_sums(buffers), default=0) <= total <= sum(aligned(b.size) for b in buffers)


@settings(deadline=None)
@given(st.sets(st.integers(1, 99), max_size=9), st.sets(st.integers(1, 99), min_size=1, max_size=9))
def test_chain_takes_its_largest_neighbours(growing, shrinking):
    """Networks widen, then narrow.  In a chain the next step alone reads a buffer: two are alive at once."""
    sizes = [ALIGN * lines for lines in [*sorted(growing), *sorted(shrinking, reverse=True)]]
    total = assign_offsets([Lifetime(size, step, step + 1) for step, size in enumerate(sizes)])[1]
    assert total == max(map(sum, zip(sizes, sizes[1:], strict=False)), default=sizes[0])


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(2, 30))
def test_chain_of_equals_takes_two(size, length):
    assert assign_offsets([Lifetime(size, i, i + 1) for i in range(length)])[1] == 2 * aligned(size)


@settings(deadline=None)
@given(st.lists(lifetimes(), max_size=24))
def test_the_same_every_time(buffers):
    assert assign_offsets(buffers) == assign_offsets([Lifetime(b.size, b.first, b.last) for b in buffers])


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128), (4096, 4096)])
def test_aligned(size, expected):
    assert aligned(size) == expected


def test_nothing_to_place():
    assert assign_offsets([]) == ([], 0)


def test_residual_block_in_place_of_what_died():
    """x lives over the block while a -> b -> c pass by: three at once are never needed twice."""
    x, a, b, c = Lifetime(640, 0, 3), Lifetime(640, 1, 2), Lifetime(640, 2, 3), Lifetime(640, 3, 4)
    offsets, total = assign_offsets([x, a, b, c])
    assert total == 3 * 640
    assert offsets[3] == offsets[1]
