"""A container image as a tar in the OCI image layout, made without a daemon: one layer, one program."""

import hashlib
import json
from collections.abc import Mapping

from .publish import File
from .source import Source
from .tarball import tar

_TYPE = "application/vnd.oci.image"


def image(source: Source, files: Mapping[str, File], entrypoint: list[str]) -> bytes:
    """An image of ``files`` alone (path below / -> File); ``podman load`` and ``skopeo`` read it.

    https://github.com/opencontainers/image-spec, version 1.1: image-layout.md, manifest.md, config.md
    """
    layer = tar(files)
    title = {"org.opencontainers.image.title": source.name}
    config = {
        **source.device.oci,
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Cmd": ["--selftest"], "Labels": title},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
        "history": [{"created_by": "sparsec export --system"}],
    }
    described = _json(config)
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_TYPE}.manifest.v1+json",
        "config": _descriptor(f"{_TYPE}.config.v1+json", described),
        "layers": [_descriptor(f"{_TYPE}.layer.v1.tar", layer)],
    }
    whole = _json(manifest)
    entry = _descriptor(f"{_TYPE}.manifest.v1+json", whole) | {
        "platform": {**source.device.oci, "os": "linux"},
        "annotations": {"org.opencontainers.image.ref.name": f"{source.name}:latest"},
    }
    index = {"schemaVersion": 2, "mediaType": f"{_TYPE}.index.v1+json", "manifests": [entry]}
    blobs = {f"blobs/sha256/{_digest(blob)[7:]}": File(blob) for blob in (layer, described, whole)}
    layout = _json({"imageLayoutVersion": "1.0.0"})
    return tar({"oci-layout": File(layout), "index.json": File(_json(index)), **blobs})


def _json(value: Mapping) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _descriptor(kind: str, data: bytes) -> dict:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}
