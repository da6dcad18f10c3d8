"""The models that are measured: where each is from, and its file and inputs for a variant and a batch size.

Files lie in a cache, `$SPARSEC_BENCH`, else `sparsec-bench-UID` in the temporary folder.  The zoo is exported
by torch's older exporter with opset 17: of all forms the one that every engine here reads.
"""

import hashlib
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .prune import VARIANTS, prune

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

import zoo  # noqa: E402

#: In the order of their size, so that a run that is cut short has measured the most models.
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
#: Hardly a layer to prune: measured dense only, except where a variant is asked for.
DENSE_ONLY = ("lenet", "lstm_tagger", "mnist", "digits", "digits_2:4x16", "mlperf_tiny_kws_fp32")


@dataclass(frozen=True)
class Subject:
    """A model; ``path`` is its ONNX file, or None for a network of the zoo."""

    name: str
    source: str
    path: Path | None = None

    def fits(self, variant: str, batch: int) -> bool:
        """Whether there is something to measure: a batch dimension, a layer to prune."""
        return (variant == "dense" or self.name not in DENSE_ONLY) and (batch == 1 or self._has_batch())

    def _has_batch(self) -> bool:
        if self.path is None:
            return True
        first = onnx.load(self.path).graph.input[0].type.tensor_type.shape.dim[0]
        return first.HasField("dim_param")

    def files(self, variant: str, batch: int) -> tuple[Path, Path]:
        """The ONNX file with its zeros and an npz of inputs; made once."""
        folder = cache() / f"{self.name}-b{batch}-{self._key()}"
        folder.mkdir(parents=True, exist_ok=True)
        feeds, file = folder / "feeds.npz", folder / f"{variant.replace(':', 'of').replace('%', 'pc')}.onnx"
        if not file.exists():
            model = onnx.load(self._plain(batch))
            if self.path:
                freeze(model, batch)
            if variant != "dense":
                prune(model, VARIANTS[variant])
            publish(file, lambda draft: onnx.save(model, draft))
        if not feeds.exists():
            values = zoo.onnx_feeds(file) if self.path else zoo.feeds(self.name, **self.shape(batch))
            publish(feeds, lambda draft: write_npz(draft, values))
        return file, feeds

    def shape(self, batch: int) -> dict[str, int]:
        """The options of the zoo that make this batch."""
        return {} if batch == 1 else {"batch": batch}

    def _plain(self, batch: int) -> Path:
        return self.path or zoo.export(self.name, exporter="torchscript", **self.shape(batch))

    def _key(self) -> str:
        digest = hashlib.sha256((Path(__file__).with_name("prune.py")).read_bytes())
        digest.update(self.path.read_bytes() if self.path else str(zoo.version()).encode())
        return digest.hexdigest()[:8]


def subjects() -> dict[str, Subject]:
    """Every model that is there, by name, small ones first."""
    digits = ROOT / "examples" / "digits"
    found = [Subject("digits", "demo", digits / "dense.onnx")]
    found.append(Subject("digits_2:4x16", "demo", digits / "sparse.onnx"))
    folder = Path(os.environ.get("SPARSEC_MODELS", ROOT.parent / "shared" / "models"))
    trained = [file for file in sorted(folder.glob("*.onnx")) if "int8" not in file.name]
    found += [Subject(file.stem, "trained", file) for file in trained]
    for name in ZOO:
        if name != "minilm" or zoo.minilm_folder() is not None:
            found.append(Subject(name, "trained" if name == "minilm" else "zoo"))
    return {subject.name: subject for subject in found}


def cache() -> Path:
    default = Path(tempfile.gettempdir()) / f"sparsec-bench-{os.getuid()}"
    return Path(os.environ.get("SPARSEC_BENCH", default))


def publish(path: Path, write) -> None:
    """``write(draft)``, then one rename: nobody reads half a file."""
    draft = path.with_name(f"draft-{os.getpid()}-{path.name}")
    write(draft)
    draft.replace(path)


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def freeze(model: onnx.ModelProto, batch: int) -> None:
    """Give every symbolic dimension of the inputs this size."""
    for port in model.graph.input:
        for dim in port.type.tensor_type.shape.dim:
            if dim.HasField("dim_param"):
                dim.dim_value = batch
    for port in model.graph.output:
        if port.type.tensor_type.shape.dim and port.type.tensor_type.shape.dim[0].HasField("dim_param"):
            port.type.tensor_type.shape.dim[0].dim_value = batch
