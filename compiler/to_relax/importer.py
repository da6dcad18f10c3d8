"""ONNX to Relax: TVM's importer, with our own converters in front of its table.

An operator of ours, or one whose TVM conversion is missing, slow or not exact, has a row in
``CONVERTERS``; every other operator of the standard domain goes through TVM.
"""

import contextlib
import sys
from collections.abc import Mapping, Set
from math import prod
from types import SimpleNamespace

import numpy as np
import onnx_ir as ir
import tvm
from tvm import relax
from tvm.relax.frontend.onnx.onnx_frontend import ONNXGraphImporter

from sparsec.compiler.errors import CompileError, last_line
from sparsec.compiler.planner import address
from sparsec.compiler.to_relax.converters import CONVERTERS
from sparsec.compiler.to_relax.narrow import Narrow


class _Values(dict):
    """Importer values by name; an initializer becomes a Relax constant when somebody asks for it."""

    def __init__(self, initializers: Mapping[str, ir.Value]):
        super().__init__()
        self.initializers = initializers

    def __missing__(self, name: str):
        array = np.asarray(self.initializers[name].const_value.numpy(), order="C")
        self[name] = relax.const(array, str(array.dtype))
        return self[name]


class Importer(ONNXGraphImporter):
    """Builds the Relax module of ``model``; every value must have a static shape and a dtype.

    ``choices`` says per node name whether its N:M weight is run "sparse" or "dense", ``permute`` whether
    weights are packed for CPUs that pick activations by a permute, ``narrow`` which values lie in memory as
    numbers of 16 bits, of the format ``half``.
    ``labels`` maps the address of each packed weight to its node's name, ``layers`` collects one
    record per layer with weights: what it is, which kernel, how large before and after packing.
    """

    def __init__(
        self,
        model: ir.Model,
        choices: Mapping[str, str],
        *,
        permute: bool = True,
        narrow: Set[ir.Value] = frozenset(),
        half: str = "bfloat16",
    ):
        super().__init__(shape_dict={}, dtype_dict={}, sanitize=False)
        self.narrow = Narrow(self, narrow, half)
        self.model = model
        self.choices = choices
        self.permute = permute
        self.labels: dict[int, str] = {}
        self.layers: list[dict] = []
        self.rounded: dict[tuple, list] = {}  # activations that meet quantised weights
        self.sums: dict[relax.Var, tuple] = {}  # an integer layer's, as its kernel's and a constant
        self.stored: dict[ir.Value, tuple] = {}  # results that a kernel has written in another axis order
        self._nodes = _Values(model.graph.initializers)
        self._by_name = {node.name: node for node in model.graph}

    def run(self) -> tvm.IRModule:
        graph = self.model.graph
        self.opset = graph.opset_imports[""]
        params = []
        for index, value in enumerate(graph.inputs):
            shape = [int(d) for d in value.shape]
            param = relax.Var(f"input_{index}", relax.TensorType(shape, str(value.dtype.numpy())))
            self._nodes[value.name] = param
            params.append(param)
        with self.bb.function("main", params), contextlib.ExitStack() as stack:
            stack.enter_context(self.bb.dataflow())
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # TVM prints what it cannot convert
            self._construct_nodes(SimpleNamespace(node=[ir.to_proto(node) for node in graph]))
            outputs = [self._nodes[value.name] for value in graph.outputs]
            result = self.bb.emit_output(relax.Tuple(outputs))
            stack.close()
            self.bb.emit_func_output(result)
        return self.bb.get()

    def _convert_operator(self, op_name, inputs, attrs, opset):
        node = self._by_name[attrs["tvm_custom"]["name"]]
        try:
            self.narrow.read(node, inputs)
            result = self._converted(node, op_name, inputs, attrs, opset)
            return self.narrow.write(node, inputs, self._checked(node, result))
        except CompileError:
            raise
        except Exception as error:
            text = f"{op_name} '{node.name}' could not be imported: {last_line(error)}"
            raise CompileError(text) from error

    def _converted(self, node: ir.Node, op_name, inputs, attrs, opset):
        convert = CONVERTERS.get((node.domain, op_name))
        if convert is not None:
            result = convert(self, node, inputs)
            if result is not None:
                return self.bb.normalize(result)
        if node.domain not in ("", "ai.onnx"):
            raise CompileError(
                f"{node.domain}::{op_name} '{node.name}' has no kernel; expand its function first"
            )
        return super()._convert_operator(op_name, inputs, attrs, opset)

    def _checked(self, node: ir.Node, result):
        """``result`` with the very type that ONNX gives each output of ``node``."""
        parts = list(result.fields) if isinstance(result, relax.Tuple) else [result]
        for index, (part, value) in enumerate(zip(parts, node.outputs, strict=False)):
            if not isinstance(part.ty, relax.TensorType) or value.shape is None:
                continue
            shape, wanted = [int(d) for d in part.ty.shape], [int(d) for d in value.shape]
            dtype = str(value.dtype.numpy())
            if str(part.ty.dtype) != dtype or prod(shape) != prod(wanted):
                raise CompileError(
                    f"{node.op_type} '{node.name}' was imported as {part.ty.dtype}{shape}, "
                    f"ONNX says {dtype}{wanted}; this is a bug in sparsec"
                )
            if shape != wanted:  # unit axes that the importer adds or drops
                parts[index] = self.bb.emit(relax.op.reshape(part, wanted))
        return relax.Tuple(parts) if isinstance(result, relax.Tuple) else parts[0]

    # What converters use --------------------------------------------------------------------------

    def kernel(self, name: str, prim_func, args, shape, dtype="float32"):
        """A call of ``prim_func``; ``shape`` may be a list of shapes for several outputs."""
        prim_func = prim_func.without_attr("global_symbol")
        var = self.bb.add_func(prim_func, name)
        if shape and isinstance(shape[0], (list, tuple)):
            dtypes = dtype if isinstance(dtype, (list, tuple)) else [dtype] * len(shape)
            out = [relax.TensorType(s, d) for s, d in zip(shape, dtypes, strict=True)]
        else:
            out = relax.TensorType(shape, dtype)
        return self.bb.emit(relax.call_tir(var, args, out))

    def expression(self, value: ir.Value):
        """The Relax expression of an ONNX value that has been converted."""
        return self._nodes[value.name]

    def weight(self, array: np.ndarray, node: ir.Node):
        """A constant that belongs to ``node``."""
        constant = relax.const(np.ascontiguousarray(array), str(array.dtype))
        self.labels[address(constant.value)] = node.name
        return constant

    def forget(self, value: ir.Value) -> None:
        """Give up the constant made of the initializer ``value``; who asks again gets a new one."""
        self._nodes.pop(value.name, None)
