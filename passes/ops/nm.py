"""MatMul, Gemm, Conv and ConvTranspose whose constant weight (the second input) has an N:M pattern.

The weight is a dense initializer that contains the zeros, so the meaning is that of the standard operator;
`n`, `m`, `block` and `scattered` are a promise about its zeros that a kernel may use. They run along the
reduction axis: the rows of MatMul's B, K of Gemm's B, the input channels of each kernel tap of a
convolution's W, within each group of a grouped one. `sparsec.passes.nm_pattern` says what the numbers mean.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from sparsec.passes.ops.base import Attribute, OpDef, function

_INT, _INTS, _FLOAT, _STRING = (
    ir.AttributeType.INT,
    ir.AttributeType.INTS,
    ir.AttributeType.FLOAT,
    ir.AttributeType.STRING,
)
PATTERN = {
    "n": Attribute(_INT, "kept positions in each group", required=True),
    "m": Attribute(_INT, "length of a group", required=True),
    "block": Attribute(_INT, "consecutive output channels that share kept positions", required=True),
    "scattered": Attribute(_INT, "1: n of m weights only on average, anywhere in the weight", 0),
}
_GEMM = {
    "alpha": Attribute(_FLOAT, "factor of the product", 1.0),
    "beta": Attribute(_FLOAT, "factor of C", 1.0),
    "transA": Attribute(_INT, "1: A is transposed", 0),
    "transB": Attribute(_INT, "1: B is transposed", 0),
}
_CONV = {
    "auto_pad": Attribute(_STRING, "as Conv's", "NOTSET"),
    "dilations": Attribute(_INTS, "as Conv's"),
    "group": Attribute(_INT, "as Conv's", 1),
    "kernel_shape": Attribute(_INTS, "as Conv's"),
    "pads": Attribute(_INTS, "as Conv's"),
    "strides": Attribute(_INTS, "as Conv's"),
}
_CONV_TRANSPOSE = {
    **_CONV,
    "output_padding": Attribute(_INTS, "as ConvTranspose's"),
    "output_shape": Attribute(_INTS, "as ConvTranspose's"),
}

# ---- meaning ------------------------------------------------------------------------------------------


def nm_matmul(a: np.ndarray, b: np.ndarray, **_: int) -> np.ndarray:
    """`a @ b` in a's dtype, summed in float64; the pattern changes nothing."""
    return (a.astype(np.float64) @ b.astype(np.float64)).astype(a.dtype)


def nm_gemm(
    a: np.ndarray,
    b: np.ndarray,
    c: np.ndarray | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    **_: int,
) -> np.ndarray:
    """`alpha * a' @ b' + beta * c` in a's dtype, summed in float64; c broadcasts into the product."""
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    y = alpha * ((a64.T if transA else a64) @ (b64.T if transB else b64))
    return (y if c is None else y + beta * c.astype(np.float64)).astype(a.dtype)


