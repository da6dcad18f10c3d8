"""The spellings of TVM that move between releases, and the few TIR builders that kernels are written with.

Everything here is thin: a kernel generator says ``loop``, ``vector_load``, ``rewrite`` and stays readable
when TVM renames a node.  Index arithmetic is int64 throughout, as Relax makes it; the lowering narrows it.
"""

import math
from collections.abc import Callable, Iterable

import tvm_ffi
from tvm import ir, tirx
from tvm.s_tir.stmt import SBlock, SBlockRealize

NOALIAS = "tirx.noalias"
SCHEDULED = "tirx.is_scheduled"
#: Loop annotation: its steps may run in any order, or at once.
INDEPENDENT = "sparsec.independent"
OP_PATTERN = "op_pattern"
#: Attribute of a function whose every element depends on one of each operand of the result's shape, beside
#: which it reads what is the same for all.  TVM sees only the operands of other shapes.
ELEMENTWISE = "sparsec.elementwise"
KIND_ELEMENTWISE = 0
OUT_ELEMWISE_FUSABLE = 4
OPAQUE = 8

#: TVM leaves a buffer of at most this size on the stack, below 1 kB, where its storage scope is global.
STACK_BYTES = 1023

TensorLoad = ir.TensorLoad
Expr = ir.Expr
Stmt = tirx.Stmt
Buffer = tirx.Buffer
Block = SBlock
BlockRealize = SBlockRealize


def i64(value: int) -> Expr:
    return tirx.IntImm("int64", value)


def i32(value: int) -> Expr:
    return tirx.IntImm("int32", value)


def f32(value: float) -> Expr:
    return tirx.FloatImm("float32", value)


def var(name: str) -> Expr:
    return tirx.Var(name, "int64")


def seq(stmts: Iterable[Stmt]) -> Stmt:
    stmts = list(stmts)
    return stmts[0] if len(stmts) == 1 else tirx.SeqStmt(stmts)


def nothing() -> Stmt:
    return tirx.Evaluate(i32(0))


def loop(
    name: str,
    extent,
    body: Callable[[Expr], Stmt],
    kind: str = "SERIAL",
    start=0,
    independent: bool = False,
) -> Stmt:
    """``for name in kind(start, start + extent): body(name)``; a serial loop of one step is its body.

    The loop itself starts at 0: TVM drops the start of a loop whose extent it finds to be 1.
    ``independent``: the steps need no order; a target with threads to spare may take one for each.
    """
    start = i64(start) if isinstance(start, int) else start
    if kind == "SERIAL" and isinstance(extent, int) and extent == 1:
        return body(start)
    index = var(name)
    extent = i64(extent) if isinstance(extent, int) else extent
    at = index if isinstance(start, tirx.IntImm) and int(start.value) == 0 else index + start
    notes = {INDEPENDENT: True} if independent else None
    return tirx.For(index, i64(0), extent, getattr(tirx.ForKind, kind), body(at), annotations=notes)


def vector_loop(lanes: int, body: Callable[[Expr], Stmt]) -> Stmt:
    """``body(v)`` for every lane ``v`` at once; ``lanes`` is a power of two, or LLVM falls to scalars."""
    return loop("v", lanes, body, "VECTORIZED") if lanes > 1 else body(i64(0))


def local(name: str, *shape: int, dtype: str = "float32") -> Buffer:
    """A buffer of four-byte numbers on the stack, and in registers where every index into it is constant.

    TVM allocates bigger ones than ``STACK_BYTES`` at run time, which kernels may not.
    """
    if math.prod(shape) * 4 > STACK_BYTES:
        raise ValueError(
            f"local: required at most {STACK_BYTES} bytes, found {name} of {dtype} {list(shape)}; split it"
        )
    return tirx.decl_buffer([i64(d) for d in shape], dtype, name=name)


def scratch(name: str, *shape: int, dtype: str = "float32") -> Buffer:
    """Memory of the calling thread of any size."""
    return tirx.decl_buffer([i64(extent) for extent in shape], dtype, name=name)


def alloc(buffers: Iterable[Buffer]) -> list[Stmt]:
    return [tirx.AllocBuffer(b) for b in buffers]


def shape_of(buffer: Buffer) -> tuple[int, ...]:
    return tuple(int(d) for d in buffer.ty.shape)


def dtype_of(value) -> str:
    """Element type of a buffer, or type of an expression, as text."""
    return str(value.ty.dtype)


def lanes_of(expr: Expr) -> int:
    return expr.ty.dtype.lanes


