"""Memory of large results: used again when nobody can see it, never before."""

import gc

import numpy as np
import pytest

from sparsec.runtime.arrays import Recycler, address
from sparsec.runtime.manifest import TensorInfo

LARGE = TensorInfo("large", "float32", (512, 1024), (512, 1024))
SMALL = TensorInfo("small", "int64", (3,), (3,))


@pytest.fixture
def recycler():
    return Recycler((LARGE, SMALL))


def test_shapes_dtypes_alignment(recycler):
    results = recycler.take()
    assert list(results) == ["large", "small"]
    for info in (LARGE, SMALL):
        array = results[info.name]
        assert array.shape == info.shape and array.dtype == info.dtype
        assert array.flags.writeable and array.flags.c_contiguous and address(array) % 64 == 0


def test_the_memory_is_used_again(recycler):
    first = recycler.take()["large"]
    place = address(first)
    del first
    gc.collect()
    assert address(recycler.take()["large"]) == place


@pytest.mark.parametrize(
    "hold",
    [
        lambda a: a,
        lambda a: a[3:, ::2],
        lambda a: a.reshape(-1)[7],
        lambda a: a.T[1:2],
        lambda a: a.view(np.int32)[0],
        lambda a: memoryview(a),
        lambda a: np.asarray(memoryview(a))[1],
        lambda a: np.from_dlpack(a),
        lambda a: np.frombuffer(a, np.uint8),
    ],
    ids=[
        "array",
        "slice",
        "scalar-copy",
        "transposed",
        "view",
        "memoryview",
        "of-memoryview",
        "dlpack",
        "buffer",
    ],
)
def test_what_somebody_holds_is_not_overwritten(recycler, hold):
    first = recycler.take()["large"]
    first[:] = np.arange(first.size, dtype=np.float32).reshape(first.shape)
    held = hold(first)
    before = np.array(held)
    del first
    gc.collect()
    for _ in range(3):
        recycler.take()["large"][:] = -1
    assert np.array_equal(np.array(held), before)


def test_two_at_once_are_apart(recycler):
    first, second = recycler.take()["large"], recycler.take()["large"]
    assert not np.shares_memory(first, second)
    del first, second
    gc.collect()
    assert len(recycler._spare[0]) == 1, "one piece is kept, not all"
