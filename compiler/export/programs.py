"""C sources to programs and libraries for a device, all by zig: no other compiler crosses."""

import json
import tempfile
from functools import cache
from pathlib import Path

from sparsec.runtime import build

from .source import Source

# Programs on devices are small rather than fast: the kernels are what takes time.  zig builds its libc with
# the flags of the link.
_LINK = (*build.SMALL, "-s", "-Wl,--gc-sections", "-Wl,--no-eh-frame-hdr")

# Weights and sample in read-only data; who does not use the sample does not get it.
_DATA = """
    .section .rodata.sparsec_weights,"a",%progbits
    .globl sparsec_weights
    .balign 64
sparsec_weights:
    .incbin "weights.bin"
    .section .rodata.sparsec_sample,"a",%progbits
    .globl sparsec_sample, sparsec_sample_end
    .balign 64
sparsec_sample:
    .incbin "sample.bin"
sparsec_sample_end:
    .byte 0
    .section .note.GNU-stack,"",%progbits
"""


@cache
def runtime(architecture: str) -> dict[str, bytes]:
    """The library for C users and ``sparsec-device``, for glibc."""
    with tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder, cc = Path(name), build.zig(build.ZIG_TARGETS[architecture])
        archive, shared = build.make_library(cc, folder)
        objects = build.compile_sources(cc, build.ARTIFACT_PROGRAM, folder, build.SMALL)
        libraries = ["libsparsec.a", "-ldl", "-lpthread", "-lm"]
        build.run([*cc, *_LINK, "-o", "sparsec-device", *objects, *libraries], folder)
        return {
            "libsparsec.a": archive.read_bytes(),
            "libsparsec.so": shared.read_bytes(),
            "sparsec-device": (folder / "sparsec-device").read_bytes(),
        }


@cache
def verifier(architecture: str) -> bytes:
    """``sparsec-verify``, which runs on any Linux."""
    with tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        return _static(architecture, build.VERIFY_PROGRAM, (), Path(name))


def linked(source: Source) -> tuple[bytes, bytes]:
    """The program of a model, and the static library that it is: kernels, core, weights."""
    architecture = source.device.architecture
    cc = build.zig(build.ZIG_STATIC[architecture])
    features = "".join(json.dumps(feature) + "," for feature in source.library.features)
    with tempfile.TemporaryDirectory(prefix="sparsec-") as name:
        folder = Path(name)
        (folder / "weights.bin").write_bytes(source.weights)
        (folder / "sample.bin").write_bytes(source.sample)
        (folder / "data.S").write_text(_DATA)
        (folder / "libmodel.a").write_bytes(source.archive)
        build.run([*cc, "-c", "data.S", "-o", "data.o"], folder)
        build.run([*build.archiver(), "rcsD", "libmodel.a", "data.o"], folder)
        program = _static(
            architecture,
            build.LINKED_PROGRAM,
            (f"-DSPARSEC_FEATURES={features}",),
            folder,
            ("libmodel.a", "-lm"),
        )
        return program, (folder / "libmodel.a").read_bytes()


def _static(
    architecture: str,
    sources: tuple[str, ...],
    flags: tuple[str, ...],
    folder: Path,
    libraries: tuple[str, ...] = (),
) -> bytes:
    """A program that holds its libc, which is musl's."""
    cc = build.zig(build.ZIG_STATIC[architecture])
    objects = build.compile_sources(cc, sources, folder, (*build.SMALL, *flags))
    build.run([*cc, "-static", *_LINK, "-o", "program", *objects, *libraries], folder)
    return (folder / "program").read_bytes()
