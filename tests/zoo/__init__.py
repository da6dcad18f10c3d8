"""Networks of the shapes and styles that people really export, with seeded random weights.

    path = zoo.export("bert", exporter="dynamo", small=True, length=16)
    feeds = zoo.feeds("bert", small=True, length=16)

Every network exists in its published size and in a small one (``small=True``) that compiles in seconds.
Weights are random, but statistics of normalisation layers fit them, so activations keep their scale.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from .attention import transformer_encoder
from .bert import bert
from .convnets import lenet, mlp
from .export import cached, to_onnx, version
from .gpt2 import gpt2_decode, gpt2_prefill
from .lstm import lstm_tagger
from .minilm import folder as minilm_folder
from .minilm import minilm
from .mobilenet import mobilenet_v2
from .network import Network
from .resnet import resnet18, resnet50
from .unet import unet, unet_resize
from .vit import vit_s16

# Name -> build(small, **shape) -> Network.
NETWORKS: dict[str, Callable[..., Network]] = {
    "mlp": mlp,
    "lenet": lenet,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "unet": unet,
    "unet_resize": unet_resize,
    "bert": bert,
    "transformer_encoder": transformer_encoder,
    "vit_s16": vit_s16,
    "gpt2_prefill": gpt2_prefill,
    "gpt2_decode": gpt2_decode,
    "lstm_tagger": lstm_tagger,
    "minilm": minilm,  # real weights; raises ImportError where its package is missing
}
__all__ = [
    "EXPORTERS",
    "NETWORKS",
    "Network",
    "build",
    "export",
    "feeds",
    "minilm_folder",
    "onnx_feeds",
    "version",
]

EXPORTERS = ("dynamo", "torchscript")


def build(name: str, *, small: bool = False, **shape) -> Network:
    """The torch module, its example inputs and its output names; always the same weights."""
    if name not in NETWORKS:
        raise KeyError(f"no network {name!r} in the zoo; there are {', '.join(NETWORKS)}")
    return NETWORKS[name](small, **shape)


def export(
    name: str, *, exporter: str = "dynamo", path: str | Path | None = None, small: bool = False, **shape
) -> Path:
    """Write the network as ONNX and return the path.

    Without ``path`` the file lies in a cache in the temporary folder, keyed by the zoo's own sources
    and the torch version, and is exported once.
    """
    if exporter not in EXPORTERS:
        raise KeyError(f"no exporter {exporter!r}; there are {', '.join(EXPORTERS)}")
    if path is not None:
        to_onnx(build(name, small=small, **shape), exporter, Path(path))
        return Path(path)
    size = "small" if small else "full"
    stem = "-".join([name, exporter, size, *(f"{k}{v}" for k, v in sorted(shape.items()))])
    return cached(stem, lambda target: to_onnx(build(name, small=small, **shape), exporter, target))


def feeds(name: str, *, small: bool = False, **shape) -> dict[str, np.ndarray]:
    """Example inputs by name, as NumPy arrays; the same at every call."""
    return {key: value.numpy() for key, value in build(name, small=small, **shape).inputs.items()}


def onnx_feeds(path: str | Path, seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs for any ONNX file; a symbolic dimension becomes 1, integers stay below 100."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(seed)
    found = {}
    for port in session.get_inputs():
        shape = [dim if isinstance(dim, int) else 1 for dim in port.shape]
        if port.type == "tensor(float)":
            found[port.name] = rng.standard_normal(shape).astype(np.float32)
        elif port.type in ("tensor(int64)", "tensor(int32)", "tensor(int8)", "tensor(uint8)"):
            found[port.name] = rng.integers(0, 100, shape).astype(port.type[7:-1])
        elif port.type == "tensor(bool)":
            found[port.name] = rng.integers(0, 2, shape).astype(bool)
        else:
            raise TypeError(f"{path}: input {port.name} has type {port.type}")
    return found