def load(buffer: Buffer, *index) -> Expr:
    return tirx.BufferLoad(buffer, list(index))


def ramp(start: Expr, lanes: int) -> Expr:
    """``start, start + 1, ...``; a vector of one lane is a scalar."""
    return tirx.Ramp(start, i64(1), lanes) if lanes > 1 else start


def vector_load(buffer: Buffer, *index, lanes: int) -> Expr:
    """``lanes`` neighbours along the last axis, from ``index`` on."""
    *outer, last = index
    return tirx.BufferLoad(buffer, [*outer, ramp(last, lanes)])


def vector_store(buffer: Buffer, value: Expr, *index, lanes: int) -> Stmt:
    *outer, last = index
    return tirx.BufferStore(buffer, value, [*outer, ramp(last, lanes)])


def broadcast(value: Expr, lanes: int) -> Expr:
    return tirx.Broadcast(value, lanes) if lanes > 1 else value


def shuffle(vector: Expr, lanes: list[int]) -> Expr:
    """The lanes of ``vector`` in the given order, repeats allowed."""
    # TVM wants at least as many lanes in as out; LLVM drops the copies.
    copies = -(-len(lanes) // lanes_of(vector))
    return tirx.Shuffle([vector] * copies, [i32(lane) for lane in lanes])


def llvm_intrinsic(name: str, dtype: str, *args: Expr) -> Expr:
    """A pure LLVM intrinsic of the target, such as a permute."""
    return tirx.call_llvm_pure_intrin(dtype, name, *args)


def prefetch(buffer: Buffer, *index, near: bool = False) -> Stmt:
    """Asks for the cache line of ``buffer[index]``; harmless out of bounds.

    ``near`` brings it into the first-level cache, else it is left in the second.
    """
    read, level, data = i32(0), i32(3 if near else 2), i32(1)
    address = tirx.address_of(load(buffer, *index))
    return tirx.Evaluate(tirx.call_intrin("void", "tirx.prefetch", address, read, level, data))


def offset(value: Expr, by) -> Expr:
    """``value + by`` where ``value`` may be a vector and ``by`` is a scalar."""
    lanes = lanes_of(value)
    by = i64(by) if isinstance(by, int) else by
    return value + broadcast(by, lanes)


def unflatten(index: Expr, dims: tuple[int, ...]) -> list[Expr]:
    """The coordinates of a row-major flat ``index`` in ``dims``; unit dims get a plain zero."""
    coords, inner = [], 1
    leading = [d for d in dims if d > 1]
    for axis in range(len(dims) - 1, -1, -1):
        if dims[axis] == 1:
            coords.append(i64(0))
            continue
        coord = index if inner == 1 else tirx.floordiv(index, i64(inner))
        if inner * dims[axis] != math.prod(leading):
            coord = tirx.floormod(coord, i64(dims[axis]))
        coords.append(coord)
        inner *= dims[axis]
    return coords[::-1]


def rewrite(
    expr: Expr, variables: dict | None = None, on_load: Callable[[TensorLoad], Expr | None] | None = None
) -> Expr:
    """``expr`` with variables replaced and buffer loads passed through ``on_load``.

    ``on_load`` sees each load after the replacement inside its indices; what it returns is final, ``None``
    keeps the load.
    """
    variables = variables or {}

    def visit_var(node, mutator):
        return variables.get(node, node)

    def visit_load(node, mutator):
        new = tirx.BufferLoad(node.source, [mutator.mutate(i) for i in node.indices])
        replaced = on_load(new) if on_load else None
        return new if replaced is None else replaced

    return tvm_ffi.structural_mutate(expr, [(TensorLoad, visit_load), (ir.Var, visit_var)])


def _is_true(condition) -> bool:
    return isinstance(condition, tirx.IntImm) and int(condition.value) == 1


def blocks(stmt: Stmt) -> list[Block]:
    """The leaf blocks of an unscheduled function, in program order (a root block is looked through)."""
    found: list[Block] = []

    def walk(node):
        if isinstance(node, BlockRealize):
            inner = node.block
            if not _is_true(node.predicate):
                raise TypeError(f"blocks: required no predicates, found one on {inner.name_hint}")
            if len(inner.iter_vars) == 0 and inner.name_hint == "root":
                walk(inner.body)
            else:
                found.append(inner)
        elif isinstance(node, tirx.SeqStmt):
            for child in node.seq:
                walk(child)
        elif isinstance(node, tirx.For):
            walk(node.body)
        else:
            raise TypeError(f"blocks: required a nest of loops and blocks, found {type(node).__name__}")

    walk(stmt)
    return found
