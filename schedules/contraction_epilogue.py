"""What follows a contraction in a fused function, as one expression per output.

FuseTIR leaves a chain of elementwise blocks behind the anchor.  ``extract`` inlines them: every output
becomes an expression over the output coordinates and the anchor's value, which a kernel evaluates on its
registers.
"""

from dataclasses import dataclass

import tvm_ffi
from tvm import ir, tirx

from sparsec.schedules import tir


@dataclass(frozen=True)
class Epilogue:
    """``outputs[i] = (buffer, value)``, value over ``coords`` and ``anchor``."""

    coords: list
    anchor: tir.Expr
    outputs: list[tuple[tir.Buffer, tir.Expr]]

    def stores(self, index: list, anchor: tir.Expr) -> list[tir.Stmt]:
        """The stores of one output element at ``index``, given the anchor's value there.

        ``staging`` is written last: until then the value may have to be read from it.
        """
        at = dict(zip(self.coords, index, strict=True))
        at[self.anchor] = anchor
        last = self.staging
        ordered = sorted(self.outputs, key=lambda output: last is not None and output[0].same_as(last))
        return [tirx.BufferStore(buffer, tir.rewrite(value, at), index) for buffer, value in ordered]

    def prefetches(self, index: list) -> list[tir.Stmt]:
        """Asks for the lines of everything of the output's shape that ``stores`` will touch at ``index``."""
        shape = tir.shape_of(self.outputs[0][0])
        touched = [buffer for buffer, _ in self.outputs]

        def visit(node):
            if tir.shape_of(node.source) == shape and not any(node.source.same_as(b) for b in touched):
                touched.append(node.source)

        for _, value in self.outputs:
            tvm_ffi.structural_walk(value, (tir.TensorLoad, visit))
        return [tir.prefetch(buffer, *index, near=True) for buffer in touched]

    @property
    def cost(self) -> int:
        """Nodes of the expressions: how much code one evaluation takes."""
        count = 0

        def visit(_):
            nonlocal count
            count += 1

        for _, value in self.outputs:
            tvm_ffi.structural_walk(value, (ir.Expr, visit))
        return count

    @property
    def staging(self) -> tir.Buffer | None:
        """An output that can hold the raw value until the epilogue runs, if there is one."""
        for buffer, _ in self.outputs:
            if tir.dtype_of(buffer) == tir.dtype_of(self.anchor):
                return buffer
        return None


def extract(func: tirx.PrimFunc, anchor: tir.Block) -> Epilogue | str:
    """The epilogue of ``func`` behind ``anchor``, or the reason why a kernel cannot take it."""
    result = anchor.writes[0].source
    shape = tir.shape_of(result)
    coords = [tir.var(f"c{axis}") for axis in range(len(shape))]
    value = tirx.Var("anchor", tir.dtype_of(result))
    known = {result: (coords, value, True)}
    try:
        chain = tir.blocks(func.body)
    except TypeError as error:
        return str(error)
    for block in chain:
        if block.name_hint == anchor.name_hint:
            continue
        inlined = _inline(block, known, coords, shape)
        if isinstance(inlined, str):
            return f"{block.name_hint}: {inlined}"
    outputs = [(b, known[b][1]) for b in func.params if b in known]
    for buffer, _ in outputs:
        if not known[buffer][2]:
            return f"output {buffer.name} does not depend on the contraction"
    if not outputs:
        return "no output is computed from the contraction"
    return Epilogue(coords, value, outputs)


def _inline(block: tir.Block, known: dict, coords: list, shape: tuple[int, ...]) -> str | None:
    """Adds what ``block`` computes to ``known``; the reason where it is not elementwise."""
    store = block.body
    if not isinstance(store, tirx.BufferStore) or block.init is not None:
        return "not one plain store"
    own = shape == tir.shape_of(store.buffer)
    names = coords if own else [tir.var(f"i{axis}") for axis in range(len(store.indices))]
    rename = {}
    for axis, index in enumerate(store.indices):
        if isinstance(index, ir.Var):
            rename[index] = names[axis]
        elif not _is_zero(index):
            return "its store is not at the block's own coordinates"
    if len(rename) < sum(1 for i in store.indices if isinstance(i, ir.Var)):
        return "its store repeats a coordinate"
    for iter_var in block.iter_vars:
        if iter_var.var not in rename:
            if int(iter_var.dom.extent) != 1:
                return "it has a loop that its store does not name"
            rename[iter_var.var] = tir.i64(0)
    touched = False
    problem = None

    def on_load(node):
        nonlocal touched, problem
        if node.source not in known:
            return None
        at, value, anchored = known[node.source]
        if not anchored:
            return tir.rewrite(value, dict(zip(at, node.indices, strict=True)))
        touched = True
        dims = tir.shape_of(node.source)
        if not own or not all(
            _same(i, c) or d == 1 and _is_zero(i) for i, c, d in zip(node.indices, coords, dims, strict=True)
        ):
            problem = "it reads the contraction at other coordinates"
        return value

    value = tir.rewrite(store.value, rename, on_load)
    if problem:
        return problem
    known[store.buffer] = (names, value, touched)
    return None


def _same(a, b) -> bool:
    return isinstance(a, ir.Var) and a.same_as(b)


def _is_zero(index) -> bool:
    return isinstance(index, tirx.IntImm) and int(index.value) == 0
