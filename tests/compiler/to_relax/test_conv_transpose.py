"""ConvTranspose by phases against ONNX Runtime and torch: every attribute, and phases that no tap reaches."""

import numpy as np
import onnx
import pytest
import torch

from sparsec.compiler.channels_last import channels_last
from sparsec.compiler.ingest import ingest
from sparsec.compiler.to_relax.conv_transpose import phases
from sparsec.compiler.to_relax.products import products
from sparsec.passes import run_pipeline

RNG = np.random.default_rng(31)
#: x [b, C, *spatial], weight [C, O/group, *kernel], attributes
CASES = {
    "3x3": ((1, 5, 4, 7), (5, 17, 3, 3), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    "4x4": ((2, 3, 5, 4), (3, 16, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "odd output": ((1, 3, 3, 5), (3, 7, 3, 2), {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    "one phase": ((1, 6, 5, 6), (6, 4, 3, 3), {"pads": [2, 1, 0, 1]}),
    "pads beyond kernel": ((1, 4, 6, 6), (4, 5, 2, 2), {"strides": [2, 1], "pads": [3, 2, 3, 4]}),
    "dilated": ((1, 3, 4, 5), (3, 6, 3, 3), {"strides": [2, 3], "dilations": [3, 2]}),
    "common factor": ((1, 3, 4, 5), (3, 6, 3, 2), {"strides": [2, 4], "dilations": [2, 6]}),
    "kernel below stride": ((1, 3, 4, 5), (3, 6, 1, 2), {"strides": [2, 3], "output_padding": [1, 2]}),
    "dilated tile": ((1, 3, 4, 5), (3, 6, 2, 2), {"strides": [2, 2], "dilations": [2, 3]}),
    "tile": ((1, 3, 4, 5), (3, 6, 2, 3), {"strides": [2, 3]}),
    "groups": ((1, 6, 4, 5), (6, 3, 3, 3), {"strides": [2, 2], "group": 3}),
    "depthwise": ((1, 17, 4, 5), (17, 1, 4, 4), {"strides": [2, 2], "pads": [1, 1, 1, 1], "group": 17}),
    "one dimension": ((2, 3, 9), (3, 8, 5), {"strides": [3], "pads": [2, 1], "output_padding": [1]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_numbers(case, single_op, same_as_ort):
    shape, weight, attributes = CASES[case]
    arrays = {
        "x": RNG.standard_normal(shape).astype("f"),
        "w": RNG.standard_normal(weight).astype("f"),
        "b": RNG.standard_normal(weight[1] * attributes.get("group", 1)).astype("f"),
    }
    model = single_op("ConvTranspose", arrays, constants=("w", "b"), **attributes)
    same_as_ort(model, {"x": arrays["x"]}, relative=1e-5)


def test_infinity_stays_where_it_belongs(single_op, same_as_ort):
    """No weight meets a zero between pixels: the outputs of one input alone are infinite."""
    x, w = np.ones((1, 1, 3, 3), "f"), np.ones((1, 2, 1, 1), "f")
    x[0, 0, 1, 1] = np.inf
    model = single_op("ConvTranspose", {"x": x, "w": w}, constants=("w",), strides=[2, 2])
    same_as_ort(model, {"x": x}, relative=1e-5)


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_every_tap_is_in_one_phase_and_meets_its_input(kernel, stride, dilation):
    pad, inputs = 1, 5
    x, w = RNG.standard_normal(inputs), RNG.standard_normal(kernel)
    tensors = (torch.from_numpy(a)[None, None] for a in (x, w))
    want = torch.nn.functional.conv_transpose1d(*tensors, stride=stride, dilation=dilation)[0, 0].numpy()
    found = phases(kernel, stride, dilation, pad)
    assert sorted(k for phase in found for k in phase.taps) == list(range(kernel))
    for o in range(pad, len(want)):
        phase, t = found[(o - pad) % stride], (o - pad) // stride
        at = [t + phase.first + i * phase.dilation for i in range(len(phase.taps))]
        got = sum(w[k] * x[i] for k, i in zip(phase.taps, at, strict=True) if 0 <= i < inputs)
        assert abs(got - want[o]) < 1e-12


#: weight [C, O/group, kh, kw], pattern n, m, block, attributes, and the pattern as each product packs it
SPARSE = {
    "phases": ((32, 33, 4, 4), (2, 4, 1), {"strides": [2, 2], "pads": [1, 1, 1, 1]}, ["2:4"] * 4),
    "shared": ((32, 64, 3, 3), (1, 4, 32), {"strides": [2, 2]}, ["1:4x32"] * 4),
    "tile": ((32, 32, 2, 2), (2, 4, 16), {"strides": [2, 2]}, ["2:4x16"]),
    "a tile narrower than its blocks": ((32, 24, 2, 2), (2, 4, 16), {"strides": [2, 2]}, ["2:4x8"]),
    "groups": ((64, 16, 3, 3), (2, 8, 16), {"strides": [2, 2], "group": 2}, ["2:8x16"] * 4),
}  # fmt: skip


@pytest.mark.parametrize("case", SPARSE)
def test_pattern_of_every_phase(case, single_op, same_as_ort, tmp_path):
    shape, (n, m, block), attributes, packed = SPARSE[case]
    group = attributes.get("group", 1)
    weight = RNG.standard_normal((group, shape[0] // group // m, m, *shape[1:])).astype("f")
    for o in range(0, shape[1], block):
        part = weight[:, :, :, o : o + block]
        drawn = RNG.random((*part.shape[:3], 1, *part.shape[4:])).argsort(axis=2)
        part *= drawn < n
    arrays = {"x": RNG.standard_normal((1, shape[0], 5, 6)).astype("f"), "w": weight.reshape(shape)}
    model = single_op("ConvTranspose", arrays, constants=("w",), **attributes)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    graph = ingest(path)
    run_pipeline(graph)
    channels_last(graph)
    (node,) = (node for node in graph.graph if node.op_type == "ConvTransposeNHWC")
    patterns = [spec.pattern for spec, _ in products(node)]
    assert [f"{p.n}:{p.m}" + f"x{p.block}" * (p.block > 1) for p in patterns] == packed
    same_as_ort(model, {"x": arrays["x"]}, relative=1e-5)
