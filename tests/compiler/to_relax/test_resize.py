"""Resize against ONNX Runtime and, where that differs from the operator's text, onnx's evaluator."""

import itertools

import numpy as np
import onnx.reference
import pytest

RNG = np.random.default_rng(13)
TRANSFORMS = ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"]
ROUNDINGS = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
SIZES = {
    "up": (1, 2, 11, 14),
    "twice": (1, 2, 14, 12),
    "down": (1, 2, 3, 5),
    "to one": (1, 2, 1, 1),
    "mixed": (1, 2, 9, 4),
}


def image(*shape):
    return RNG.standard_normal(shape or (1, 2, 7, 6)).astype(np.float32)


def resize(single_op, x, *, sizes=None, scales=None, **attributes):
    inputs = {
        "x": x,
        "roi": None,
        "scales": None if scales is None else np.array(scales, np.float32),
        "sizes": None if sizes is None else np.array(sizes, np.int64),
    }
    return single_op("Resize", inputs, constants=("scales", "sizes"), **attributes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("transform", "rounding"), list(itertools.product(TRANSFORMS, ROUNDINGS)))
def test_nearest(transform, rounding, size, single_op, same_as_ort):
    x = image()
    model = resize(
        single_op,
        x,
        sizes=SIZES[size],
        mode="nearest",
        coordinate_transformation_mode=transform,
        nearest_mode=rounding,
    )
    same_as_ort(model, {"x": x}, relative=0, absolute=0)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_interpolated(transform, size, mode, single_op, same_as_ort):
    x = image()
    model = resize(single_op, x, sizes=SIZES[size], mode=mode, coordinate_transformation_mode=transform)
    same_as_ort(model, {"x": x}, relative=1e-5)


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize(
    "scales", [(1, 1, 2, 2), (1, 1, 3, 1), (1, 1, 0.5, 0.5), (1, 1, 1.6, 0.7), (1, 1, 2.3, 1)], ids=str
)
def test_scales(scales, mode, single_op, same_as_ort):
    """A scale that does not divide the size evenly is the scale, not the ratio of the sizes."""
    x = image()
    same_as_ort(resize(single_op, x, scales=scales, mode=mode), {"x": x})


@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("a", [-0.5, -0.75, -1.0])
@pytest.mark.parametrize("size", ["up", "down"])
def test_cubic(size, a, exclude, single_op, same_as_ort):
    x = image()
    model = resize(single_op, x, sizes=SIZES[size], mode="cubic", cubic_coeff_a=a, exclude_outside=exclude)
    same_as_ort(model, {"x": x})


def test_axes(single_op, same_as_ort):
    x = image()
    same_as_ort(resize(single_op, x, sizes=(11, 9), axes=[2, 3], mode="linear"), {"x": x})
    same_as_ort(resize(single_op, x, scales=(2, 3), axes=[2, 3], mode="nearest"), {"x": x})


def test_axes_in_another_order(single_op, run_graph):
    x = image()
    model = resize(single_op, x, sizes=(9, 11), axes=[3, 2], mode="linear")
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_allclose(run_graph(model, {"x": x}).outputs["y"], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [((2, 3, 9), (2, 3, 17)), ((5, 7), (9, 4)), ((1, 2, 3, 4, 5), (1, 2, 6, 3, 7))], ids=str
)
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_other_ranks(shape, mode, single_op, same_as_ort):
    x = image(*shape[0])
    same_as_ort(resize(single_op, x, sizes=shape[1], mode=mode), {"x": x})


def test_batch_and_channels(single_op, run_graph):
    """Every axis may be resized, the batch too."""
    x = image(2, 3, 4, 5)
    model = resize(single_op, x, sizes=(3, 5, 4, 5), mode="nearest")
    expected = onnx.reference.ReferenceEvaluator(model).run(None, {"x": x})[0]
    np.testing.assert_array_equal(run_graph(model, {"x": x}).outputs["y"], expected)


def test_behind_a_convolution(text_graph, same_as_ort):
    """In channels-last layout the same pixels are mixed."""
    model = text_graph(
        """(float[1,2,7,6] x) => (y) {
            c = Conv <pads = [1,1,1,1]> (x, w)
            r = Resize <mode = "linear"> (c, , scales)  y = Conv(r, v) }"""
    )
    constants = {"w": image(5, 2, 3, 3), "v": image(2, 5, 1, 1), "scales": np.array([1, 1, 2, 2], np.float32)}
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in constants.items())
    same_as_ort(onnx.shape_inference.infer_shapes(model, data_prop=True), {"x": image()})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_specials(value, single_op, same_as_ort):
    x = image()
    x[0, 0, 3, 3] = value
    same_as_ort(resize(single_op, x, sizes=SIZES["twice"], mode="nearest"), {"x": x})
