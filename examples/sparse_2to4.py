"""Recognise a 2:4 model: prune a layer in NumPy, store it densely as ONNX, and see that it is found.

    python examples/sparse_2to4.py [FOLDER]

A sparse model is an ordinary ONNX file whose weights contain zeros.  Nothing has to be marked.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import sparsec


def prune(weight: np.ndarray, block: int) -> np.ndarray:
    """Of each 4 consecutive rows (inputs) keep the 2 strongest, the same for ``block`` columns (outputs)."""
    inputs, outputs = weight.shape
    groups = np.abs(weight).reshape(inputs // 4, 4, outputs // block, block).sum(axis=3)
    keep = groups.argsort(axis=1).argsort(axis=1) >= 2
    mask = np.repeat(keep.reshape(inputs, outputs // block), block, axis=1)
    return weight * mask


def model(weight: np.ndarray) -> onnx.ModelProto:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "layer"), helper.make_node("Relu", ["h"], ["y"])]
    ports = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [64, weight.shape[0]]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, weight.shape[1]]),
    ]
    graph = helper.make_graph(nodes, "g", ports[:1], ports[1:], [numpy_helper.from_array(weight, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    dense = rng.standard_normal((512, 1024)).astype(np.float32) / 16
    weight = prune(dense, block=32)
    path, artifact = folder / "two of four.onnx", folder / "two of four.sparsec"
    onnx.save(model(weight), path)
    command = [sys.executable, "-m", "sparsec"]
    subprocess.run([*command, "explain", path, "--target", "native"], check=True)
    subprocess.run([*command, "compile", path, "--target", "native", "-o", artifact], check=True)

    x = rng.standard_normal((64, 512)).astype(np.float32)
    with sparsec.load(artifact) as loaded:
        (layer,) = [layer for layer in loaded.manifest["layers"] if layer["op"] in ("MatMul", "NMMatMul")]
        error = np.abs(loaded(x)["y"] - np.maximum(x @ weight, 0)).max()
    print(f"pattern {layer['pattern']}, kernel {layer['kernel']}, largest error {error:.1e}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as name:
            main(Path(name))
