"""Both of torch's ONNX exporters behind one call, and a cache of what they wrote."""

import hashlib
import logging
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from .network import Network


def to_onnx(network: Network, exporter: str, path: Path) -> None:
    """Write ``network`` to ``path`` in one file, with static shapes, by the exporter that was named."""
    names = {"input_names": list(network.inputs), "output_names": list(network.outputs)}
    if exporter == "dynamo":
        names |= {"dynamo": True, "external_data": False, "verbose": False}
    else:
        names |= {"dynamo": False, "opset_version": 17}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # a note for each package that is not there
    # The fused encoder layer of torch's fast path has no ONNX form.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecation and tracing notes, none about the numbers
            torch.onnx.export(network.module, tuple(network.inputs.values()), str(path), **names)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def cached(stem: str, write: Callable[[Path], None]) -> Path:
    """The file ``stem.onnx`` of this zoo's cache; ``write(path)`` makes it if it is missing."""
    folder = Path(tempfile.gettempdir()) / f"sparsec-zoo-{os.getuid()}" / version()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stem}.onnx"
    if not path.exists():
        # Published by one rename: two test runs beside each other never see half a file.
        handle, name = tempfile.mkstemp(suffix=".onnx", dir=folder)
        os.close(handle)
        draft = Path(name)
        try:
            write(draft)
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    return path


@cache
def version() -> str:
    digest = hashlib.sha256(torch.__version__.encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
