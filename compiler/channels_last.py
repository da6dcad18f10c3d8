"""Channels-last layout over the whole graph: ``NCHW -> NHWC`` (and ``NCW -> NWC``), still as ONNX.

One forward walk.  Every value may have a *twin*, the same tensor with its channels last.  Convolutions
and pools ask for the twin of their input and make one of their output; elementwise operators,
concatenations, paddings, resizes and reductions follow their inputs.  Whoever needs the original order
gets one Transpose, made on demand, so that none stands between two layers that agree.

The new operators live in domain ``ai.sparsec`` and carry a body of standard ONNX, so the result runs
in ONNX Runtime and is its own reference.
"""

import numpy as np
import onnx_ir as ir

from sparsec.compiler.nhwc import (
    ATTRS,
    DOMAIN,
    FIRST,
    LAST,
    SUFFIX,
    const_ints,
    function_body,
    int_attr,
    transposed_window,
    weight_attrs,
    window,
)

UNARY = frozenset(
    """
    Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu
    HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round
    Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Tan Tanh ThresholdedRelu
    """.split()  # noqa: SIM905
)
BROADCAST = frozenset(
    """
    Add And BitwiseAnd BitwiseOr BitwiseXor Clip Div Equal Greater GreaterOrEqual Less LessOrEqual
    Max Mean Min Mod Mul Or PRelu Pow Sub Sum Where Xor SoftThreshold HardThreshold ShiftedRelu
    JumpRelu ClippedSoftThreshold ClippedShiftedRelu QuantizedAdd
    """.split()  # noqa: SIM905
)
REDUCE = frozenset(
    """
    ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
    ReduceSum ReduceSumSquare
    """.split()  # noqa: SIM905
)
QUANTISE = frozenset(("QuantizeLinear", "DequantizeLinear"))
WITH_AXIS = frozenset(["Softmax", "LogSoftmax", "Hardmax", "Sparsemax", "Entmax", "Concat"])
WITH_PATTERN = frozenset(("NMConv", "NMConvTranspose", "NMConvInteger"))
GLOBAL_POOL = {"GlobalAveragePool": "ReduceMean", "GlobalMaxPool": "ReduceMax"}


def channels_last(model: ir.Model) -> None:
    """Rewrite ``model`` in place.  Every value must have a static shape and a dtype."""
    _Walk(model).run()


