"""Concat of tensors and of views, in every type."""

import numpy as np
import onnx
import pytest

from sparsec.schedules.concat import runs

RNG = np.random.default_rng(31)
SHAPES = {
    "rows": (0, [(3, 5), (1, 5), (17, 5)]),
    "columns": (-1, [(4, 1), (4, 16), (4, 33)]),
    "middle": (1, [(2, 3, 7), (2, 1, 7)]),
    "one": (0, [(9,)]),
    "vectors": (0, [(1,), (31,), (16,)]),
}


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool", "float64"])
@pytest.mark.parametrize("case", SHAPES)
def test_concat(case, dtype, single_op, same_as_ort):
    axis, shapes = SHAPES[case]
    feeds = {f"x{i}": (RNG.random(shape) * 9 - 4).astype(dtype) for i, shape in enumerate(shapes)}
    same_as_ort(single_op("Concat", feeds, axis=axis), feeds)


def test_a_key_cache_grows_in_one_copy(same_as_ort):
    """The new key is a transposed part of a projection; neither is performed."""
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[2, 3, 5, 8] past, float[2, 4, 48] x) => (float[2, 3, 9, 8] present) {
            k, other = Split<axis = 2, num_outputs = 2> (x)
            four = Constant<value_ints = [2, 4, 3, 8]> ()
            heads = Reshape (k, four)
            new = Transpose<perm = [0, 2, 1, 3]> (heads)
            present = Concat<axis = 2> (past, new)
        }"""
    )
    model = onnx.shape_inference.infer_shapes(model)
    feeds = {
        "past": RNG.random((2, 3, 5, 8)).astype("f"),
        "x": RNG.random((2, 4, 48)).astype("f"),
    }
    steps = same_as_ort(model, feeds).plan.steps
    assert [step.symbol for step in steps] == ["concat"]


def test_runs_are_as_long_as_both_sides_are_contiguous():
    assert runs((1, 12, 64, 64), (0, 4096, 64, 1), (0, 4160, 64, 1)) == [(12, 4096, 4160), (4096, 1, 1)]
    assert runs((2, 3), (3, 1), (3, 1)) == [(6, 1, 1)]
    assert runs((2, 3), (1, 2), (3, 1)) == [(2, 1, 3), (3, 2, 1)]
    assert runs((1, 1), (5, 5), (1, 1)) == [(1, 1, 1)]
