"""The models that are measured, and where they are from."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

import zoo  # noqa: E402

# In the order of their size, so that a run that is cut short has measured the most models.
ZOO = (
    "mlp",
    "lenet",
    "lstm_tagger",
    "transformer_encoder",
    "mobilenet_v2",
    "resnet18",
    "unet",
    "minilm",
    "vit_s16",
    "resnet50",
    "gpt2_decode",
    "bert",
    "gpt2_prefill",
)
PRUNED = "nm{n=2,m=4,block=32}"  # the default pattern to prune to
UNPRUNED = ("lenet", "lstm_tagger", "mobilenet_v2")  # they have hardly a layer to prune


@dataclass(frozen=True)
class Subject:
    """A model to measure: ``path()`` gives its ONNX file, ``passes`` is what compile is told."""

    name: str
    source: str
    variant: str
    passes: str
    path: Callable[[], Path]


def subjects() -> Iterator[Subject]:
    """Every model that is there, dense before pruned."""
    digits = ROOT / "examples" / "digits"
    yield Subject("digits", "demo", "dense", "", lambda: digits / "dense.onnx")
    yield Subject("digits", "demo", "2:4x16", "", lambda: digits / "sparse.onnx")
    folder = Path(os.environ.get("SPARSEC_MODELS", ROOT.parent / "shared" / "models"))
    for file in sorted(folder.glob("*.onnx")):
        if "int8" not in file.name:
            yield Subject(file.stem, "trained", "dense", "", lambda file=file: file)
    for name in ZOO:
        if name == "minilm" and zoo.minilm_folder() is None:
            continue
        source = "trained" if name == "minilm" else "zoo"
        yield Subject(name, source, "dense", "", lambda name=name: zoo.export(name))
        if name not in UNPRUNED:
            yield Subject(name, source, "2:4x32", PRUNED, lambda name=name: zoo.export(name))