def nm_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    auto_pad: str = "NOTSET",
    dilations: tuple[int, ...] | None = None,
    group: int = 1,
    pads: tuple[int, ...] | None = None,
    strides: tuple[int, ...] | None = None,
    **_: object,
) -> np.ndarray:
    """ONNX Conv of x `[batch, in, *spatial]` by w `[out, in / group, *kernel]`, summed in float64."""
    rank = x.ndim - 2
    dilations, strides = dilations or (1,) * rank, strides or (1,) * rank
    pads = _pads(x.shape[2:], w.shape[2:], auto_pad, dilations, pads, strides)
    x64 = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *zip(pads[:rank], pads[rank:], strict=True)])
    extent = [d * (k - 1) + 1 for d, k in zip(dilations, w.shape[2:], strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(x64, extent, axis=tuple(range(2, x.ndim)))
    every = (slice(None), slice(None))
    windows = windows[
        (*every, *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    ]
    taps = tuple(range(-rank, 0))
    out = [
        np.tensordot(xg, wg.astype(np.float64), axes=[(1, *taps), (1, *taps)])
        for xg, wg in zip(np.split(windows, group, axis=1), np.split(w, group), strict=True)
    ]
    y = np.moveaxis(np.concatenate(out, axis=-1), -1, 1)
    if b is not None:
        y = y + b.astype(np.float64).reshape(-1, *(1,) * rank)
    return y.astype(x.dtype)


def nm_matmul_integer(a: np.ndarray, b: np.ndarray, a_zero=0, **_: int) -> np.ndarray:
    """`(a - a_zero) @ b` in int32."""
    return (a.astype(np.int32) - np.int32(a_zero)) @ b.astype(np.int32)


def nm_conv_integer(x: np.ndarray, w: np.ndarray, x_zero=0, **attributes: object) -> np.ndarray:
    """ONNX Conv of `x - x_zero` by w in int32; float64 sums of such products are exact."""
    centred = x.astype(np.float64) - np.float64(x_zero)
    return nm_conv(centred, w, **attributes).astype(np.int32)


def nm_conv_transpose(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None = None, group: int = 1, **attributes: object
) -> np.ndarray:
    """ONNX ConvTranspose of x `[batch, in, *spatial]` by w `[in, out / group, *kernel]`, in float64 sums."""
    steps = _transposed(x.shape[2:], w.shape[2:], **attributes)
    # What is asked for beyond the reach of the kernel stays zero.
    whole = [max(begin + size, covered) for _, _, begin, size, covered in steps]
    y = np.zeros((x.shape[0], group, w.shape[1], *whole))
    x64 = x.astype(np.float64).reshape(x.shape[0], group, -1, *x.shape[2:])
    w64 = w.astype(np.float64).reshape(group, -1, *w.shape[1:])
    for tap in np.ndindex(*w.shape[2:]):
        at = [
            slice(t * dilation, t * dilation + (size - 1) * stride + 1, stride)
            for t, size, (stride, dilation, *_) in zip(tap, x.shape[2:], steps, strict=True)
        ]
        y[(..., *at)] += np.einsum("bgc...,gco->bgo...", x64, w64[(..., *tap)])
    inside = [slice(begin, begin + size) for _, _, begin, size, _ in steps]
    y = y[(..., *inside)].reshape(x.shape[0], -1, *(size for _, _, _, size, _ in steps))
    return (y if b is None else y + b.astype(np.float64).reshape(-1, *(1,) * len(steps))).astype(x.dtype)


def _transposed(
    spatial,
    kernel,
    auto_pad="NOTSET",
    dilations=None,
    output_padding=None,
    output_shape=None,
    pads=None,
    strides=None,
    **_,
) -> list[tuple[int, int, int, int, int]]:
    """Stride, dilation, begin pad, size of the output, and how far the kernel reaches, of each axis."""
    rank, found = len(spatial), []
    for i, (size, k) in enumerate(zip(spatial, kernel, strict=True)):
        stride, dilation = (strides or (1,) * rank)[i], (dilations or (1,) * rank)[i]
        covered = stride * (size - 1) + dilation * (k - 1) + 1
        total = covered + (output_padding or (0,) * rank)[i]
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            out = output_shape[i] if output_shape else size * stride
            cut = max(0, total - out)
            begin = cut // 2 if auto_pad == "SAME_UPPER" else cut - cut // 2
        else:
            begin, end = (pads[i], pads[i + rank]) if pads else (0, 0)
            out = total - begin - end
        found.append((stride, dilation, begin, out, covered))
    return found


def _pads(spatial, kernel, auto_pad, dilations, pads, strides) -> tuple[int, ...]:
    """Begin pads, then end pads; an odd `same` pad is larger at the end (UPPER) or at the begin (LOWER)."""
    rank = len(spatial)
    if auto_pad == "NOTSET":
        return tuple(pads or (0,) * 2 * rank)
    if auto_pad == "VALID":
        return (0,) * 2 * rank
    begin, end = [], []
    for size, k, d, s in zip(spatial, kernel, dilations, strides, strict=True):
        total = max(0, (math.ceil(size / s) - 1) * s + d * (k - 1) + 1 - size)
        less, more = total // 2, total - total // 2
        begin.append(less if auto_pad == "SAME_UPPER" else more)
        end.append(more if auto_pad == "SAME_UPPER" else less)
    return (*begin, *end)


# ---- shapes -------------------------------------------------------------------------------------------

_Inferred = tuple[ir.DataType | None, ir.Shape | None]


def _attribute(node: ir.Node, name: str, default=None):
    return default if node.attributes.get(name) is None else node.attributes[name].value


def infer_matmul(node: ir.Node) -> _Inferred:
    a, b = node.inputs[0], node.inputs[1]
    if a.shape is None or b.shape is None or len(a.shape) < 2:
        return a.dtype, None
    return a.dtype, ir.Shape([*a.shape[:-1], b.shape[-1]])


def _counted(infer):
    """`infer`, of integers whose sums are int32."""
    return lambda node: (ir.DataType.INT32, infer(node)[1])


def _infer_gemm(node: ir.Node) -> _Inferred:
    a, b = node.inputs[0], node.inputs[1]
    if a.shape is None or b.shape is None:
        return a.dtype, None
    rows = a.shape[1 if _attribute(node, "transA", 0) else 0]
    return a.dtype, ir.Shape([rows, b.shape[0 if _attribute(node, "transB", 0) else 1]])


def _infer_conv(node: ir.Node) -> _Inferred:
    x, w = node.inputs[0], node.inputs[1]
    if x.shape is None or w.shape is None:
        return x.dtype, None
    rank = len(x.shape) - 2
    kernel, ones = w.shape[2:], (1,) * rank
    dilations, strides = _attribute(node, "dilations", ones), _attribute(node, "strides", ones)
    auto_pad, pads = _attribute(node, "auto_pad", "NOTSET"), _attribute(node, "pads")
    spatial: list[int | None] = []
    for i, size in enumerate(x.shape[2:]):
        if not isinstance(size, int):
            spatial.append(None)
            continue
        own = None if pads is None else (pads[i], pads[i + rank])
        axis = ((size,), (kernel[i],), auto_pad, (dilations[i],), own, (strides[i],))
        spatial.append((size + sum(_pads(*axis)) - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1)
    return x.dtype, ir.Shape([x.shape[0], w.shape[0], *spatial])


def _infer_conv_transpose(node: ir.Node) -> _Inferred:
    x, w = node.inputs[0], node.inputs[1]
    if x.shape is None or w.shape is None:
        return x.dtype, None
    given = {name: attr.value for name, attr in node.attributes.items()}
    known = [size if isinstance(size, int) else 1 for size in x.shape[2:]]
    sizes = [size for _, _, _, size, _ in _transposed(known, w.shape[2:], **given)]
    spatial = [out if isinstance(size, int) else None for size, out in zip(x.shape[2:], sizes, strict=True)]
    return x.dtype, ir.Shape([x.shape[0], w.shape[1] * _attribute(node, "group", 1), *spatial])


# ---- the table ----------------------------------------------------------------------------------------


def _op(standard: str, inputs, attributes, formula: str, reference, infer) -> OpDef:
    name = f"NM{standard}"
    names = [n for n, _ in inputs]

    def body(opset: int) -> ir.Function:
        def build(tape: ir.tape.Tape, *values: ir.Value) -> ir.Value:
            # A reference to an attribute that the node lacks and that has no default leaves it out.
            forwarded = {k: ir.RefAttr(k, k, a.type) for k, a in attributes.items()}
            return tape.op(standard, list(values), forwarded)

        return function(name, names, opset, build, {**attributes, **PATTERN})

    return OpDef(
        name=name,
        inputs=inputs,
        formula=formula,
        source=f"ONNX {standard}; N:M as in torch's and NVIDIA's 2:4 semi-structured sparsity",
        special=f"As {standard}; a kernel that skips zero weights has 0 for 0 * inf and 0 * NaN.",
        body=body,
        reference=reference,
        infer=infer,
        attributes={**attributes, **PATTERN},
    )


OPS = (
    _op(
        "MatMul",
        (("A", "[..., M, K], float"), ("B", "[K, N], constant, n:m along K")),
        {},
        "A @ B",
        nm_matmul,
        infer_matmul,
    ),
    _op(
        "Gemm",
        (
            ("A", "[M, K], float, or [K, M] with transA"),
            ("B", "[K, N], or [N, K] with transB; constant, n:m along K"),
            ("C?", "broadcasts into [M, N]"),
        ),
        _GEMM,
        "alpha * A' @ B' + beta * C",
        nm_gemm,
        _infer_gemm,
    ),
    _op(
        "Conv",
        (
            ("X", "[batch, in, spatial...], float"),
            ("W", "[out, in / group, kernel...], constant, n:m along in / group for each kernel position"),
            ("B?", "[out]"),
        ),
        _CONV,
        "the cross-correlation of X and W, plus B",
        nm_conv,
        _infer_conv,
    ),
    _op(
        "ConvTranspose",
        (
            ("X", "[batch, in, spatial...], float"),
            ("W", "[in, out / group, kernel...], constant, n:m along in / group for each kernel position"),
            ("B?", "[out]"),
        ),
        _CONV_TRANSPOSE,
        "the transposed convolution of X and W, plus B",
        nm_conv_transpose,
        _infer_conv_transpose,
    ),
    _op(
        "MatMulInteger",
        (
            ("A", "[..., M, K], uint8"),
            ("B", "[K, N], int8, constant, n:m along K"),
            ("a_zero_point?", "of A, a scalar"),
        ),
        {},
        "(A - a_zero_point) @ B in int32",
        nm_matmul_integer,
        _counted(infer_matmul),
    ),
    _op(
        "ConvInteger",
        (
            ("X", "[batch, in, spatial...], uint8"),
            ("W", "[out, in / group, kernel...], int8, constant, n:m along in / group for each position"),
            ("x_zero_point?", "of X, a scalar"),
        ),
        _CONV,
        "the cross-correlation of X - x_zero_point and W in int32",
        nm_conv_integer,
        _counted(_infer_conv),
    ),
)
