"""The artifact: manifest, libraries and weights in one file that is published by one rename.

``base_manifest`` gathers what the rest of the compiler knows, ``write_artifact`` adds the members'
sizes and hashes and writes the bytes.  The format is described in docs/artifact-format.md; the zip
headers are those of ``sparsec.runtime.container``, which also reads them.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsec.runtime import container
from sparsec.runtime.cpu import LEVEL_ARCHITECTURE
from sparsec.runtime.manifest import FORMAT, PIECE, WEIGHTS

from .errors import CompileError
from .plan import Plan, Port


@dataclass(frozen=True)
class Made:
    """What is to be published: ``write_artifact``'s arguments, and what the command line reports of it."""

    manifest: dict
    members: dict
    report: dict


def library_member(level: str) -> str:
    """The name of the member that holds the library of a CPU level: ``v3`` -> ``model.v3.so``."""
    return f"model.{level}.so"


def variant_member(member: str, variant: str) -> str:
    """The name of a variant's ``member``: ``model.v3.so`` of ``1:4`` -> ``model.1-4.v3.so``."""
    what, _, rest = member.partition(".")
    return f"{what}.{variant.replace(':', '-')}.{rest}"


SAMPLE = "sample.bin"
"""The member that holds a sample, see ``compiler/sample.py``."""


def archive_member(level: str) -> str:
    """The name of the member that holds the static library of a CPU level: ``v3`` -> ``model.v3.a``."""
    return f"model.{level}.a"


def base_manifest(
    plan: Plan,
    *,
    sparsec_version: str,
    tvm_version: str,
    source_sha256: str,
    libraries: Mapping[str, Sequence[str]],
    passes: str = "",
    layers: Iterable[Mapping] = (),
    choices: Mapping | None = None,
    tiles: Mapping | None = None,
    precision: str = "fp32",
    receipt: Mapping | None = None,
    packings: Sequence[Sequence[str]] = (),
    machines: Mapping[str, str] = LEVEL_ARCHITECTURE,
) -> dict:
    """The manifest of an artifact, all but its ``members``, which ``write_artifact`` fills in.

    ``plan`` is any of the levels' plans: their ports and weights are the same.
    ``libraries``: CPU level -> the features its code needs, spelled as in ``runtime/cpu.py``
    (``LEVEL_FEATURES`` has those of v2, v3, v4), best level first: a loader takes the first that
    the CPU can run.  ``passes``: the pass pipeline as text.  ``layers``: one dict per layer with
    ``name``, ``op``, ``pattern``, ``kernel``, ``dense_bytes``, ``packed_bytes``.  ``choices``: what
    ``--choices`` replays, with ``tiles``: CPU level -> kernel -> panels.  ``precision``: left out
    where it is fp32; then layers have a ``precision`` of their own.  ``receipt``: the comparison
    with ONNX Runtime: ``input`` (kind and seed), ``tolerance``, ``max_error`` (output name -> largest
    error).  ``packings``: the levels by the packed weights that they share; told where there are several.
    ``machines``: level -> the architecture that its library is for.
    """
    states = [{**_port(state.port), "output": state.output} for state in plan.states]
    machines = {level: machines[level] for level in libraries}
    fat = len(set(machines.values())) > 1  # each library names its own, so a loader of one refuses the file
    return {
        "format": FORMAT,
        "sparsec_version": sparsec_version,
        "tvm_version": tvm_version,
        "source_sha256": source_sha256,
        "target": {"system": "linux", **({} if fat else {"architecture": next(iter(machines.values()))})},
        "libraries": [
            {
                "member": library_member(level),
                "level": level,
                "features": sorted(features),
                **({"architecture": machines[level]} if fat else {}),
            }
            for level, features in libraries.items()
        ],
        "inputs": [_port(p) for p in plan.inputs],
        "outputs": [_port(p) for p in plan.outputs],
        **({"states": states} if states else {}),
        "arena_size": plan.arena_size,
        **({"packings": [list(levels) for levels in packings]} if len(packings) > 1 else {}),
        "weights_size": len(plan.weights),
        "passes": passes,
        "layers": [dict(layer) for layer in layers],
        "choices": dict(choices or {}),
        "tiles": dict(tiles or {}),
        **({"precision": precision} if precision != "fp32" else {}),
        "receipt": dict(receipt or {}),
    }


def _port(port: Port) -> dict:
    return {"name": port.name, "dtype": port.dtype, "shape": list(port.shape), "dims": list(port.dims)}


def write_artifact(path: str | os.PathLike, manifest: Mapping, members: Mapping[str, bytes]) -> None:
    """Write ``manifest`` and ``members`` (name -> content) to the artifact ``path``.

    Same arguments, same bytes: members go in name order after ``manifest.json``, and no clock, user
    or machine enters.  The new file takes the old one's place by one rename, after it has reached
    the disk; whatever happens before that, the old file stays and nothing is left beside it.

    Raises CompileError (one line) if a member's name or the total size is not allowed, or if the
    file cannot be written.
    """
    path = Path(path)
    publish(path, layout(_canonical(manifest, members), members))


