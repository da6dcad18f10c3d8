"""QuantizeLinear and DequantizeLinear around the layers of a model, in the form that every engine reads.

    x -> [Mul, Add: the migration] -> QuantizeLinear -> DequantizeLinear -> MatMul, Gemm, Conv
    int8 weight -> DequantizeLinear (a scale for each output channel) ---^
    int32 bias  -> DequantizeLinear (scale of x times scale of W) -------^    Gemm and Conv

A MatMul's bias is a float Add behind it and stays one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from sparsec.passes.graph import (
    add_constant,
    attribute,
    const_array,
    free_name,
    is_op,
    producer,
    remove_dead,
)
from sparsec.passes.nm_layers import Layer
from sparsec.passes.prune.places import Place
from sparsec.passes.quantize.grid import Grid
from sparsec.passes.quantize.migration import Migration

LAYERS = ("MatMul", "Gemm", "Conv", "ConvTranspose")
BIAS_LIMIT = 2.0**30
"""Of an int32 bias: as much again is left for the products."""


def insert_input(
    model: ir.Model, value: ir.Value, migration: Migration, grid: Grid, layers: Sequence[Layer]
) -> ir.Value:
    """Have `layers` read `value` migrated and quantised; returned is what is quantised, `x'`.

    What of `migration` has been absorbed must not be in it any more. Between convolutions the sums and pools
    that read `value` read it quantised, too, so that it need not be kept in floats; in other networks that
    would round the residual stream again and again.
    """
    moved, channels_first, others = value, layers[0].convolves, list(value.uses())
    if migration.scales:
        moved = _elementwise(model, "Mul", moved, 1 / migration.scale, channels_first)
    if migration.shifts:
        moved = _elementwise(model, "Add", moved, -migration.shift / migration.scale, channels_first)
    scale = add_constant(model, f"{moved.name}_scale", np.array(grid.scale, np.float32))
    zero = add_constant(model, f"{moved.name}_zero_point", np.array(grid.zero, np.uint8))
    whole = _behind(model, "QuantizeLinear", moved, [scale, zero], ir.DataType.UINT8, "quantized")
    real = _behind(model, "DequantizeLinear", whole, [scale, zero], moved.dtype, "dequantized")
    for layer in layers:
        layer.node.replace_input_with(0, real)
    if channels_first and moved is value:
        for node, index in others:
            if node.graph is model.graph and not is_op(node, *LAYERS):
                node.replace_input_with(index, real)
    return moved


def insert_weight(
    model: ir.Model,
    place: Place,
    integers: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    input_scale: np.float32,
) -> None:
    """Give the layer at `place` the canonical weight `integers`, with `scale` `[out]`, and `bias` `[out]`."""
    layer, node = place.layer, place.layer.node
    name, old = layer.value.name, layer.value
    stored = replace(layer, array=layer.array.astype(np.int8)).stored(integers)
    rows_first = layer.standard == "Conv" or attribute(node, "transB", 0)
    weight = add_constant(model, f"{name}_quantized", stored)
    scales = add_constant(model, f"{name}_scale", scale.astype(np.float32))
    real = _dequantised(model, node, weight, scales, 0 if rows_first else 1)
    node.replace_input_with(1, real)
    if place.free_bias and layer.standard == "MatMul":
        place.set_bias(model, bias, "corrected")
    elif place.free_bias:
        steps = scale.astype(np.float32) * np.float32(input_scale)
        whole = np.rint(bias / steps.astype(np.float64))
        if np.abs(whole).max(initial=0.0) > BIAS_LIMIT:
            place.set_bias(model, bias, "corrected")
        else:
            given = node.inputs[2] if len(node.inputs) > 2 else None
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            constant = add_constant(model, f"{name}_bias_quantized", whole.astype(np.int32))
            steps = add_constant(model, f"{name}_bias_scale", steps)
            node.replace_input_with(2, _dequantised(model, node, constant, steps, 0))
            remove_dead([given])
    remove_dead([old])


@dataclass(frozen=True, eq=False)
class Source:
    """The constants, as inputs of nodes, that give a value's channels their scales and their offsets.

    `shiftable`: whether the offsets alone decide where a channel lies. `layer`: the quantised layer whose
    constants they are, if any."""

    scales: tuple[tuple[ir.Node, int], ...]
    offsets: tuple[tuple[ir.Node, int], ...]
    shiftable: bool
    layer: ir.Node | None = None


def source(value: ir.Value, readers: Sequence[Layer]) -> Source | None:
    """Where a migration of `value` can go at no cost; None where other nodes see it, or no constants make it.

    They are those of a normaliser, or of a layer that has been quantised, with at most a Relu in between.
    """
    if value.is_graph_output() or {use.node for use in value.uses()} - {layer.node for layer in readers}:
        return None
    node, relu = value.producer(), producer(value, "Relu") is not None
    if relu:
        node = _sole(node.inputs[0])
    scales, offsets, layer = [], [], None
    if is_op(node, "LayerNormalization") and attribute(node, "axis", -1) in (-1, len(value.shape or ()) - 1):
        scales, offsets = [(node, 1)], [(node, 2)] if len(node.inputs) > 2 and node.inputs[2] else []
    elif is_op(node, "Add") and (index := _constant_index(node)) is not None:
        offsets, made = [(node, index)], _sole(node.inputs[1 - index])
        if is_op(made, "Mul") and (index := _constant_index(made)) is not None:
            scales = [(made, index)]
        elif is_op(made, "MatMul") and not readers[0].convolves:
            scales, layer = _scales_of(made.inputs[1]), made
    elif is_op(node, "Conv" if readers[0].convolves else "Gemm"):
        scales, layer = _scales_of(node.inputs[1]), node
        if scales and len(node.inputs) > 2 and node.inputs[2] is not None:
            in_steps = _scales_of(node.inputs[2])
            scales, offsets = scales + in_steps, [] if in_steps else [(node, 2)]
    size = readers[0].weight.shape[-1] * readers[0].groups
    known = [const_array(owner.inputs[index]) for owner, index in (*scales, *offsets)]
    if not scales or any(array is None or array.size != size for array in known):
        return None
    return Source(tuple(scales), tuple(offsets), bool(offsets) and not relu, layer)


def absorb(model: ir.Model, at: Source, migration: Migration) -> None:
    """Fold `migration` into the constants of `at`; a shift needs one that is shiftable (ValueError)."""
    if migration.shifts and not at.shiftable:
        raise ValueError("the constants that make this value cannot take a shift")
    for places, shift in ((at.scales, 0.0), (at.offsets, migration.shift)):
        for node, index in places:
            old = node.inputs[index]
            array = const_array(old)
            new = (array.reshape(-1).astype(np.float64) - shift) / migration.scale
            array = new.astype(array.dtype).reshape(array.shape)
            node.replace_input_with(index, add_constant(model, f"{old.name}_migrated", array))
            remove_dead([old])


def _scales_of(value: ir.Value) -> list[tuple[ir.Node, int]]:
    node = producer(value, "DequantizeLinear")
    return [(node, 1)] if node is not None else []


def _sole(value: ir.Value) -> ir.Node | None:
    """What makes `value`, if one node alone reads it."""
    return value.producer() if len(value.uses()) == 1 and not value.is_graph_output() else None


def _constant_index(node: ir.Node) -> int | None:
    return next((i for i, value in enumerate(node.inputs) if const_array(value) is not None), None)


def _elementwise(model: ir.Model, op: str, value: ir.Value, vector: np.ndarray, first: bool) -> ir.Value:
    """`value` times or plus a number for each channel; `first`: spatial axes follow the channels."""
    shape = (len(vector),) + (1,) * (len(value.shape) - 2 if first else 0)
    array = vector.astype(value.dtype.numpy()).reshape(shape)
    constant = add_constant(model, f"{value.name}_{op.lower()}", array)
    return _behind(model, op, value, [constant], value.dtype, "migrated")


def _behind(
    model: ir.Model, op: str, value: ir.Value, others: Sequence[ir.Value], dtype: ir.DataType, suffix: str
) -> ir.Value:
    """The output of a new node `op(value, *others)`, which stands right behind what makes `value`."""
    name = free_name(model, f"{value.name}_{suffix}")
    made = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype))
    node = ir.node(op, [value, *others], outputs=[made], name=name)
    graph, maker = model.graph, value.producer()
    if maker is not None:
        graph.insert_after(maker, node)
    else:
        graph.insert_before(graph.node(0), node)
    return made


def _dequantised(
    model: ir.Model, reader: ir.Node, integers: ir.Value, scale: ir.Value, axis: int
) -> ir.Value:
    name = free_name(model, f"{integers.name.removesuffix('_quantized')}_dequantized")
    made = ir.Value(name=name, shape=integers.shape, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.node("DequantizeLinear", [integers, scale], {"axis": axis}, outputs=[made], name=name)
    reader.graph.insert_before(reader, node)
    return made
