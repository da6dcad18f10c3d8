"""From the lowered module to the static plan: one walk over ``main``, then offsets for its buffers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import numpy as np
import tvm
from tvm import te

from sparsec.compiler.errors import CompileError
from sparsec.compiler.memory import Lifetime, aligned, assign_offsets
from sparsec.compiler.plan import Plan, Port, State, Step, TensorRef


@dataclass(eq=False)
class _Buffer:
    """A tensor's memory while the plan is being made; ``where`` is settled at the end for the arena."""

    space: str
    where: int
    size: int
    first: int = -1
    last: int = -1


@dataclass(frozen=True)
class _View:
    buffer: _Buffer
    shape: tuple[int, ...]
    dtype: str


class Weights:
    """The content of ``weights.bin``: each distinct array once, at an aligned offset."""

    def __init__(self):
        self.content = bytearray()
        self.seen: dict[bytes, int] = {}

    def add(self, array: np.ndarray) -> int:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        key = hashlib.sha256(data).digest()
        if key not in self.seen:
            self.seen[key] = len(self.content)
            self.content += memoryview(data)
            self.content += bytes(aligned(data.size) - data.size)
        return self.seen[key]


def make_plan(
    mod: tvm.IRModule,
    inputs: tuple[Port, ...],
    outputs: tuple[Port, ...],
    labels: dict[int, str],
    states: Mapping[str, str] | None = None,
    weights: Weights | None = None,
) -> tuple[Plan, tvm.IRModule]:
    """The plan of ``mod``'s ``main``, and ``mod`` with the copies added that outputs may need.

    ``states``: inputs that an output feeds in the next run, input -> output; neither is a port of the plan.

    ``labels`` maps the address of a weight's data to the ONNX node that owns it; a step that reads
    such a weight is labelled with the node's name, any other with its kernel's.  Plans that are given the
    same ``weights`` share them, and each array in them is there once.
    """
    return _Planner(mod, inputs, outputs, labels, dict(states or {}), weights or Weights()).plan()


