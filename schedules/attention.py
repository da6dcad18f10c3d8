"""Attention: the spec and the definition.

    Y[*b, i, :] = sum_j guard(P[*b, i, j]) V[*b, j, :],   P[*b, i, :] = normaliser(score(S[*b, i, :]))
    S[*b, i, j] = sum_d Q[*b, i, d] K[*b, j, d]

``score`` is what the graph does to the product, element by element: scale, mask, cap, rounding.  ``guard`` is
what it does to P: for rows without a key, or to quantise it.  (Vaswani et al., "Attention Is All You Need",
2017, eq. 1, with any normaliser.)

Of bytes, Q, K, P and V are integers: uint8 less their zero points.  Both products are exact, and Y is the
second one times a factor.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import prod

from tvm import te, tirx

from sparsec.schedules import entmax, math, quantise, rows, softmax, sparsemax, tir
from sparsec.schedules.batch_matmul import stored
from sparsec.schedules.halves import BFLOAT16, HALVES

SPEC = "sparsec.attention"
NORMALISERS = ("softmax", "sparsemax", "entmax")

#: What ``score`` and ``guard`` may be made of: the ONNX operator of that name on float32, or what it takes to
#: quantise: ``x`` within two bounds, ``x`` over a number whose reciprocal is the last argument, rounded.
SCORE_OPS = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": lambda a, b: a / b,
    "Where": lambda c, a, b: tirx.Select(c, a, b),
    "Tanh": lambda a: tirx.tanh(a),
    "IsNaN": lambda a: tirx.isnan(a),
    "Within": math.within,
    "Quotient": math.quotient,
    "Nearest": quantise.nearest,
}
#: The first ``numbers`` of an attention of bytes: zero points, and the factor of Y.
ZERO, FACTOR = {"q": 0, "k": 1, "p": 2, "v": 3}, 4
HEAD = 5


@dataclass(frozen=True)
class Strided:
    """A tensor in a flat buffer of ``size`` elements: element ``i`` lies at ``offset + sum(i * strides)``.

    A stride is 0 along an axis that is broadcast.
    """

    size: int
    offset: int
    strides: tuple[int, ...]
    dtype: str = "float32"

    @property
    def bytes(self) -> int:
        """Of an element."""
        return 2 if self.dtype == "uint16" else 4

    def at(self, index) -> tir.Expr:
        place = tir.i64(self.offset)
        for i, stride in zip(index, self.strides, strict=True):
            if stride:
                place = place + i * tir.i64(stride)
        return place


@dataclass(frozen=True)
class Attention:
    """``m`` queries and ``n`` keys of ``d`` values each, ``e`` values to each key, for each of ``batch``.

    ``q``, ``k`` and ``v`` say where element ``[*batch, row, column]`` lies: float32, or as uint16 the bits of
    ``half``, and then a kernel may round P, too, or uint8, and then ``guard`` gives the integers that P is.
    The result, float32 or of ``half``, as ``y_dtype`` says, is stored with its axes in ``y_order``, as in
    ``BatchMatmul``.  ``score`` and ``guard`` are expressions: "S" for the value, a number,
    ``("operand", i)`` for ``operands[i]`` at ``[*batch, i, j]``, ``("number", i)`` for that one of so many
    ``numbers``, or ``(op, *arguments)`` with ``op`` of ``SCORE_OPS``.  An operand of ``guard`` is the same
    for all keys: its last stride is 0.  ``alpha`` is that of entmax.
    """

    batch: tuple[int, ...]
    m: int
    n: int
    d: int
    e: int
    q: Strided
    k: Strided
    v: Strided
    normaliser: str = "softmax"
    score: object = "S"
    guard: object = "S"
    operands: tuple[Strided, ...] = ()
    y_order: tuple[int, ...] = ()
    alpha: float = 2.0
    numbers: int = 0
    half: str = BFLOAT16.name
    y_dtype: str = "float32"

    def __post_init__(self):
        if self.normaliser not in NORMALISERS:
            raise ValueError(f"Attention: required one of {NORMALISERS}, found {self.normaliser!r}")
        for name in ("q", "k", "v"):
            if len(getattr(self, name).strides) != len(self.batch) + 2:
                raise ValueError(
                    f"Attention: required {len(self.batch) + 2} strides of {name}, "
                    f"found {getattr(self, name).strides}"
                )
        if not self.q.dtype == self.k.dtype == self.v.dtype:
            raise ValueError(
                f"Attention: required one dtype of q, k and v, "
                f"found {self.q.dtype}, {self.k.dtype}, {self.v.dtype}"
            )
        if self.bytes and self.numbers < HEAD:
            raise ValueError(f"Attention: required {HEAD} numbers of bytes, found {self.numbers}")

    @property
    def bytes(self) -> bool:
        return self.q.dtype == "uint8"

    @property
    def batches(self) -> int:
        return prod(self.batch)

    @property
    def y_shape(self) -> tuple[int, ...]:
        return stored((*self.batch, self.m, self.e), self.y_order)

    @property
    def narrow(self) -> bool:
        """Whether queries, keys and values are of 16 bits."""
        return self.q.dtype == "uint16"

    def narrowed(self, half: str) -> "Attention":
        """The same of queries, keys and values that lie there as bits of ``half``."""
        places = {name: replace(getattr(self, name), dtype="uint16") for name in ("q", "k", "v")}
        return replace(self, **places, half=half)

    def stored(self, value: tir.Expr) -> tir.Expr:
        """A float32 of the result as it lies in memory."""
        return value if self.y_dtype == "float32" else HALVES[self.half].narrowed(value)

    def y_index(self, batch, i, c) -> list:
        return stored([*batch, i, c], self.y_order)

    def prim_func(self) -> tirx.PrimFunc:
        """The unscheduled function ``(q, k, v, *operands, numbers, Y)``; all but Y are flat.

        Without numbers there is no argument for them.
        """
        places = {"q": self.q, "k": self.k, "v": self.v}
        places |= {f"operand{i}": place for i, place in enumerate(self.operands)}
        flat = {
            name: te.placeholder([tir.i64(place.size)], place.dtype, name=name)
            for name, place in places.items()
        }
        if self.numbers:
            flat["numbers"] = te.placeholder([tir.i64(self.numbers)], "float32", name="numbers")
        rank = len(self.batch)
        whole = [tir.i64(extent) for extent in (*self.batch, self.m, self.n)]
        d = te.reduce_axis((tir.i64(0), tir.i64(self.d)), "d")
        j = te.reduce_axis((tir.i64(0), tir.i64(self.n)), "j")

        def element(name, *index):
            stored = flat[name](places[name].at(index))
            if name in ZERO and self.bytes:
                return stored.astype("int32") - number(ZERO[name]).astype("int32")
            return HALVES[self.half].widened(stored) if places[name].dtype == "uint16" else stored

        def number(which):
            return flat["numbers"](tir.i64(which))

        def leaves(index):
            return {"operand": lambda which: element(f"operand{which}", *index), "number": number}

        product = te.compute(
            whole,
            lambda *i: te.sum(element("q", *i[:-1], d) * element("k", *i[:rank], i[-1], d), axis=[d]),
            "product",
        )
        real = lambda i: product(*i).astype("float32") if self.bytes else product(*i)  # noqa: E731
        scores = te.compute(whole, lambda *i: evaluate(self.score, real(i), leaves(i)), "scores")
        shape = (*self.batch, self.m, self.n)
        if self.normaliser == "softmax":
            share = softmax.stages("softmax", scores, shape, rank + 1)
        elif self.normaliser == "sparsemax":
            share = sparsemax.stages(scores, shape, rank + 1)
        else:
            share = entmax.stages(scores, shape, rank + 1, self.alpha)
        if self.guard != "S":
            given = share
            share = te.compute(whole, lambda *i: evaluate(self.guard, given(*i), leaves(i)), "guarded")

        def value(*at):
            order = list(self.y_order or range(rank + 2))
            *batch, i, c = [at[order.index(axis)] for axis in range(rank + 2)]
            p = share[(*batch, i, j)]
            return te.sum((p.astype("int32") if self.bytes else p) * element("v", *batch, j, c), axis=[j])

        extents = [tir.i64(extent) for extent in self.y_shape]
        y = attended = te.compute(extents, value, "attended")
        if self.bytes:
            y = te.compute(extents, lambda *i: attended(*i).astype("float32") * number(FACTOR), "scaled")
        if self.y_dtype != "float32":
            wide = y
            y = te.compute(extents, lambda *i: self.stored(wide(*i)), "rounded")
        return rows.definition("attention", [*flat.values(), y], {SPEC: json.dumps(asdict(self))})


def evaluate(tree, value: tir.Expr, leaves: dict[str, Callable[[int], tir.Expr]]) -> tir.Expr:
    """The expression ``tree`` of ``value``; ``leaves`` has elements of operands and numbers by position."""
    if tree == "S":
        return value
    if isinstance(tree, float):
        return tir.f32(tree)
    name, *args = tree
    if name in leaves:
        return leaves[name](args[0])
    return SCORE_OPS[name](*(evaluate(arg, value, leaves) for arg in args))


def spec_of(func: tirx.PrimFunc) -> Attention | None:
    """The spec of a definition; None for any other function."""
    if not rows.is_op(func, "attention"):
        return None
    fields = json.loads(str(func.attrs[SPEC]), object_hook=_tuples)
    for name in ("q", "k", "v"):
        fields[name] = Strided(**fields[name])
    fields["operands"] = tuple(Strided(**place) for place in fields["operands"])
    return Attention(**fields)


def _tuples(fields: dict) -> dict:
    return {name: _tuple(value) for name, value in fields.items()}


def _tuple(value):
    return tuple(map(_tuple, value)) if isinstance(value, list) else value
