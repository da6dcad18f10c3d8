"""Give every input a static shape: what the user said, what the model says, 1 for a leading batch.

Dims are solved by name, so two inputs that share ``N`` get the same size, and an arithmetic dim such as
``2*seq + 1`` (torch writes them) follows from ``seq``.
"""

import ast
import difflib

import onnx_ir as ir

from sparsec.compiler.ingest.errors import IngestError, quoted

_ANONYMOUS = {"", "?", "-1", "0", "None", "none", "unk"}  # names that exporters write for "no name"
_MAX_SIZE = 2**31 - 1
_OPERATORS = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // b,
    ast.Div: lambda a, b: a // b,
}

Dim = int | str | None


def source_dims(value: ir.Value) -> list[Dim] | None:
    """The dims as the model declares them: a size, a name, or None; None altogether if nothing is said.

    Sizes below 1 mean "unknown": old exporters wrote 0 and -1 for a dim that they did not know.
    """
    if value.shape is None:
        return None
    dims: list[Dim] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim if dim > 0 else None)
        else:
            name = (dim.value or "").strip()
            dims.append(None if name in _ANONYMOUS else name)
    return dims


def freeze(model: ir.Model, shapes: dict[str, tuple], dims: dict[str, int], log) -> None:
    """Set the shape of every graph input of ``model``; see ``sparsec.compiler.ingest.ingest``."""
    inputs = {value.name: value for value in model.graph.inputs}
    declared = {name: source_dims(value) for name, value in inputs.items()}
    known = _check_names(inputs, declared, shapes, dims)
    for name, shape in shapes.items():
        _bind_shape(name, declared[name], shape, known)
    _assume_batch(declared, shapes, known, log)
    wanted: list[str] = []
    for name, value in inputs.items():
        shape = shapes.get(name) or _resolve(name, declared[name], known, wanted)
        if shape is not None:
            value.shape = ir.Shape(shape)
    if wanted:
        raise IngestError("sizes are missing: " + "; ".join(dict.fromkeys(wanted)))


def solve(dims: list[Dim] | None, known: dict[str, int]) -> list[int] | None:
    """``dims`` as sizes, or None where one of them does not follow from ``known``."""
    if dims is None:
        return None
    sizes = [dim if isinstance(dim, int) else _value(dim, known) for dim in dims]
    return None if None in sizes else sizes


def symbols(name: str) -> set[str]:
    """The names in a symbolic dim: ``{'seq'}`` for ``2*seq + 1``; the dim itself where it is no formula."""
    tree = _parse(name)
    if tree is None:
        return {name}
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} or {name}


def did_you_mean(name: str, known) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f" Did you mean {quoted(close[0])}?" if close else ""


def _check_names(inputs, declared, shapes, dims) -> dict[str, int]:
    for name, shape in shapes.items():
        if name not in inputs:
            listed = ", ".join(quoted(n) for n in inputs) or "none"
            raise IngestError(
                f"--shape {name}: the model has no input of that name; its inputs: {listed}."
                + did_you_mean(name, inputs)
            )
        if any(type(size) is not int or not 1 <= size <= _MAX_SIZE for size in shape):
            raise IngestError(
                f"--shape {name}: sizes must be whole numbers from 1 to {_MAX_SIZE}, not {tuple(shape)}"
            )
    names = sorted({s for d in declared.values() for n in d or () if isinstance(n, str) for s in symbols(n)})
    for name, size in dims.items():
        if name not in names:
            listed = ", ".join(quoted(n) for n in names)
            raise IngestError(
                f"--dim {name}: the inputs have no symbolic dim of that name; "
                + (f"known: {listed}." if names else "all their sizes are fixed.")
                + did_you_mean(name, names)
            )
        if type(size) is not int or not 1 <= size <= _MAX_SIZE:
            raise IngestError(
                f"--dim {name}: the size must be a whole number from 1 to {_MAX_SIZE}, not {size!r}"
            )
    return dict(dims)


