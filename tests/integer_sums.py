"""Operands of int8 kernels, and what they must compute: sums in int64."""

import numpy as np

from sparsec.schedules.layout import DENSE

EXTREMES = np.array([0, 255], np.uint8), np.array([-128, 127], np.int8)


def operands(rng, x_shape, w_shape, pattern=DENSE, extreme=False):
    """uint8 activations and an int8 weight ``[O, ..., C]`` with the pattern."""
    if extreme:
        x, w = (rng.choice(values, shape) for values, shape in zip(EXTREMES, (x_shape, w_shape), strict=True))
    else:
        x, w = rng.integers(0, 256, x_shape, np.uint8), rng.integers(-128, 128, w_shape, np.int8)
    flat = w.reshape(w_shape[0], -1, w_shape[-1])
    for top in range(0, w_shape[0], pattern.block):
        for tap in range(flat.shape[1]):
            for left in range(0, w_shape[-1] - pattern.m + 1, pattern.m):
                dropped = left + rng.permutation(pattern.m)[pattern.n :]
                flat[top : top + pattern.block, tap, dropped] = 0
    return x, w


def convolved(spec, x, w):
    """Sums over the window in int64, the input padded with the zero point; ``w [O, k_h, k_w, C/groups]``."""
    top, left, bottom, right = spec.pads
    x = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=spec.zero)
    groups, y = spec.in_c // w.shape[-1], np.zeros(spec.y_shape, np.int64)
    for g in range(groups):
        own, read = (slice(g * c // groups, (g + 1) * c // groups) for c in (spec.out_c, spec.in_c))
        for p, q in np.ndindex(spec.k_h, spec.k_w):
            rows, columns = (
                slice(at * d, at * d + (out - 1) * s + 1, s)
                for at, d, out, s in zip(
                    (p, q), spec.dilations, (spec.out_h, spec.out_w), spec.strides, strict=True
                )
            )
            y[..., own] += x[:, rows, columns, read].astype(np.int64) @ w[own, p, q].T.astype(np.int64)
    return y
