"""Damaged, foreign and lying artifacts: every one is refused with one line, before anything runs."""

import hashlib
import json
import os
import struct
import subprocess
import sys

import pytest

import sparsec
from sparsec.runtime import ArtifactError, FormatError, TargetError, artifact, container, cpu

# One process opens all of them: a signal would end it, and a library that reaches the dynamic
# linker is counted.
ATTACK = """
import random, sys
from pathlib import Path
from sparsec.runtime import SparsecError, library, load

good = Path(sys.argv[1]).read_bytes()
target = Path(sys.argv[2])
random.seed(1)
loaded = 0

def refuse(code):
    global loaded
    loaded += 1
    raise RuntimeError("reached the dynamic linker")

library.load_code = refuse

def mutants():
    starts = [int(n) for n in sys.argv[3].split(",")]
    regions = list(zip(starts, starts[1:]))
    for i in range(600):  # flips, evenly over the regions, which differ in size by a thousand times
        a, b = regions[i % len(regions)]
        data = bytearray(good)
        for _ in range(random.choice([1, 1, 1, 2, 8])):
            data[random.randrange(a, b)] ^= 1 << random.randrange(8)
        yield data
    for i in range(150):
        yield good[:random.choice([i, random.randrange(len(good)), len(good) - 1 - i])]
    for i in range(50):
        at = random.randrange(len(good))
        yield good[:at] + bytes(random.randrange(1, 5000)) + good[at:]
    for i in range(50):
        at = random.randrange(len(good))
        yield good[:at] + good[at + random.randrange(1, 5000):]
    for i in range(50):
        yield good + random.randbytes(random.randrange(1, 100))
    for i in range(50):  # a page of another place
        a, b = (random.randrange(len(good) // 4096) * 4096 for _ in range(2))
        yield good[:a] + good[b:b + 4096] + good[a + 4096:]
    for i in range(50):
        at = random.randrange(len(good))
        yield good[:at] + random.randbytes(len(good) - at)

tried = 0
for data in mutants():
    if data == good:
        continue
    target.write_bytes(data)
    try:
        load(target)
    except SparsecError as e:
        assert str(e) and "\\n" not in str(e), e
        tried += 1
print(tried, loaded)
"""