def write_trials(
    folder: Path, manifest: Mapping, members: Mapping[str, bytes], levels: Iterable[str]
) -> dict[str, Path]:
    """One artifact in ``folder`` for each of ``levels``, with that level's library alone: to be tried."""
    trials = {}
    for level in levels:
        member = library_member(level)
        libraries = [library for library in manifest["libraries"] if library["member"] == member]
        kept = {name: data for name, data in members.items() if name in (member, WEIGHTS)}
        trials[level] = folder / f"trial-{level}.sparsec"
        write_artifact(trials[level], {**manifest, "libraries": libraries}, kept)
    return trials


def _canonical(manifest: Mapping, members: Mapping[str, bytes]) -> bytes:
    """The manifest's one spelling: sorted keys, UTF-8, one field a line, a newline at the end."""
    for name in members:
        if not container.valid_name(name) or name == container.MANIFEST:
            raise CompileError(f"cannot write a member named {name!r}: use letters, digits, '.', '_' and '-'")
    if len(members) >= container.MAX_MEMBERS:
        raise CompileError(
            f"cannot write {len(members)} members: at most {container.MAX_MEMBERS - 1} are allowed"
        )
    table = {name: _entry(data) for name, data in members.items()}
    whole = {**manifest, "members": table}
    try:
        text = json.dumps(whole, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        return text.encode() + b"\n"
    except (TypeError, ValueError) as e:
        raise CompileError(f"the manifest holds a value that JSON cannot spell: {e}") from None


def _entry(data: bytes) -> dict:
    """A member's size and hash, and those of its pieces if it is larger: CPUs hash them side by side."""
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    if len(data) > PIECE:
        parts = (memoryview(data)[at : at + PIECE] for at in range(0, len(data), PIECE))
        entry["pieces"] = [hashlib.sha256(part).hexdigest() for part in parts]
    return entry


def layout(manifest: bytes, members: Mapping[str, bytes]) -> list[bytes]:
    """The file's bytes, in pieces."""
    pieces: list[bytes] = []
    placed: list[container.Member] = []
    at = 0
    for name, data in [(container.MANIFEST, manifest), *sorted(members.items())]:
        member = container.place(name, len(data), zlib.crc32(data), at)
        at = member.offset + member.size
        if at > container.MAX_SIZE:
            raise CompileError(
                f"the artifact would be larger than 4 GiB ({at} bytes at {name}), the format's limit"
            )
        pieces += [container.local_header(member), data]
        placed.append(member)
    directory = b"".join(map(container.central_entry, placed))
    return [*pieces, directory, container.end_record(len(placed), len(directory), at)]


def publish(path: Path, pieces: Iterable[bytes]) -> None:
    """Write ``pieces`` so that ``path`` holds its old bytes or all of the new ones, whatever happens.

    Raises CompileError (one line) where they cannot be written.
    """
    try:
        if path.exists() and not path.is_file():
            raise CompileError(
                f"cannot write {str(path)!r}: it exists and is not a regular file; choose another name"
            )
        _write_and_rename(path, pieces)
    except OSError as e:
        what = os.strerror(e.errno) if e.errno else str(e)
        raise CompileError(f"cannot write {str(path)!r}: {what}; what was there before is unchanged") from e


def _write_and_rename(path: Path, pieces: Iterable[bytes]) -> None:
    with _new_file(path.parent) as (fd, take_name):
        for piece in pieces:
            view = memoryview(piece)
            while view:
                view = view[os.write(fd, view) :]
        os.fsync(fd)
        temporary = take_name()
        try:
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    with contextlib.suppress(OSError):  # the rename is done; some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def _new_file(folder: Path) -> Iterator[tuple]:
    """A new file in ``folder`` as (descriptor, function that gives it a name and returns that).

    The file has no name while it is written where the file system allows that, so that even SIGKILL
    leaves nothing behind; elsewhere it has a hidden one, which is removed on every exception.
    """
    name = folder / f".sparsec-{secrets.token_hex(8)}.tmp"
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o666)
        anonymous = True
    except OSError as e:
        if e.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT):
            raise
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        anonymous = False

    def take_name() -> Path:
        if anonymous:
            # With a folder's descriptor Python calls linkat, which follows /proc's link to the file.
            links = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.link(str(fd), name, src_dir_fd=links, follow_symlinks=True)
            finally:
                os.close(links)
        return name

    try:
        yield fd, take_name
    except BaseException:
        if not anonymous:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
        raise
    finally:
        os.close(fd)