class _Planner:
    def __init__(self, mod, inputs, outputs, labels, states, weights):
        self.mod, self.labels = mod, labels
        self.inputs, self.past = _sides(inputs, "input", list(states), "past")
        self.outputs, self.present = _sides(outputs, "output", list(states.values()), "present")
        by_name = {port.name: port for port in inputs}
        self.states = tuple(State(by_name[name], output) for name, output in states.items())
        self.weights = weights
        self.arena: list[_Buffer] = []
        self.calls: list[tuple[str, list[_View], str]] = []
        self.values: dict = {}
        self.functions = {gv.name_hint: func for gv, func in mod.functions.items()}

    def plan(self) -> tuple[Plan, tvm.IRModule]:
        main = self.functions["main"]
        for index, param in enumerate(main.params):
            shape, dtype = tensor_type(param.ty)
            self.values[param] = _View(_Buffer(*self.past[index], nbytes(shape, dtype)), shape, dtype)
        for block in main.body.blocks:
            for binding in block.bindings:
                self.values[binding.var] = self.evaluate(binding.value, binding.var)
        result = self.evaluate(main.body.body, None)
        self.bind_outputs(result if isinstance(result, tuple) else (result,))
        lifetimes = [Lifetime(b.size, b.first, b.last) for b in self.arena]
        offsets, arena_size = assign_offsets(lifetimes)
        for buffer, offset in zip(self.arena, offsets, strict=True):
            buffer.where = offset
        steps = tuple(
            Step(
                symbol,
                tuple(TensorRef(v.buffer.space, v.buffer.where, v.shape, v.dtype) for v in views),
                label,
            )
            for symbol, views, label in self.calls
        )
        used = {symbol for symbol, _, _ in self.calls}
        kernels = {
            name: func.with_attr("global_symbol", name)
            for name, func in self.functions.items()
            if name in used
        }
        plan = Plan(self.inputs, self.outputs, steps, arena_size, self.weights.content, self.states)
        return plan, tvm.IRModule(kernels)

    def evaluate(self, expr, var):
        """What ``expr`` is: a view, or a tuple of views."""
        kind = type(expr).__name__
        if kind in ("Var", "DataflowVar"):
            return self.values[expr]
        if kind == "GenericConst":
            return self.constant(expr)
        if kind == "Tuple":
            return tuple(self.evaluate(field, None) for field in expr.fields)
        if kind == "TupleGetItem":
            return self.evaluate(expr.tuple_value, None)[expr.index]
        if kind == "Call" and expr.op.name == "relax.reshape":
            source = self.evaluate(expr.args[0], None)
            shape, dtype = tensor_type(var.ty)
            return _View(source.buffer, shape, dtype)
        if kind == "Call" and expr.op.name == "relax.call_tir":
            return self.call(expr, var)
        name = expr.op.name if kind == "Call" else kind
        raise CompileError(f"the graph still holds '{name}' after lowering; this is a bug in sparsec")

    def constant(self, expr) -> _View:
        array = np.from_dlpack(expr.value) if str(expr.value.dtype) != "bool" else expr.value.numpy()
        shape, dtype = tuple(array.shape), str(array.dtype)
        return _View(_Buffer("weight", self.weights.add(array), array.nbytes), shape, dtype)

    def call(self, expr, var):
        symbol = expr.args[0].name_hint
        args = [self.evaluate(field, None) for field in expr.args[1].fields]
        outs = var.ty.fields if hasattr(var.ty, "fields") else [var.ty]
        results = []
        for out in outs:
            shape, dtype = tensor_type(out)
            buffer = _Buffer("arena", 0, nbytes(shape, dtype))
            self.arena.append(buffer)
            results.append(_View(buffer, shape, dtype))
        self.step(symbol, args + results, self.label(expr, symbol))
        return tuple(results) if hasattr(var.ty, "fields") else results[0]

    def step(self, symbol: str, views: list[_View], label: str) -> None:
        now = len(self.calls)
        params = self.functions[symbol].params
        shaped = []
        for view, param in zip(views, params, strict=True):
            shape = tuple(int(d) for d in param.shape)
            shaped.append(_View(view.buffer, shape, view.dtype))
            view.buffer.first = now if view.buffer.first < 0 else view.buffer.first
            view.buffer.last = now
        self.calls.append((symbol, shaped, label))

    def label(self, expr, symbol: str) -> str:
        for field in expr.args[1].fields:
            if type(field).__name__ == "GenericConst":
                name = self.labels.get(address(field.value))
                if name is not None:
                    return name
        return symbol

    def bind_outputs(self, results: tuple[_View, ...]) -> None:
        """Let each output's producer write to the caller's buffer, or copy where that cannot be."""
        for index, view in enumerate(results):
            if view.buffer.space != "arena":  # an input, a weight or an output that was given out already
                copy = _View(_Buffer("arena", 0, view.buffer.size), view.shape, view.dtype)
                self.arena.append(copy.buffer)
                self.step(self.copy_kernel(view), [view, copy], "copy to output")
                view = copy
            view.buffer.space, view.buffer.where = self.present[index]
            self.arena.remove(view.buffer)

    def copy_kernel(self, view: _View) -> str:
        name = f"copy_{view.dtype}_{'x'.join(map(str, view.shape)) or 'scalar'}"
        if name not in self.functions:
            source = te.placeholder(view.shape, view.dtype, name="source")
            target = te.compute(view.shape, lambda *i: source(*i), name="target")
            self.functions[name] = te.create_prim_func([source, target]).with_attr("tirx.noalias", True)
        return name


def _sides(
    ports: tuple[Port, ...], space: str, states: list[str], state_space: str
) -> tuple[tuple[Port, ...], list[tuple[str, int]]]:
    """The ports that are no states, and the (space, index) of each port, states or not."""
    plain = tuple(port for port in ports if port.name not in states)
    places = [
        (state_space, states.index(port.name)) if port.name in states else (space, plain.index(port))
        for port in ports
    ]
    return plain, places


def address(tensor) -> int:
    """The address of a TVM tensor's data, which identifies a constant through every pass."""
    return tensor.numpy().ctypes.data if str(tensor.dtype) == "bool" else np.from_dlpack(tensor).ctypes.data


def tensor_type(ty) -> tuple[tuple[int, ...], str]:
    return tuple(int(d) for d in ty.shape), str(ty.dtype)


def nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return prod(shape) * np.dtype(dtype).itemsize