def test_a_thousand_mutants(tiny, tmp_path):
    starts = ",".join(map(str, tiny.regions()))
    run = subprocess.run(
        [sys.executable, "-c", ATTACK, tiny.path, tmp_path / "mutant.sparsec", starts],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    tried, loaded = map(int, run.stdout.split())
    assert tried >= 990 and loaded == 0


def test_every_byte_of_the_structure_counts(tiny, tmp_path):
    """Each byte outside the members' data, inverted; padding included."""
    good = tiny.path.read_bytes()
    members = container.read_members(lambda at, n: good[at : at + n], len(good))
    inside = {at for m in members for at in range(m.offset, m.offset + m.size)}
    for at in sorted(set(range(len(good))) - inside):
        data = bytearray(good)
        data[at] ^= 0xFF
        with pytest.raises((ArtifactError, FormatError)):
            container.read_members(lambda a, n, data=data: bytes(data[a : a + n]), len(data))


def rebuilt(tiny, path, change=lambda manifest: None, members=None, raw=None):
    """An artifact that is well-formed but for what ``change`` did to the manifest."""
    members = dict(members or tiny.members)
    manifest = json.loads(json.dumps(tiny.manifest))
    manifest["members"] = {
        n: {"size": len(d), "sha256": hashlib.sha256(d).hexdigest()} for n, d in members.items()
    }
    change(manifest)
    text = raw if raw is not None else json.dumps(manifest).encode()
    return tiny.assemble(path, {"manifest.json": text, **dict(sorted(members.items()))})


def setter(*keys, value):
    def change(manifest):
        table = manifest
        for key in keys[:-1]:
            table = table[key]
        if value is None:
            del table[keys[-1]]
        else:
            table[keys[-1]] = value

    return change


def test_rebuilt_is_good(tiny, tmp_path):
    with sparsec.load(rebuilt(tiny, tmp_path / "a.sparsec")) as model:
        tiny.check(model(tiny.inputs()), tiny.inputs())


A, F, T = ArtifactError, FormatError, TargetError
FIELDS = {
    "newer": (
        setter("format", value=2),
        F,
        "artifact format 2 is not format 1, the one that this sparsec reads",
    ),
    "real": (setter("format", value=1.0), F, "artifact format 1.0 is not format 1"),
    "true": (setter("format", value=True), F, "artifact format True is not format 1"),
    "no format": (
        setter("format", value=None),
        F,
        "not a sparsec artifact: manifest.json has no field 'format'",
    ),
    "target": (setter("target", value=3), A, "field 'target' must be an object"),
    "architecture": (
        setter("target", "architecture", value="riscv64"),
        T,
        "the artifact is for riscv64 linux, this machine is x86_64 linux; compile it for this one",
    ),
    "system": (setter("target", "system", value="plan9"), T, "the artifact is for x86_64 plan9"),
    "feature": (
        lambda m: m["libraries"][0]["features"].append("avx1024"),
        T,
        "this CPU lacks avx1024, which level v2 needs; compile for a lower level",
    ),
    "features": (
        setter("libraries", 0, "features", value=[1]),
        A,
        "field 'features' must be a list of strings",
    ),
    "library": (setter("libraries", value=[1]), A, "field 'libraries' must be a list of objects"),
    "libraries": (setter("libraries", value=[]), A, "field 'libraries' must be at least one library"),
    "member": (
        setter("libraries", 0, "member", value="x.so"),
        A,
        "'libraries' must be a member named 'x.so'",
    ),
    "level": (setter("libraries", 0, "level", value=None), A, "field 'level' must be a string"),
    "inputs": (setter("inputs", value=[0]), A, "field 'inputs' must be a list of objects"),
    "shape": (
        setter("inputs", 0, "shape", value=[-1, 32]),
        A,
        "'inputs' must be a shape of non-negative integers",
    ),
    "dims": (setter("outputs", 0, "dims", value=[1]), A, "'outputs' must be one dim, a number or a name"),
    "dtype": (
        setter("inputs", 0, "dtype", value="object"),
        A,
        "'inputs' must be a dtype out of bool, float16",
    ),
    "twice": (setter("inputs", 0, "name", value="mask"), A, "field 'inputs' must be names that differ"),
    "count": (
        setter("inputs", value=[]),
        A,
        "the artifact's library and its manifest describe different models",
    ),
    "swapped": (
        lambda m: m["inputs"].reverse(),
        A,
        "the artifact's library and its manifest describe different",
    ),
    "smaller": (
        setter("inputs", 0, "shape", value=[1, 32]),
        A,
        "library and its manifest describe different models",
    ),
    "weights": (setter("weights_size", value=0), A, "field 'weights_size' must be the size of weights.bin"),
    "negative": (setter("weights_size", value=-1), A, "field 'weights_size' must be a non-negative integer"),
    "table": (setter("members", "weights.bin", value=None), A, "'members' must be exactly .*weights.bin"),
    "size": (
        setter("members", "weights.bin", "size", value=5),
        A,
        "'members' must be size 1056 for weights.bin",
    ),
    "hash form": (setter("members", "weights.bin", "sha256", value="0"), A, "must be 64 hexadecimal digits"),
    "hash": (
        setter("members", "weights.bin", "sha256", value="0" * 64),
        A,
        "the SHA-256 of weights.bin is not",
    ),
    "code hash": (
        setter("members", "model.v2.so", "sha256", value="0" * 64),
        A,
        "the SHA-256 of model.v2.so is",
    ),
}


@pytest.mark.parametrize("case", FIELDS)
def test_fields(tiny, tmp_path, case):
    change, kind, text = FIELDS[case]
    path = rebuilt(tiny, tmp_path / "a b.sparsec", change)
    with pytest.raises(kind, match=text) as caught:
        sparsec.load(path)
    assert type(caught.value) is kind and str(caught.value).startswith(f"{str(path)!r}: ")


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff", b"[" * 100000, b'{"format": 1,}'])
def test_not_json(tiny, tmp_path, raw):
    with pytest.raises(ArtifactError, match="manifest.json is not JSON"):
        sparsec.load(rebuilt(tiny, tmp_path / "a", raw=raw))


@pytest.mark.parametrize("raw", [b"[]", b"{}", b"1", b'"format"'])
def test_other_json(tiny, tmp_path, raw):
    with pytest.raises(FormatError, match="has no field 'format'"):
        sparsec.load(rebuilt(tiny, tmp_path / "a", raw=raw))


def test_order_of_checks(tiny, tmp_path):
    """Format before target before hashes."""

    def change(manifest):
        manifest["members"]["weights.bin"]["sha256"] = "0" * 64
        manifest["libraries"][0]["features"].append("avx1024")

    with pytest.raises(TargetError, match="avx1024"):
        sparsec.load(rebuilt(tiny, tmp_path / "a", change))
    with pytest.raises(FormatError, match="format 9 is not format 1"):
        sparsec.load(rebuilt(tiny, tmp_path / "a", lambda m: (change(m), m.update(format=9))))


def test_best_library_that_fits(tiny, tmp_path):
    """Levels come best first; one that needs too much is passed over."""

    def change(manifest):
        first = manifest["libraries"][0]
        manifest["libraries"] = [
            {"member": "model.v9.so", "level": "v9", "features": ["avx512f", "avx1024"]},
            first,
            {**first, "level": "v1", "features": []},
        ]

    members = {**tiny.members, "model.v9.so": b"not even ELF"}
    with sparsec.load(rebuilt(tiny, tmp_path / "a", change, members)) as model:
        assert model.level == "v2"


def test_missing_features_are_all_named(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(cpu, "features", lambda: frozenset(cpu.V2) - {"popcnt", "sse4.2"})
    with pytest.raises(TargetError, match=r"this CPU lacks popcnt, sse4.2, which level v2 needs"):
        sparsec.load(tiny.path)


def test_no_proc(tiny, monkeypatch):
    def absent(*args, **named):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(cpu, "open", absent, raising=False)
    with pytest.raises(TargetError, match="cannot tell what this CPU can do: /proc/cpuinfo: No such file"):
        sparsec.load(tiny.path)


STRUCTURE = {
    "empty": (lambda d: b"", F, "it must begin with the bytes PK 03 04"),
    "text": (lambda d: b"hello, world, this is not a zip", F, "it must begin with the bytes PK 03 04"),
    "short": (lambda d: d[:10], A, "10 bytes is not a possible size"),
    "cut": (lambda d: d[:-1], A, "no zip end record in the last 22 bytes; the file is cut off"),
    "comment": (lambda d: d + b"x", A, "no zip end record"),
    "moved": (lambda d: d[:-6] + struct.pack("<I", 5) + d[-2:], A, "the zip directory is not where"),
    "gap": (lambda d: with_gap(d), A, "bytes that belong to no member"),
}


def with_gap(data):
    """One byte between the last member and the directory, and an end record that knows it."""
    count, size, directory = struct.unpack_from("<HII", data, len(data) - 12)
    return data[:directory] + b"!" + data[directory:-22] + container.end_record(count, size, directory + 1)


@pytest.mark.parametrize("case", STRUCTURE)
def test_structure(tiny, tmp_path, case):
    damage, kind, text = STRUCTURE[case]
    path = tmp_path / "a.sparsec"
    path.write_bytes(damage(tiny.path.read_bytes()))
    with pytest.raises(kind, match=text):
        sparsec.load(path)


def entry(name="a", header=0, size=1, crc=0):
    return container.central_entry(container.place(name, size, crc, header))


DIRECTORIES = {
    "cut name": (entry("abc")[:-2], 1, "member a has an unexpected directory entry"),
    "cut early": (entry()[:40], 1, "the zip directory is cut off"),
    "trailing": (entry() + b"?", 1, "bytes after its last entry"),
    "name": (entry().replace(b"a", b"/"), 1, "a member's name is not plain ASCII"),
    "twice": (entry() * 2, 2, "member a is there twice"),
    "flag": (entry()[:8] + b"\1" + entry()[9:], 1, "member a has an unexpected directory entry"),
    "position": (entry(header=1), 1, "member a does not follow the one before it"),
    "too long": (entry(size=1 << 20), 1, "member a does not follow the one before it"),
}


@pytest.mark.parametrize("case", DIRECTORIES)
def test_directory(case):
    raw, count, text = DIRECTORIES[case]
    data = b"PK\3\4" + bytes(5000) + raw + container.end_record(count, len(raw), 5004)
    with pytest.raises(ArtifactError, match=text):
        container.read_members(lambda at, n: data[at : at + n], len(data))


def test_local_header(tiny, tmp_path):
    data = bytearray(tiny.path.read_bytes())
    data[100] = 1  # in the padding
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match="member manifest.json has an unexpected header"):
        sparsec.load(tmp_path / "a")


def test_first_member(tiny, tmp_path):
    with pytest.raises(FormatError, match=r"its first member must be manifest.json"):
        sparsec.load(tiny.assemble(tmp_path / "a", {"weights.bin": b"1"}))


def test_checksum_of_the_manifest(tiny, tmp_path):
    data = bytearray(tiny.path.read_bytes())
    data[4096 + 5] ^= 1
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"the checksum of manifest.json is wrong"):
        sparsec.load(tmp_path / "a")


def test_huge_manifest(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(artifact, "MAX_BYTES", 100)
    with pytest.raises(ArtifactError, match=r"manifest.json has \d+ bytes, at most 100"):
        sparsec.load(tiny.path)


def test_not_there(tmp_path):
    with pytest.raises(ArtifactError, match="cannot open .*nothing.sparsec': No such file or directory"):
        sparsec.load(tmp_path / "nothing.sparsec")
    with pytest.raises(ArtifactError, match="not a regular file"):
        sparsec.load(tmp_path)
    with pytest.raises(ArtifactError, match="not a regular file"):
        sparsec.load("/dev/null")


def test_read_error(tiny, monkeypatch):
    monkeypatch.setattr(os, "pread", lambda *a: (_ for _ in ()).throw(OSError(5, "Input/output error")))
    with pytest.raises(ArtifactError, match=r"cannot read .*tiny.sparsec': Input/output error"):
        sparsec.load(tiny.path)
    monkeypatch.undo()
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, at: 0)
    with pytest.raises(ArtifactError, match=r"no bytes at offset \d+; the file is being changed"):
        sparsec.load(tiny.path)
    monkeypatch.setattr(os, "pread", lambda fd, n, at: b"")
    with pytest.raises(ArtifactError, match="damaged artifact: only 0 of 4 bytes at offset 0"):
        sparsec.load(tiny.path)
