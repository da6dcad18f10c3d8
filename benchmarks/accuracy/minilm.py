"""How near the pruned all-MiniLM-L6-v2 stays to the dense one, for each pattern and method, in one shot.

    python -m benchmarks.accuracy.minilm [--patterns 2:4 2:4x32 ...] [--methods magnitude search ...]

The linear layers of the encoder are pruned with 256 calibration texts; the score is the mean cosine between
the pruned and the dense sentence embedding on 500 others. Texts are the first paragraphs of the standard
library's doc strings, cut at 64 tokens. A method with ``-`` behind it goes without reconstruction, as its
paper has it. ``--layers attention`` prunes the 24 projections of attention alone: a tenth of the work, which
leaves time for every method. Results are added to ``benchmarks/results/accuracy.json``.
"""

import argparse
import ast
import hashlib
import sys
import sysconfig
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import torch

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.append(str(ROOT / "tests"))

from sparsec.compiler.prune import PruneRequest, prune_model  # noqa: E402
from zoo.minilm import folder, minilm  # noqa: E402

from .store import add  # noqa: E402

CALIBRATION, TEST, TOKENS, BATCH = 256, 500, 64, 16
INPUTS = ("input_ids", "attention_mask")
LAYERS = {"all": "*", "attention": "*attention*"}


def texts() -> list[str]:
    """First paragraphs of at least six words, each once, in a seeded order."""
    found = {}
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                words = (ast.get_docstring(node) or "").split("\n\n")[0].split()
                if len(words) >= 6:
                    found[" ".join(words)] = None
    return list(np.random.default_rng(0).permutation(list(found)))


def tokens(sentences: list[str], length: int | None = None) -> dict[str, np.ndarray]:
    """input_ids and attention_mask, padded to `length` or to the longest."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=length)
    encoded = tokenizer.encode_batch([str(sentence) for sentence in sentences])
    rows = ([e.ids for e in encoded], [e.attention_mask for e in encoded])
    return {name: np.array(row, np.int64) for name, row in zip(INPUTS, rows, strict=True)}


def export(path: Path) -> None:
    """MiniLM with trained weights; batch and length stay open."""
    network = minilm(small=True, batch=2)
    axes = {name: {0: "batch", 1: "length"} for name in INPUTS}
    torch.onnx.export(
        network.module,
        tuple(network.inputs.values()),
        str(path),
        input_names=INPUTS,
        output_names=network.outputs,
        dynamic_axes=axes,
        opset_version=18,
        dynamo=False,
    )


def embeddings(model: bytes, feeds: dict[str, np.ndarray]) -> np.ndarray:
    """`[sentences, 384]` of length one."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    parts = []
    for start in range(0, len(feeds["input_ids"]), BATCH):
        part = {name: array[start : start + BATCH] for name, array in feeds.items()}
        length = int(part["attention_mask"].sum(axis=1).max())
        parts += session.run(["sentence_embedding"], {n: a[:, :length] for n, a in part.items()})
    return np.concatenate(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--patterns", nargs="+", default=["2:4", "2:4x4", "2:4x16", "2:4x32"])
    parser.add_argument("--methods", nargs="+", default=["magnitude-", "sparsegpt-", "search"])
    parser.add_argument("--layers", choices=LAYERS, default="all")
    parser.add_argument("--damping", type=float)
    arguments = parser.parse_args()
    sentences = texts()
    test = tokens(sentences[CALIBRATION : CALIBRATION + TEST])
    with tempfile.TemporaryDirectory() as temporary:
        dense, calibration = Path(temporary) / "dense.onnx", Path(temporary) / "calibration.npz"
        export(dense)
        np.savez(calibration, **tokens(sentences[:CALIBRATION]))
        reference = embeddings(dense.read_bytes(), test)
        request = PruneRequest(
            "2:4", "search", str(calibration), damping=arguments.damping, layers=LAYERS[arguments.layers]
        )
        for pattern in arguments.patterns:
            for method in arguments.methods:
                model = ir.load(dense)
                start = time.process_time()
                name, reconstruct = method.removesuffix("-"), not method.endswith("-")
                asked = replace(request, pattern=pattern, method=name, reconstruct=reconstruct)
                _, layers = prune_model(model, asked, lambda line: print(f"  {line}", file=sys.stderr))
                seconds = time.process_time() - start
                pruned = embeddings(ir.to_proto(model).SerializeToString(), test)
                cosine = float((pruned * reference).sum(axis=1).mean())
                add(
                    "minilm",
                    {
                        "layers": arguments.layers,
                        "pattern": pattern,
                        "method": method,
                        "damping": arguments.damping,
                        "cosine": round(cosine, 4),
                        "pruned": len(layers),
                        "error": round(float(np.mean([layer["error_after"] for layer in layers])), 4),
                        "seconds": round(seconds),
                        "texts": hashlib.sha256("".join(sentences).encode()).hexdigest()[:12],
                    },
                )
                print(f"{pattern} {method}: cosine {cosine:.4f}, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
