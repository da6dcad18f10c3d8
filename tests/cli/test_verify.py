"""``sparsec verify``: every byte counts, and with the model the numbers do, too."""

import json

import pytest


def test_a_good_artifact(call, artifact):
    result = call("verify", artifact)
    assert result.exit_code == 0
    assert result.stdout.startswith(f"ok  {artifact}: ")
    assert "every hash matches, runs here at level v" in result.stdout


def test_the_model_it_was_made_from(call, artifact, digits):
    result = call("verify", artifact, "--model", digits, "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["same_source"] and found["outputs"]["logits"]["within"]


def test_another_model_is_told_apart(call, one_line, artifact, digits):
    result = call("verify", artifact, "--model", digits.with_name("dense.onnx"))
    assert result.exit_code == 1
    assert "--  it was compiled from another model file" in result.stdout
    assert "output 'logits' differs by " in one_line(result)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_a_flipped_bit_is_found(call, one_line, artifact, tmp_path, share):
    data = bytearray(artifact.read_bytes())
    data[int(share * len(data))] ^= 0x10
    path = tmp_path / "flipped.sparsec"
    path.write_bytes(data)
    result = call("verify", path)
    assert result.exit_code == 1
    assert str(path) in one_line(result)
