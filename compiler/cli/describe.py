"""What is in a model or an artifact, as plain data: the facts behind ``inspect`` and ``explain``.

The functions that read a model run in the worker process.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path


def model(request: dict, log: Callable[[str], None]) -> dict:
    """The ONNX file ``request["model"]`` as it is: nothing is frozen, folded or converted."""
    from sparsec.compiler.ingest import load
    from sparsec.passes import graph

    path = Path(request["model"])
    found = load.load(path)
    ops = Counter(f"{node.domain}.{node.op_type}".removeprefix(".") for node in graph.nodes(found))
    tensors = [value.const_value for value in found.graph.initializers.values() if value.const_value]
    return {
        "kind": "model",
        "file": str(path),
        "bytes": path.stat().st_size,
        "ir_version": found.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in found.opset_imports.items()},
        "producer": " ".join(filter(None, (found.producer_name, found.producer_version))),
        "inputs": [port(value) for value in found.graph.inputs if value.name not in found.graph.initializers],
        "outputs": [port(value) for value in found.graph.outputs],
        "parameters": sum(tensor.size for tensor in tensors),
        "weights_bytes": sum(tensor.nbytes for tensor in tensors),
        "ops": dict(ops.most_common()),
        "layers": weight_layers(found),
    }


def port(value) -> dict:
    """A graph input or output; dims are sizes, names, or ``?``."""
    dims = [] if value.shape is None else [d if isinstance(d, int) else d.value or "?" for d in value.shape]
    return {"name": value.name, "dtype": str(value.dtype.numpy()) if value.dtype else "?", "dims": dims}


def weight_layers(found) -> list[dict]:
    """Every layer with a constant weight: its shape, its zeros and their pattern."""
    import numpy as np

    from sparsec.passes import nm_layers, nm_structure
    from sparsec.passes.graph import node_name

    layers = []
    for layer in nm_layers.find_layers(found):
        zeros = layer.array.size - int(np.count_nonzero(layer.array))
        pattern = nm_structure.find(layer.weight, layer.groups) if zeros else "dense"
        layers.append(
            {
                "name": node_name(layer.node),
                "op": layer.node.op_type,
                "shape": list(layer.array.shape),
                "dense_bytes": int(layer.array.nbytes),
                "zeros": zeros / layer.array.size,
                "pattern": str(pattern) if isinstance(pattern, nm_structure.NM) else "dense",
                "note": "" if isinstance(pattern, nm_structure.NM) or not zeros else str(pattern),
            }
        )
    return layers


def artifact(path: Path) -> dict:
    """An artifact's manifest and sizes.  Every byte is checked; nothing of it is executed."""
    from sparsec.runtime.artifact import Artifact

    raw = Artifact(path).manifest.raw
    names = ("sparsec_version", "tvm_version", "target", "libraries", "inputs", "outputs", "arena_size")
    names += ("variants", "gpu", "weights_size", "passes", "layers", "receipt", "source_sha256", "members")
    found = {"kind": "artifact", "file": str(path), "bytes": path.stat().st_size}
    return found | {name: raw.get(name) for name in names} | {"states": raw.get("states", [])}
