"""manifest.json: read with bounds, checked field by field before anything is believed.

``parse`` does the checks in the order of docs/artifact-format.md: the text, the format number, then
the fields that a loader uses.  Fields that only people read (``layers``, ``receipt`` and so on) are
not looked at.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from .container import MANIFEST, Member
from .errors import ArtifactError, FormatError

FORMAT = 1
WEIGHTS = "weights.bin"
KERNELS = "kernels.fatbin"
MAX_BYTES = 64 << 20
PIECE = 1 << 20  # bytes of a member that have a hash of their own
# what may cross the model's border, NumPy's names
DTYPES = frozenset(
    ("bool", "float16", "float32", "float64")
    + tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
)
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: ``shape`` in elements, ``dims`` the source model's own, maybe symbolic."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class Library:
    """A compiled library: the member that holds it, and the machine and CPU features that its code is for.

    ``kernels``: the member with the kernels that it runs on a GPU, if the artifact is for one.
    """

    member: str
    level: str
    features: tuple[str, ...]
    architecture: str
    variant: str
    weights_size: int
    kernels: str


@dataclass(frozen=True)
class Manifest:
    """The fields that a loader uses, and ``raw``, the whole manifest as it was written.

    ``gpu``: the libraries run kernels on an NVIDIA GPU.
    """

    raw: Mapping
    system: str
    libraries: tuple[Library, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    states: tuple[TensorInfo, ...]
    weights_size: int
    hashes: Mapping[str, str]
    gpu: bool = False


def parse(text: bytes, members: tuple[Member, ...]) -> Manifest:
    """The manifest of an artifact with these zip members.

    Raises FormatError for a format number that this runtime does not know, ArtifactError for a
    manifest that is not JSON, lacks a field, or disagrees with the members.
    """
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ArtifactError(f"damaged artifact: {MANIFEST} is not JSON ({e})") from None
    if not isinstance(raw, dict) or "format" not in raw:
        raise FormatError(f"not a sparsec artifact: {MANIFEST} has no field 'format'")
    if type(raw["format"]) is not int or raw["format"] != FORMAT:
        raise FormatError(
            f"artifact format {raw['format']!r} is not format {FORMAT}, the one that this sparsec reads"
        )
    target = _get(raw, "target", dict)
    manifest = Manifest(
        raw=raw,
        system=_get(target, "system", str),
        libraries=tuple(_library(item, target, raw) for item in _get(raw, "libraries", list)),
        inputs=_tensors(raw, "inputs"),
        outputs=_tensors(raw, "outputs"),
        states=_tensors(raw, "states") if "states" in raw else (),
        weights_size=_get(raw, "weights_size", int),
        hashes=_hashes(_get(raw, "members", dict), members),
        gpu="gpu" in raw,
    )
    if not manifest.libraries:
        raise _bad("libraries", "at least one library")
    for name in [item.member for item in manifest.libraries]:
        if name not in manifest.hashes:
            raise _bad("libraries", f"a member named {name!r}")
    for name in [item.kernels for item in manifest.libraries]:
        if manifest.gpu and name not in manifest.hashes:
            raise _bad("gpu", f"there only with a member named {name!r}")
    sizes = {m.name: m.size for m in members}
    if sizes.get(WEIGHTS, 0) != manifest.weights_size:
        raise _bad("weights_size", f"the size of {WEIGHTS}")
    if any(item.weights_size > manifest.weights_size for item in manifest.libraries):
        raise _bad("libraries", "a weights_size of no more than the file's")
    return manifest


def _hashes(table: dict, members: tuple[Member, ...]) -> dict[str, str]:
    found = {m.name: m.size for m in members if m.name != MANIFEST}
    if set(table) != set(found):
        raise _bad("members", f"exactly {sorted(found)}")
    hashes = {}
    for name, entry in table.items():
        if not isinstance(entry, dict) or _get(entry, "size", int) != found[name]:
            raise _bad("members", f"size {found[name]} for {name}")
        hashes[name] = _get(entry, "sha256", str)
        pieces = _get(entry, "pieces", list) if "pieces" in entry else []
        if pieces and len(pieces) != -(-found[name] // PIECE):
            raise _bad("members", f"one hash for each MiB of {name}")
        if not all(isinstance(h, str) and _HASH.fullmatch(h) for h in (hashes[name], *pieces)):
            raise _bad("members", f"64 hexadecimal digits as sha256 of {name}")
    return hashes


def _library(item, target: dict, raw: dict) -> Library:
    """A library; its architecture and size of weights are the whole file's where it names none."""
    if not isinstance(item, dict):
        raise _bad("libraries", "a list of objects")
    features = _get(item, "features", list)
    if not all(isinstance(f, str) for f in features):
        raise _bad("features", "a list of strings")
    machine = _get(item if "architecture" in item else target, "architecture", str)
    return Library(
        _get(item, "member", str),
        _get(item, "level", str),
        tuple(features),
        machine,
        _get(item, "variant", str) if "variant" in item else "",
        _get(item if "weights_size" in item else raw, "weights_size", int),
        _get(item, "kernels", str) if "kernels" in item else KERNELS,
    )


def _tensors(raw: dict, field: str) -> tuple[TensorInfo, ...]:
    infos = []
    for item in _get(raw, field, list):
        if not isinstance(item, dict):
            raise _bad(field, "a list of objects")
        shape, dims = _get(item, "shape", list), _get(item, "dims", list)
        if not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 1 << 48 for n in shape):
            raise _bad(field, "a shape of non-negative integers")
        if len(dims) != len(shape) or not all(isinstance(d, (int, str)) for d in dims):
            raise _bad(field, "one dim, a number or a name, for each axis of the shape")
        dtype = _get(item, "dtype", str)
        if dtype not in DTYPES:
            raise _bad(field, f"a dtype out of {', '.join(sorted(DTYPES))}")
        infos.append(TensorInfo(_get(item, "name", str), dtype, tuple(shape), tuple(dims)))
    if len({t.name for t in infos}) != len(infos):
        raise _bad(field, "names that differ")
    return tuple(infos)


def _get(table: dict, field: str, kind: type):
    value = table.get(field)
    if not isinstance(value, kind) or (kind is int and (isinstance(value, bool) or value < 0)):
        names = {dict: "an object", list: "a list", str: "a string", int: "a non-negative integer"}
        raise _bad(field, names[kind])
    return value


def _bad(field: str, wanted: str) -> ArtifactError:
    return ArtifactError(f"damaged artifact: {MANIFEST} field {field!r} must be {wanted}")
