"""What the C library hashes: SHA-256 on every kind of CPU, and the pieces of large members."""

import hashlib
import json
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest

import sparsec
from sparsec.compiler.package import write_artifact
from sparsec.runtime import ArtifactError, build, container, cpu

SHA256 = """
#include "lib/lib.h"
static void print(const uint8_t digest[32]) {
    for (int i = 0; i < 32; i++) printf("%02x", digest[i]);
    printf("\\n");
}
int main(void) {
    static uint8_t data[300], digest[32], both[2][32];
    const sha256_code *code = CODE;
    if (!code) return 77;
    for (size_t n = 0; n < 300; n++) {
        data[n] = (uint8_t)(n * 7);
        sha256(code, (span){data, n}, digest);
        sha256_two(code, (const span[]){{data, n / 2}, {data, n}}, both);
        print(digest), print(both[0]), print(both[1]);
    }
    return 0;
}
"""


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("code", ["&sha256_portable", "sha256_cpu()"])
def test_sha256(tmp_path, code, machine):
    """Against hashlib, for every length around the block's borders, one message and two at a time."""
    (tmp_path / "a.c").write_text(SHA256.replace("CODE", code))
    sources = [tmp_path / "a.c", *(build.SOURCES / f"lib/{n}.c" for n in ("sha256", "sha256_cpu", "cpu"))]
    cc, runner = ["cc"], []
    if machine != cpu.architecture():
        emulator = shutil.which(f"qemu-{machine}-static") or shutil.which(f"qemu-{machine}")
        if emulator is None:
            pytest.skip(f"no qemu-{machine} (Debian: apt-get install qemu-user-static)")
        cc, runner = [*build.zig(f"{machine}-linux-musl"), "-static"], [emulator]
    subprocess.run([*cc, "-O2", f"-I{build.SOURCES}", *sources, "-o", tmp_path / "a"], check=True)
    run = subprocess.run([*runner, tmp_path / "a"], capture_output=True, text=True)
    if run.returncode == 77:
        pytest.skip("this CPU has no instructions for SHA-256")
    data = bytes(n * 7 % 256 for n in range(300))
    parts = (data[:size] for n in range(300) for size in (n, n // 2, n))
    assert run.stdout.split() == [hashlib.sha256(part).hexdigest() for part in parts]


@pytest.fixture(scope="module")
def large(tiny, tmp_path_factory):
    """An artifact with a member of nine pieces and a bit, and one of exactly two."""
    rng = np.random.default_rng(1)
    members = tiny.members | {"extra.bin": rng.bytes((9 << 20) + 5), "even.bin": rng.bytes(2 << 20)}
    path = tmp_path_factory.mktemp("large") / "large.sparsec"
    write_artifact(path, tiny.manifest, members)
    return replace(tiny, path=path)


def test_pieces(large, attempt, tmp_path):
    """Each MiB has a hash of its own, and each is checked."""
    data = bytearray(large.path.read_bytes())
    manifest = sparsec.load(large.path).manifest["members"]
    extra, even = manifest["extra.bin"], manifest["even.bin"]
    assert (len(extra["pieces"]), len(even["pieces"])) == (10, 2) and "pieces" not in manifest["weights.bin"]
    assert attempt(large.path) == (0, "")
    starts = {m.name: m.offset for m in container.read_members(lambda at, n: data[at : at + n], len(data))}
    for name, at in [("even.bin", (2 << 20) - 1), *(("extra.bin", (k << 20) + 4) for k in (0, 1, 5, 9))]:
        damaged = data.copy()
        damaged[starts[name] + at] ^= 1
        (tmp_path / "a").write_bytes(damaged)
        message = f"damaged artifact: the SHA-256 of {name} is not the manifest's"
        assert attempt(tmp_path / "a") == (1, message)
        with pytest.raises(ArtifactError, match=message):
            sparsec.load(tmp_path / "a")


@pytest.mark.parametrize("change", ["short", "other", "none"])
def test_wrong_pieces(large, attempt, tmp_path, change):
    def edit(text):
        manifest = json.loads(text)
        pieces = manifest["members"]["extra.bin"]["pieces"]
        new = {"short": pieces[:-1], "other": [*pieces[:-1], pieces[0]], "none": "0" * 64}[change]
        manifest["members"]["extra.bin"]["pieces"] = new
        return json.dumps(manifest)

    path = large.rewritten(tmp_path / "a", edit)
    assert attempt(path) == (1, "damaged artifact: the SHA-256 of extra.bin is not the manifest's")