def _bind_shape(name: str, declared: list[Dim] | None, shape: tuple, known: dict[str, int]) -> None:
    if declared is None:
        return
    shown = "x".join(str(d if d is not None else "?") for d in declared) or "(a scalar)"
    if len(shape) != len(declared):
        raise IngestError(
            f"--shape {name}: {len(shape)} sizes were given, the model declares {len(declared)}: {shown}"
        )
    for axis, (dim, size) in enumerate(zip(declared, shape, strict=True)):
        if isinstance(dim, int) and dim != size:
            raise IngestError(
                f"--shape {name}: axis {axis} is fixed to {dim} by the model ({shown}), not {size}"
            )
        if isinstance(dim, str) and symbols(dim) == {dim} and known.setdefault(dim, size) != size:
            raise IngestError(
                f"--shape {name}: axis {axis} is dim {quoted(dim)}, which is {known[dim]} elsewhere, "
                f"not {size}; give it one size"
            )
    for axis, (dim, size) in enumerate(zip(declared, shape, strict=True)):
        if isinstance(dim, str) and (value := _value(dim, known)) not in (None, size):
            raise IngestError(f"--shape {name}: axis {axis} is {quoted(dim)}, that is {value}, not {size}")


def _assume_batch(declared, shapes, known: dict[str, int], log) -> None:
    """Bind to 1 each name that occurs as a leading dim only; one that occurs elsewhere, too, is asked for."""
    elsewhere = {
        s for d in declared.values() for n in (d or ())[1:] if isinstance(n, str) for s in symbols(n)
    }  # fmt: skip
    for name, dims in declared.items():
        if not dims or name in shapes:
            continue
        first = dims[0]
        if first is None:
            log(f"input {quoted(name)}: axis 0 has no size; assuming 1 (--shape {name}=... sets it)")
        elif isinstance(first, str):
            for symbol in sorted(symbols(first) - known.keys() - elsewhere):
                log(
                    f"input {quoted(name)}: axis 0 is {quoted(symbol)}; "
                    f"assuming {symbol}=1 (--dim {symbol}=N sets it)"
                )
                known[symbol] = 1


def _resolve(
    name: str, declared: list[Dim] | None, known: dict[str, int], wanted: list[str]
) -> list[int] | None:
    if declared is None:
        wanted.append(
            f"input {quoted(name)} declares no shape at all: give --shape {name}=1x3x224x224 (its own sizes)"
        )
        return None
    sizes: list[int] = []
    missing = len(wanted)
    for axis, dim in enumerate(declared):
        size = dim if isinstance(dim, int) else _value(dim, known)
        if size is None and dim is None and axis == 0:
            size = 1
        if size is None and dim is None:
            example = "x".join(
                str(d if isinstance(d, int) else 1 if i == 0 else 128) for i, d in enumerate(declared)
            )
            wanted.append(f"input {quoted(name)} axis {axis} has no size: give --shape {name}={example}")
        elif size is None:
            options = " ".join(f"--dim {s}=128" for s in sorted(symbols(dim) - known.keys()))
            wanted.append(f"input {quoted(name)} axis {axis} is {quoted(dim)}: give {options}")
        elif not 1 <= size <= _MAX_SIZE:
            wanted.append(
                f"input {quoted(name)} axis {axis} is {quoted(dim)}, that would be {size}: give a size >= 1"
            )
        else:
            sizes.append(size)
    return sizes if len(wanted) == missing else None


def _value(dim: Dim, known: dict[str, int]) -> int | None:
    if not isinstance(dim, str):
        return dim
    if dim in known:
        return known[dim]
    tree = _parse(dim)
    try:
        return None if tree is None else _evaluate(tree.body, known)
    except (KeyError, ZeroDivisionError):
        return None


def _parse(text: str) -> ast.Expression | None:
    """``text`` as arithmetic on names, or None: any other dim name is only a name."""
    if len(text) > 200:
        return None
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    allowed = (ast.Expression, ast.BinOp, ast.Name, ast.Load, ast.Constant, *_OPERATORS)
    for node in ast.walk(tree):
        if not isinstance(node, allowed) or (isinstance(node, ast.Constant) and type(node.value) is not int):
            return None
    return tree


def _evaluate(node: ast.expr, known: dict[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return known[node.id]
    return _OPERATORS[type(node.op)](_evaluate(node.left, known), _evaluate(node.right, known))
