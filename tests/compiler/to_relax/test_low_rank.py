"""Sparse plus low rank against ONNX Runtime: as one product of longer rows, and as three."""

import numpy as np
import onnx
import pytest

from sparsec.compiler.to_relax.low_rank import spread

RNG = np.random.default_rng(5)
CASES = {  # name: (shape of x, outputs, rank, n, m, block)
    "one product": ((7, 32), 65, 5, 2, 4, 1),
    "shared": ((33, 16), 64, 3, 1, 4, 32),
    "batched, block of 4": ((2, 17, 24), 52, 1, 2, 4, 4),
    "a single row": ((1, 32), 129, 2, 2, 8, 16),
    "inputs in no group": ((7, 33), 67, 3, 2, 4, 1),
    "narrow": ((16, 64), 64, 7, 2, 4, 16),
}


def sparse(k, outputs, n, m, block):
    blocks, full = -(-outputs // block), k // m * m
    mask = np.ones((blocks, k), bool)
    order = np.argsort(np.argsort(RNG.random((blocks, full // m, m))))
    mask[:, :full] = (order < n).reshape(blocks, full)
    rows = np.repeat(mask, block, axis=0)[:outputs]
    return (rows * RNG.standard_normal((outputs, k))).T.astype(np.float32)


@pytest.mark.parametrize("case", CASES)
def test_the_sum_is_that_of_three_products(case, text_graph, same_as_ort):
    shape, outputs, rank, n, m, block = CASES[case]
    k = shape[-1]
    model = text_graph(f"""(float[{",".join(map(str, shape))}] x) => (y) {{
        s = MatMul(x, w)  u = MatMul(x, r)  v = MatMul(u, l)  t = Add(s, v)  c = Add(t, b)  y = Relu(c) }}""")
    weights = {
        "w": sparse(k, outputs, n, m, block),
        "r": RNG.standard_normal((k, rank)).astype(np.float32),
        "l": RNG.standard_normal((rank, outputs)).astype(np.float32),
        "b": RNG.standard_normal(outputs).astype(np.float32),
    }
    model.graph.initializer.extend(onnx.numpy_helper.from_array(a, n) for n, a in weights.items())
    found = same_as_ort(model, {"x": RNG.standard_normal(shape).astype(np.float32)})
    kernels = [step.symbol for step in found.plan.steps]
    assert len(kernels) == 3, kernels
    assert any("concat" in kernel for kernel in kernels) == (outputs >= 2 * k and k % m == 0)


@pytest.mark.parametrize(("rank", "n", "m"), [(1, 2, 4), (5, 2, 4), (4, 1, 8), (7, 3, 4)])
def test_rows_are_spread_over_groups(rank, n, m):
    rows = RNG.standard_normal((rank, 3))
    out = spread(rows, n, m)
    np.testing.assert_array_equal(out[np.any(out, axis=1)], rows)
    assert max(np.any(group, axis=1).sum() for group in out.reshape(-1, m, 3)) <= n
