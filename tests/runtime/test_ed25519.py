"""Ed25519 in C and in Python: RFC 8032's vectors, and OpenSSL's opinion on nearly right signatures."""

import hashlib
import random
import subprocess

import pytest

from sparsec.runtime import build, ed25519

cryptography = pytest.importorskip("cryptography", reason="not installed: pip install 'sparsec[sign]'")
from cryptography.exceptions import InvalidSignature  # noqa: E402
from cryptography.hazmat.primitives.asymmetric.ed25519 import (  # noqa: E402
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

ORDER = 2**252 + 27742317777372353535851937790883648493

# RFC 8032, section 7.1: public key, message, signature
VECTORS = (
    (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b",
    ),
    (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c"
        "387b2eaeb4302aeeb00d291612bb0c00",
    ),
    (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc659"
        "4a7c15e9716ed28dc027beceea1ec40a",
    ),
)

# The encodings of points whose order divides 8, and of y that are not below p, some with a sign.
SMALL_ORDER = [
    "0100000000000000000000000000000000000000000000000000000000000000",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "0000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NOT_CANONICAL = [
    "0100000000000000000000000000000000000000000000000000000000000080",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
    "f0ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]

MAIN = """
#include "lib/lib.h"
int main(void) {
    static uint8_t data[4096];
    uint8_t size;
    while (fread(&size, 1, 1, stdin) == 1 && fread(data, 1, 96u + size, stdin) == 96u + size)
        putchar('0' + ed25519_verify(data, data + 32, (span){data + 96, size}));
    return 0;
}
"""


@pytest.fixture(scope="module")
def in_c(tmp_path_factory):
    """``in_c([(key, signature, message)])`` -> [bool] by the C code, with sanitizers."""
    folder = tmp_path_factory.mktemp("ed25519")
    (folder / "main.c").write_text(MAIN)
    sources = [folder / "main.c", build.SOURCES / "lib/ed25519.c", build.SOURCES / "lib/sha512.c"]
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=undefined,address"]
    flags += ["-fno-sanitize-recover=all", f"-I{build.SOURCES}"]
    subprocess.run(["cc", *flags, *sources, "-o", folder / "verify"], check=True)

    def verify(cases):
        data = b"".join(bytes([len(m)]) + key + signature + m for key, signature, m in cases)
        found = subprocess.run([folder / "verify"], input=data, capture_output=True, check=True).stdout
        return [c == ord("1") for c in found]

    return verify


def openssl(key, signature, message) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def hashed(*parts) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER


def little(number: int) -> bytes:
    return number.to_bytes(32, "little")


def good(seed: int):
    generator = random.Random(seed)
    message = generator.randbytes(generator.choice([0, 1, 46, 47, 48, 63, 64, 111, 112, 175, 176, 255]))
    key = Ed25519PrivateKey.from_private_bytes(generator.randbytes(32))
    return key.public_key().public_bytes_raw(), key.sign(message), message


def flipped(data: bytes, bit: int) -> bytes:
    return (int.from_bytes(data, "little") ^ 1 << bit).to_bytes(len(data), "little")


def test_vectors_of_the_rfc(in_c):
    cases = [tuple(map(bytes.fromhex, (k, s, m))) for k, m, s in VECTORS]
    assert [ed25519.verify(*case) for case in cases] == in_c(cases) == [True] * 3


def test_good_and_nearly_good(in_c):
    """A flipped bit anywhere, S + L, -S, a signature of another message, swapped halves."""
    cases = []
    for seed in range(12):
        key, signature, message = good(seed)
        s = int.from_bytes(signature[32:], "little")
        cases += [(key, signature, message), (key, signature, message[1:] + b"x"), (key, signature, b"")]
        cases += [(key, signature[:32] + little(s + k * ORDER), message) for k in range(1, 9)]
        cases += [
            (key, signature[:32] + little(ORDER - s), message),
            (key, signature[32:] + signature[:32], message),
        ]
        cases += [(key, flipped(signature, 43 * seed + 37 * k & 511), message) for k in range(6)]
        cases += [(flipped(key, 21 * seed + 37 * k & 255), signature, message) for k in range(6)]
    wanted = [openssl(*case) for case in cases]
    assert wanted.count(True) >= 12
    assert [ed25519.verify(*case) for case in cases] == in_c(cases) == wanted


def test_points_that_are_no_ordinary_ones(in_c):
    """As R: OpenSSL's opinion.  As keys: refused, though OpenSSL takes some, for which anything is signed."""
    strange = [bytes.fromhex(text) for text in SMALL_ORDER + NOT_CANONICAL]
    as_r = []
    for r in strange:
        key, signature, message = good(3)
        as_r.append((key, r + signature[32:], message))
    as_key = [
        (key, r + little(s), m) for key in strange for r in strange for s in (0, 1) for m in (b"", b"abcd")
    ]
    wanted = [openssl(*case) for case in as_r]
    assert [ed25519.verify(*case) for case in as_r] == in_c(as_r) == wanted
    assert any(openssl(*case) for case in as_key), "OpenSSL takes some: this is where we are stricter"
    assert [ed25519.verify(*case) for case in as_key] == in_c(as_key) == [False] * len(as_key)


def test_r_of_small_order_under_a_good_key(in_c):
    """R of order 1, 2, 4 and 8 with the S that fits: right, and one encoding alone."""
    cases = []
    generator = random.Random(5)
    a = generator.randrange(ORDER)
    key = ed25519._encode(multiple(a, BASE))
    for r in [bytes.fromhex(text) for text in SMALL_ORDER + NOT_CANONICAL]:
        for message in (b"", b"a", b"bc"):
            cases.append((key, r + little(hashed(r, key, message) * a % ORDER), message))
    wanted = [openssl(*case) for case in cases]
    assert True in wanted and False in wanted
    assert [ed25519.verify(*case) for case in cases] == in_c(cases) == wanted


def test_keys_with_a_part_of_small_order(in_c):
    """a B + T: whether [8] is multiplied in decides; OpenSSL and we do not."""
    generator = random.Random(6)
    torsion = ed25519._decode(bytes.fromhex(SMALL_ORDER[4]))
    a, r = generator.randrange(ORDER), generator.randrange(ORDER)
    key = ed25519._encode(ed25519._add(multiple(a, BASE), torsion))
    cases = []
    for number in range(40):
        for point in (multiple(r, BASE), ed25519._add(multiple(r, BASE), torsion)):
            message, encoded = bytes([number]), ed25519._encode(point)
            cases.append((key, encoded + little((r + hashed(encoded, key, message) * a) % ORDER), message))
    wanted = [openssl(*case) for case in cases]
    assert True in wanted and False in wanted
    assert [ed25519.verify(*case) for case in cases] == in_c(cases) == wanted


def test_wrong_sizes_in_python():
    key, signature, message = good(1)
    assert ed25519.verify(key, signature, message)
    for wrong in (
        (key[:-1], signature),
        (key + b"\0", signature),
        (key, signature[:-1]),
        (key, signature + b"\0"),
    ):
        assert not ed25519.verify(*wrong, message)


BASE = ed25519._decode(bytes([0x58] + [0x66] * 31))


def multiple(k: int, point):
    return ed25519._combination(k, point, 0, ed25519._NEUTRAL)
