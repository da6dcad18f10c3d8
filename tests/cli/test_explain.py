"""``sparsec explain``: one paragraph for each decision, and a bound on the gain."""

import json

import pytest

NATIVE = ("--target", "native")


def test_a_pattern_and_its_measured_gain(call, digits):
    result = call("explain", digits, *NATIVE)
    assert result.exit_code == 0, result.stderr
    assert "Conv, weight 64x32x3x3" in result.stdout
    assert "2:4x16: keeps 50.0 % of the weights" in result.stdout
    assert "x the time of dense" in result.stdout
    assert "2 other layers with constant weights: dense" in result.stdout


def test_the_bound_on_the_gain_is_counted(call, digits):
    """64x32x3x3 on 8x8 and 48x64x3x3 on 4x4 keep half; 32x1x3x3 on 8x8 and 10x192 keep all."""
    found = json.loads(call("explain", digits, *NATIVE, "--json").stdout)
    work = sorted((layer["multiply_adds"], layer["kept"]) for layer in found["layers"].values())
    sizes = [(10 * 192, 1.0), (32 * 9 * 64, 1.0), (48 * 64 * 9 * 16, 0.5), (64 * 32 * 9 * 64, 0.5)]
    assert work == sizes
    total, kept = sum(n for n, _ in sizes), sum(n * share for n, share in sizes)
    assert f"at most {total / kept:.2f}x faster" in call("explain", digits, *NATIVE).stdout


def test_a_dense_model(call, digits):
    result = call("explain", digits.with_name("dense.onnx"), *NATIVE)
    assert "No sparsity was found" in result.stdout


@pytest.mark.parametrize("spec", ["threshold{kind=soft,tau=0.1}"])
def test_passes_can_be_tried(call, digits, spec):
    result = call("explain", digits, *NATIVE, "--passes", spec)
    assert "threshold: asked for; soft, tau = 0.1" in result.stdout
