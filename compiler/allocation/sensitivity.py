"""How much the outputs of a model change with the weight of one of its layers."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from sparsec.compiler.allocation.budget import unpadded
from sparsec.passes.graph import node_name
from sparsec.passes.nm_layers import find_layers


def changes(
    model: ir.Model,
    weights: Mapping[str, np.ndarray],
    feeds: Iterable[Mapping[str, np.ndarray]],
    log: Callable[[str], None],
    mask: str | None = None,
) -> dict[str, float]:
    """``{node: squared change of the float outputs, relative to them}``; rows that the input ``mask`` calls
    padding do not count.

    ``weights`` has for each node the canonical weight ``[out, taps, in]`` that takes the place of its own,
    one node at a time.  Weights become inputs of one session, so the model is loaded once.
    """
    open_model = model.clone()
    dense, stored = {}, {}
    for layer in find_layers(open_model):
        name = node_name(layer.node)
        if name not in weights:
            continue
        given = ir.Value(
            name=f"{name}::weight",
            shape=ir.Shape(layer.array.shape),
            type=ir.TensorType(ir.DataType.from_numpy(layer.array.dtype)),
        )
        open_model.graph.inputs.append(given)
        layer.node.replace_input_with(list(layer.node.inputs).index(layer.value), given)
        dense[given.name] = np.ascontiguousarray(layer.array)
        stored[given.name] = (name, layer.stored(weights[name]))
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(
        ir.to_proto(open_model).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    found = dict.fromkeys(weights, 0.0)
    feeds = list(feeds)

    def run(feed: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        padding = feed[mask] if mask else None
        return [unpadded(y, padding) for y in session.run(None, {**feed, **given})]

    wanted = [run(feed, dense) for feed in feeds]
    total = sum(_square(y, np.zeros_like(y)) for ys in wanted for y in ys) or 1.0
    for number, (value, (name, weight)) in enumerate(stored.items(), 1):
        log(f"run with layer {number} of {len(stored)} changed")
        for feed, ys in zip(feeds, wanted, strict=True):
            got = run(feed, {**dense, value: weight})
            found[name] += sum(map(_square, got, ys)) / total
    return found


def _square(a: np.ndarray, b: np.ndarray) -> float:
    if a.dtype.kind != "f":
        return 0.0
    return float(np.square(a.astype(np.float64) - b).sum())
