"""A Debian package, made without Debian's tools (deb(5))."""

import gzip
import hashlib
from collections.abc import Mapping
from textwrap import dedent

from .publish import File
from .source import Source
from .tarball import ar, tar


def package(source: Source, files: Mapping[str, File], depends: str) -> tuple[str, bytes]:
    """The file name and the bytes of a package that installs ``files`` (path below / -> File)."""
    version = package_version(source)
    size = sum(len(file.data) for file in files.values())
    name = f"sparsec-{source.name}"
    control = dedent(
        f"""\
        Package: {name}
        Version: {version}
        Architecture: {source.device.debian}
        Maintainer: {name} <root@localhost>
        Installed-Size: {-(-size // 1024)}
        Depends: {depends}
        Section: science
        Priority: optional
        Description: the neural network {source.name}, compiled by sparsec
         Code and weights in one file, whose self-test runs a stored input and compares
         with the output of ONNX Runtime.  Made from the ONNX file with the SHA-256
         {source.contents.manifest.raw["source_sha256"]}.
        """
    )
    sums = "".join(f"{hashlib.md5(f.data).hexdigest()}  {path}\n" for path, f in sorted(files.items()))
    members = {"control": File(control.encode()), "md5sums": File(sums.encode())}
    content = ar(
        [
            ("debian-binary", b"2.0\n"),
            ("control.tar.gz", gzip.compress(tar(members, prefix="./"), mtime=0)),
            ("data.tar.gz", gzip.compress(tar(files, prefix="./"), mtime=0)),
        ]
    )
    return f"{name}_{version}_{source.device.debian}.deb", content


def package_version(source: Source) -> str:
    """sparsec's version and the beginning of the artifact's hash: other bytes, another version."""
    digest = hashlib.sha256(source.artifact).hexdigest()[:12]
    return f"{source.contents.manifest.raw['sparsec_version']}+{digest}"
