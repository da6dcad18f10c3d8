"""What torch does with the same problems: cuBLAS, cuSPARSELt and CUTLASS, its own kernels."""

import torch


def seconds(problem: dict) -> dict[str, float]:
    """Seconds of whatever torch has for ``problem``, by name; what it refuses is left out."""
    return _PEERS[problem["op"]](problem)


def _timed(run) -> float:
    for _ in range(3):
        run()
    # As a graph, so that it is the GPU's time and not Python's.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(20):
            run()
    times = []
    for _ in range(5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / 20)
    return sorted(times)[2]


def _tensor_gemm(problem: dict) -> dict[str, float]:
    x = torch.randn(problem["m"], problem["k"], device="cuda", dtype=torch.float16)
    weight = torch.randn(problem["n"], problem["k"], device="cuda", dtype=torch.float16)
    found = {"cublas": _timed(lambda: torch.nn.functional.linear(x, weight))}
    if problem["sparse"]:
        keep = torch.tensor([1, 1, 0, 0], device="cuda", dtype=torch.float16).repeat(problem["k"] // 4)
        for backend in ("cusparselt", "cutlass"):
            torch.sparse.SparseSemiStructuredTensor._FORCE_CUTLASS = backend == "cutlass"
            try:
                sparse = torch.sparse.to_sparse_semi_structured(weight * keep)
                found[backend] = _timed(lambda sparse=sparse: torch.nn.functional.linear(x, sparse))
            except (RuntimeError, NotImplementedError) as error:
                print(f"torch, {backend}, {problem['m']} rows: {str(error).splitlines()[0]}")
    return found


def _gemm(problem: dict) -> dict[str, float]:
    torch.backends.cuda.matmul.allow_tf32 = False
    x = torch.randn(problem["m"], problem["k"], device="cuda")
    weight = torch.randn(problem["n"], problem["k"], device="cuda")
    return {"cublas": _timed(lambda: torch.nn.functional.linear(x, weight))}


def _rows(problem: dict) -> dict[str, float]:
    x = torch.randn(problem["shape"], device="cuda")
    return {"torch_softmax": _timed(lambda: torch.softmax(x, -1))}


def _attention(problem: dict) -> dict[str, float]:
    heads, m, n, d = (problem[name] for name in ("heads", "m", "n", "d"))
    dtype = getattr(torch, problem["half"] or "float32")
    q, k, v = (torch.randn(1, heads, rows, d, device="cuda", dtype=dtype) for rows in (m, n, n))
    if problem["normaliser"] == "softmax":
        return {"torch_sdpa": _timed(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v))}
    return {"torch_eager": _timed(lambda: _sparsemax(q @ k.transpose(-1, -2) * d**-0.5) @ v)}


def _sparsemax(x: torch.Tensor) -> torch.Tensor:
    """By sorting, as in the entmax package (Martins and Astudillo 2016, algorithm 1)."""
    x = x - x.amax(-1, keepdim=True)
    z = torch.sort(x, dim=-1, descending=True).values
    total = z.cumsum(-1) - 1
    rank = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
    support = (rank * z > total).sum(-1, keepdim=True)
    return torch.clamp(x - total.gather(-1, support - 1) / support, min=0)


_PEERS = {
    "tensor_gemm": _tensor_gemm,
    "gemm": _gemm,
    "softmax": _rows,
    "sparsemax": _rows,
    "entmax": _rows,
    "attention": _attention,
}
