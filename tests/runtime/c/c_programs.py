"""The C programs of the tests: built with any flags, on a model whose code is C as well.

Usage: python tests/runtime/c/c_programs.py ...
  coverage                  line coverage of the C sources, by gcov
  fuzz [OPTION ...]         libFuzzer on the artifact reader, for ever by default
  start ARTIFACT THREADS    the parts of a cold start in milliseconds, five times
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from sparsec.compiler import contents
from sparsec.compiler.package import base_manifest, write_artifact
from sparsec.compiler.plan import Plan, Port, State
from sparsec.runtime import build
from sparsec.runtime.cpu import LEVEL_FEATURES

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "fuzz" / "corpus"
LIBRARY = [build.SOURCES / source for source in build.LIBRARY]
CORE = [build.SOURCES / source for source in build.CORE]
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Werror")


def compiled(out: Path, sources, *flags: str, cc: str = "cc") -> Path:
    """``out`` from C sources; raises with the compiler's words."""
    command = [cc, "-std=c11", "-g", "-D_GNU_SOURCE", f"-I{build.SOURCES}", *sources, "-o", out, *flags]
    done = subprocess.run([*command, "-ldl", "-lpthread"], capture_output=True, text=True, cwd=out.parent)
    if done.returncode:
        raise RuntimeError(f"{cc} failed on {out.name}: {done.stderr}")
    return out


def library(folder: Path, *flags: str) -> Path:
    """The library's objects in one file, compiled once for all programs in ``folder``."""
    made = folder / "library.o"
    return made if made.exists() else compiled(made, LIBRARY, "-r", *WARNINGS, *flags)


def program(folder: Path, name: str, *flags: str) -> Path:
    """The executable of ``NAME.c`` and the whole library."""
    sources = [HERE / f"{name}.c", library(folder, *flags)]
    return compiled(folder / Path(name).name, sources, *WARNINGS, *flags)


def artifact(folder: Path, *flags: str, source: str | None = None, **members: bytes) -> Path:
    """An artifact of plan.c's model in ``folder``; its library is that, or ``source``, with ``flags``."""
    folder.mkdir(exist_ok=True)
    if source is None:
        sources, flags = [HERE / "plan.c", *CORE], (*flags, *build.tls_flags(("cc",)))
    else:
        (folder / "library.c").write_text(source)
        sources = [folder / "library.c"]
    code = compiled(folder / "model.so", sources, "-shared", "-fPIC", "-fvisibility=hidden", *flags)
    vector = Port("x", "float32", (17,), (17,))
    plan = Plan(
        inputs=(vector, Port("order", "int32", (1,), (1,))),
        outputs=(Port("y", "float32", (17,), (17,)), Port("sum", "float32", (), ())),
        steps=(),
        arena_size=0,
        weights=np.full(17, 0.5, "float32").tobytes(),
        states=(State(Port("past", "float32", (17,), (17,)), "present"),),
    )
    manifest = base_manifest(
        plan,
        sparsec_version="0.1.0",
        tvm_version="none",
        source_sha256="0" * 64,
        libraries={"v2": LEVEL_FEATURES["v2"]},
    )
    whole = {"model.v2.so": code.read_bytes(), "weights.bin": plan.weights, **members}
    write_artifact(folder / "c.sparsec", manifest, whole)
    return folder / "c.sparsec"


ENTRY = '__attribute__((visibility("default"))) const void *sparsec_module_v1(void) { return &module; }'
# Libraries that are none of ours: each must be refused after it has been loaded.
STRANGERS = {
    "no entry": "int something;",
    "no abi": f"static const unsigned module[100];{ENTRY}",
    "newer abi": f"static const unsigned module[100] = {{99}};{ENTRY}",
    "other weights": f"static const unsigned module[100] = {{2}};{ENTRY}",
}