class _Walk:
    def __init__(self, model: ir.Model):
        self.model = model
        self.graph = model.graph
        self.twin: dict[ir.Value, ir.Value] = {}  # channels-first value -> its channels-last form
        self.gone: set[ir.Value] = set()  # outputs whose only form is the twin, until asked for
        self.first: dict[ir.Value, ir.Value] = {}  # and their channels-first form once asked for
        self.here: ir.Node | None = None
        self.fresh = 0

    def run(self) -> None:
        for node in list(self.graph):
            self.here = node
            if not self.rewrite(node):
                for index, value in enumerate(node.inputs):
                    if value is not None and value in self.gone:
                        node.replace_input_with(index, self.to_first(value))
        self.here = None
        for index, value in enumerate(self.graph.outputs):
            if value in self.gone:
                restored = self.to_first(value)
                restored.name = value.name
                self.graph.outputs[index] = restored
        for node in reversed(list(self.graph)):
            outputs = node.outputs
            if all(not out.uses() and not out.is_graph_output() for out in outputs):
                self.graph.remove(node, safe=True)

    # What each operator does -------------------------------------------------------------------

    def rewrite(self, node: ir.Node) -> bool:
        """Make the channels-last form of ``node``; False leaves it in the original order."""
        x = node.inputs[0] if node.inputs else None
        rank = len(x.shape) if x is not None and x.shape is not None else 0
        op = node.op_type
        if op == "Transpose":
            return self.transpose(node, x, rank)
        if rank not in LAST:
            rank = max((len(v.shape) for v in node.inputs if v is not None and v in self.twin), default=0)
        if rank not in LAST:
            return False
        # Our kernels take float32 and bytes; TVM converts the other dtypes, channels first.
        taken = (ir.DataType.FLOAT, ir.DataType.UINT8)
        ours = "Conv" in op and x.dtype in taken and node.inputs[1].const_value is not None
        if op in ("Conv", "NMConv", "ConvInteger", "NMConvInteger") and ours:
            return self.conv(node, rank)
        if op in ("ConvTranspose", "NMConvTranspose") and ours:
            return self.conv_transpose(node, rank)
        if node.domain == "" and op in ("MaxPool", "AveragePool") and len(node.outputs) == 1:
            return self.pool(node, rank)
        if node.domain == "" and op in GLOBAL_POOL:
            axes = self.constant(np.arange(1, rank - 1, dtype=np.int64), "axes")
            inputs = [self.to_last(x), axes]
            return self.emit(node, GLOBAL_POOL[op], inputs, {"keepdims": 1}, domain="")
        if not any(v is not None and v in self.twin for v in node.inputs):
            return False
        if op in UNARY or op in BROADCAST or (op in QUANTISE and self.per_tensor(node)):
            return self.elementwise(node, rank)
        if op in WITH_AXIS:
            attrs = {"axis": LAST[rank].index(int_attr(node, "axis", -1) % rank)}
            return self.emit(node, op, [self.to_last(v) for v in node.inputs], attrs)
        if op in REDUCE:
            return self.reduce(node, x, rank)
        if op == "Pad":
            return self.pad(node, rank)
        if op == "Resize":
            return self.resize(node, rank)
        return False

    def transpose(self, node: ir.Node, x: ir.Value, rank: int) -> bool:
        perm = tuple(node.attributes["perm"].as_ints()) if "perm" in node.attributes else None
        y = node.outputs[0]
        if rank in FIRST and perm == FIRST[rank] and x not in self.twin and (rank > 3 or self.asked_for(y)):
            self.twin[y] = x if x not in self.gone else self.to_first(x)
            return False  # the node itself stays for whoever wants it, and is removed when nobody does
        if rank in LAST and perm == LAST[rank] and x in self.twin:
            y.replace_all_uses_with(self.alias(y, self.twin[x]), replace_graph_outputs=True)
            return True
        return False

    def asked_for(self, value: ir.Value) -> bool:
        """Whether a convolution or pool reads ``value``, directly or through what follows its inputs.

        The permutation of three axes is its own inverse, so only this tells a signal from tokens.
        """
        pending, seen = [value], {value}
        while pending:
            for node, _ in pending.pop().uses():
                if node.op_type in ATTRS or node.op_type in (*GLOBAL_POOL, *WITH_PATTERN):
                    return True
                if node.op_type in UNARY | BROADCAST | WITH_AXIS | {"Pad", "Resize"}:
                    fresh = [out for out in node.outputs if out not in seen]
                    seen.update(fresh)
                    pending += fresh
        return False

    def conv(self, node: ir.Node, rank: int) -> bool:
        kernel = [int(d) for d in node.inputs[1].shape][2:]
        attrs = window(node, kernel, [int(d) for d in node.inputs[0].shape][2:])
        attrs |= weight_attrs(node)
        inputs = [self.to_last(node.inputs[0]), *node.inputs[1:]]
        op = node.op_type.removeprefix("NM")
        self.declare(op, rank)
        return self.emit(node, f"{op}{SUFFIX[rank]}", inputs, attrs, domain=DOMAIN)

    def conv_transpose(self, node: ir.Node, rank: int) -> bool:
        kernel = [int(d) for d in node.inputs[1].shape][2:]
        attrs = transposed_window(node, kernel)
        attrs |= weight_attrs(node)
        inputs = [self.to_last(node.inputs[0]), *node.inputs[1:]]
        self.declare("ConvTranspose", rank)
        return self.emit(node, f"ConvTranspose{SUFFIX[rank]}", inputs, attrs, domain=DOMAIN)

    def pool(self, node: ir.Node, rank: int) -> bool:
        kernel = list(node.attributes["kernel_shape"].as_ints())
        attrs = window(node, kernel, [int(d) for d in node.inputs[0].shape][2:])
        attrs["kernel_shape"] = kernel
        for key in ("ceil_mode", "count_include_pad"):
            if key in ATTRS[node.op_type]:
                attrs[key] = int_attr(node, key, 0)
        self.declare(node.op_type, rank)
        inputs = [self.to_last(node.inputs[0])]
        return self.emit(node, node.op_type + SUFFIX[rank], inputs, attrs, domain=DOMAIN)

    def elementwise(self, node: ir.Node, rank: int) -> bool:
        out = node.outputs[0]
        if len(node.outputs) != 1 or len(out.shape) != rank:
            return False
        inputs = [None if v is None else self.to_last(v, rank) for v in node.inputs]
        return self.emit(node, node.op_type, inputs, dict(node.attributes))

    def per_tensor(self, node: ir.Node) -> bool:
        """Whether scale and zero point are scalars, so that no axis is meant."""
        return all(v is None or all(int(d) == 1 for d in v.shape) for v in node.inputs[1:])

    def reduce(self, node: ir.Node, x: ir.Value, rank: int) -> bool:
        axes = const_ints(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
        if axes is None:
            return False
        keep = int_attr(node, "keepdims", 1)
        axes = {axis % rank for axis in axes}
        moved = np.array(sorted(LAST[rank].index(axis) for axis in axes), dtype=np.int64)
        left = [axis for axis in LAST[rank] if axis not in axes]
        if not keep and left != sorted(left):
            return False
        inputs = [self.to_last(x), self.constant(moved, "axes")]
        attrs = dict(node.attributes)
        if keep:
            return self.emit(node, node.op_type, inputs, attrs)
        result = self.node(
            node.op_type, inputs, attrs, node.domain, node.outputs[0].shape, node.outputs[0].dtype
        )
        result.producer().name = node.name
        self.alias(node.outputs[0], result)
        node.outputs[0].replace_all_uses_with(result, replace_graph_outputs=True)
        return True

    def pad(self, node: ir.Node, rank: int) -> bool:
        pads = const_ints(node.inputs[1])
        if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
            return False
        both = np.array(pads, dtype=np.int64).reshape(2, rank)[:, LAST[rank]].reshape(-1)
        inputs = [self.to_last(node.inputs[0]), self.constant(both, "pads"), *node.inputs[2:3]]
        return self.emit(node, "Pad", inputs, dict(node.attributes))

    def resize(self, node: ir.Node, rank: int) -> bool:
        inputs = list(node.inputs) + [None] * (4 - len(node.inputs))
        roi = inputs[1]
        if "axes" in node.attributes or (
            roi is not None and (roi.const_value is None or roi.const_value.size)
        ):
            return False
        for index in (2, 3):
            value = inputs[index]
            if value is None:
                continue
            if value.const_value is None:
                return False
            array = value.const_value.numpy()
            inputs[index] = self.constant(array[list(LAST[rank])], "sizes") if array.size else value
        while inputs[-1] is None:
            inputs.pop()
        return self.emit(node, "Resize", [self.to_last(inputs[0]), *inputs[1:]], dict(node.attributes))

    # Values ------------------------------------------------------------------------------------

    def to_last(self, value: ir.Value, rank: int | None = None) -> ir.Value:
        """The channels-last form of ``value``, broadcast to ``rank`` first."""
        if value in self.twin:
            return self.twin[value]
        shape = [int(d) for d in value.shape]
        rank = rank or len(shape)
        if int(np.prod(shape)) == 1 and len(shape) <= 1:
            return value
        full = [1] * (rank - len(shape)) + shape
        perm = LAST[rank]
        last_shape = [full[axis] for axis in perm]
        if value.const_value is not None:
            array = value.const_value.numpy().reshape(full).transpose(perm)
            result = self.constant(np.ascontiguousarray(array), f"{value.name}_last")
        else:
            if value in self.gone:
                value = self.to_first(value)
            if len(shape) != rank:
                value = self.reshape(value, full)
            result = self.permute(value, perm, full, last_shape)
        if len(shape) == rank:
            self.twin[value] = result
        return result

    def to_first(self, value: ir.Value) -> ir.Value:
        """The channels-first form of an output that so far exists channels-last only."""
        if value not in self.first:
            shape = [int(d) for d in value.shape]
            last = [shape[axis] for axis in LAST[len(shape)]]
            self.first[value] = self.permute(self.twin[value], FIRST[len(shape)], last, shape)
        return self.first[value]

    def permute(self, value: ir.Value, perm, shape, result_shape) -> ir.Value:
        wide = [axis for axis in range(len(shape)) if shape[axis] != 1]
        if [axis for axis in perm if shape[axis] != 1] == wide:  # only unit axes move: same bytes
            return self.reshape(value, result_shape)
        return self.node("Transpose", [value], {"perm": list(perm)}, "", result_shape, value.dtype)

    def reshape(self, value: ir.Value, shape) -> ir.Value:
        target = self.constant(np.array(shape, dtype=np.int64), "shape")
        return self.node("Reshape", [value, target], {}, "", shape, value.dtype)

    def constant(self, array: np.ndarray, name: str) -> ir.Value:
        self.fresh += 1
        tensor = ir.tensor(array, name=f"{name}/last{self.fresh}")
        value = ir.Value(
            name=tensor.name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def node(self, op, inputs, attributes, domain, shape, dtype) -> ir.Value:
        self.fresh += 1
        out = ir.Value(name=f"{op}/last{self.fresh}", type=ir.TensorType(dtype), shape=ir.Shape(shape))
        made = ir.node(op, inputs, attributes, domain=domain, outputs=[out], name=f"{op}/last{self.fresh}")
        if self.here is None:
            self.graph.append(made)
        else:
            self.graph.insert_before(self.here, made)
        return out

    def emit(self, node: ir.Node, op: str, inputs, attributes, domain: str | None = None) -> bool:
        """Put the channels-last twin of ``node`` in its place, under its name."""
        out = node.outputs[0]
        shape = [int(d) for d in out.shape]
        last = [shape[axis] for axis in LAST[len(shape)]]
        made = self.node(op, inputs, attributes, node.domain if domain is None else domain, last, out.dtype)
        made.producer().name = node.name
        self.twin[out] = made
        self.gone.add(out)
        return True

    def alias(self, old: ir.Value, new: ir.Value) -> ir.Value:
        if old.is_graph_output():
            if new.is_graph_output() or new.is_graph_input() or new.is_initializer():
                new = self.node("Identity", [new], {}, "", old.shape, old.dtype)
            new.name = old.name
            old.name = f"{old.name}/first"
        return new

    def declare(self, op: str, rank: int) -> None:
        function = function_body(op, rank, self.graph.opset_imports[""])
        self.model.functions.setdefault(function.identifier(), function)
        self.graph.opset_imports.setdefault(DOMAIN, 1)