def every(folder: Path, *flags: str, wrapper=(), large: bool = True, **environment: str) -> str:
    """Builds every.c and what it works on with ``flags`` and runs it, under ``wrapper``; what it prints."""
    model = artifact(folder / "model", *flags)
    key = signed(model)
    old = artifact(folder / "old", "-DABI=1", *flags)
    members = {"extra.bin": np.random.default_rng(0).bytes((9 << 20) + 5)} if large else {}
    unsigned = artifact(folder / "large", *flags, **members)
    refused = [artifact(folder / n, source=s) for n, s in STRANGERS.items()]
    data = model.read_bytes()
    refused.append(folder / "no code")
    write_artifact(refused[-1], parse_manifest(unsigned), {"model.v2.so": b"", "weights.bin": bytes(68)})
    for place, name in ((2, "damaged"), (100, "header")):
        refused.append(folder / name)
        refused[-1].write_bytes(data[: len(data) // place] + b"!" + data[len(data) // place + 1 :])
    command = [*wrapper, program(folder, "every", *flags), model, key, old, unsigned, *refused]
    return ran(*command, **environment)


def parse_manifest(path: Path) -> dict:
    return dict(contents.read(path).manifest.raw)


def signed(path: Path) -> str:
    """Signs the artifact in its place; the public key in hexadecimal, '-' where cryptography is missing."""
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        from sparsec.compiler import signing
    except ImportError:
        return "-"
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    signing.sign(path, key, path)
    return key.public_key().public_bytes_raw().hex()


def ran(*command, **environment: str) -> str:
    """What the command prints; raises with everything it said if it fails."""
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, env=os.environ | environment
    )
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def coverage(folder: Path) -> dict[str, tuple[int, int]]:
    """Source -> lines that can run, lines that ran: all of every.c, the reader's corpus, the hashes."""
    flags = ("-O0", "--coverage", "-fprofile-update=atomic")
    every(folder, *flags, LIMITS="1")
    replayed(folder, *flags)
    ran(program(folder, "hashes", *flags))
    lines: dict[str, dict[int, bool]] = {}
    for data in folder.rglob("*.gcda"):
        for file in json.loads(ran("gcov", "-t", "--json-format", data))["files"]:
            source = Path(file["file"])
            if source.is_relative_to(build.SOURCES):
                seen = lines.setdefault(str(source.relative_to(build.SOURCES)), {})
                for line in file["lines"]:
                    seen[line["line_number"]] = seen.get(line["line_number"], False) or line["count"] > 0
    return {source: (len(seen), sum(seen.values())) for source, seen in lines.items()}


def replayed(folder: Path, *flags: str) -> str:
    """What the fuzzer's harness says after it has read the corpus."""
    return ran(program(folder, "fuzz/reader", "-DREPLAY", *flags), *sorted(CORPUS.iterdir()))


def fuzz(options: list[str]) -> int:
    """libFuzzer on the harness, new inputs go to the corpus; its exit status."""
    clang = next((name for name in ("clang", "clang-19", "clang-16", "clang-14") if shutil.which(name)), None)
    if clang is None:
        print("no clang found; Debian: apt-get install clang libclang-rt-14-dev", file=sys.stderr)
        return 2
    runtime = ran(clang, "-print-file-name=libclang_rt.fuzzer-x86_64.a").strip()
    with tempfile.TemporaryDirectory(prefix="sparsec-fuzz-") as name:
        # Without traces of comparisons and without interceptors, of which the padding would make thousands:
        # 100,000 inputs a second instead of 2,000.  The dictionary says what is compared.
        sanitizers = "-fsanitize=fuzzer-no-link,address,undefined"
        flags = ("-O2", sanitizers, "-fno-sanitize-coverage=trace-cmp", "-fno-sanitize-recover=all")
        sources = [HERE / "fuzz/reader.c", *LIBRARY, runtime]
        fuzzer = compiled(Path(name) / "fuzzer", sources, *flags, "-lstdc++", "-lm", cc=clang)
        dictionary = f"-dict={HERE / 'fuzz/manifest.dict'}"
        return subprocess.run([fuzzer, dictionary, "-max_len=4096", *options, CORPUS], cwd=name).returncode


def print_coverage() -> int:
    with tempfile.TemporaryDirectory(prefix="sparsec-coverage-") as name:
        found = coverage(Path(name))
    for source, (lines, hit) in sorted(found.items()):
        print(f"{source:24}{hit:5} of {lines:4} lines  {100 * hit / lines:6.1f} %")
    lines, hit = (sum(column) for column in zip(*found.values(), strict=True))
    print(f"{'all':24}{hit:5} of {lines:4} lines  {100 * hit / lines:6.1f} %")
    return 0


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["coverage"]:
            sys.exit(print_coverage())
        case ["fuzz", *options]:
            sys.exit(fuzz(options))
        case ["start", model, threads]:
            with tempfile.TemporaryDirectory(prefix="sparsec-start-") as name:
                start = program(Path(name), "start", "-O2")
                for _ in range(5):
                    print(ran(start, model, threads), end="")
        case _:
            sys.exit(__doc__)
