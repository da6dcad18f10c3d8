"""``sparsec keygen``, ``sign``, ``--require-signature``: what its author signed, or refused."""

import json
import shutil
import subprocess
import zipfile

import numpy as np
import pytest

import sparsec
from sparsec.compiler import contents, package
from sparsec.runtime import ArtifactError, InputError, SignatureError, signature

pytest.importorskip("cryptography", reason="not installed: pip install 'sparsec[sign]'")


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """Two private keys; each one's public key is beside it."""
    from sparsec.compiler import signing

    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        signing.new_key(folder / name)
    return folder


@pytest.fixture(scope="module")
def signed(artifact, keys, tmp_path_factory):
    """The artifact with our signature."""
    from sparsec.compiler import signing

    path = tmp_path_factory.mktemp("signed") / "digits.sparsec"
    signing.sign(artifact, signing.private_key(keys / "ours", str), path)
    return path


def rewritten(source, out, change):
    """``source`` with ``change(manifest, members)`` made to it and every hash right again."""
    found = contents.read(source)
    manifest, members = json.loads(found.manifest_bytes), dict(found.members)
    change(manifest, members)
    package.write_artifact(out, manifest, members)
    again = contents.read(out)
    if found.signature:
        record = {signature.MEMBER: found.signature}
        package.publish(out, package.layout(again.manifest_bytes, again.members | record))
    return out


def test_keygen_makes_a_pair_once(call, one_line, tmp_path):
    key = tmp_path / "key"
    assert call("keygen", key).stdout == f"wrote {key} (keep it secret) and {key}.pub\n"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(signature.public_key(f"{key}.pub")) == 32
    before = key.read_bytes()
    result = call("keygen", key)
    assert result.exit_code == 1 and "a key that is in use must not be lost" in one_line(result)
    assert key.read_bytes() == before


def test_a_signed_artifact_runs(call, artifact, signed, keys, tmp_path):
    x = np.random.default_rng(0).random((1, 64), np.float32)
    (name,) = [info.name for info in sparsec.load(artifact).inputs]
    np.save(tmp_path / "x.npy", x.reshape(sparsec.load(artifact).inputs[0].shape))
    key = keys / "ours.pub"
    results = [
        call("run", path, "--input", f"{name}={tmp_path / 'x.npy'}", *more)
        for path, more in ((artifact, ()), (signed, ()), (signed, ("--require-signature", key)))
    ]
    assert [r.exit_code for r in results] == [0, 0, 0]
    assert len({r.stdout for r in results}) == 1
    said = call("verify", signed, "--require-signature", key)
    assert said.exit_code == 0 and f"ok  it was signed with the key of {key}" in said.stdout


def test_signing_is_deterministic_and_replaces(call, artifact, signed, keys, tmp_path):
    out = tmp_path / "m.sparsec"
    assert call("sign", artifact, "--key", keys / "theirs", "-o", out).exit_code == 0
    assert out.read_bytes() != signed.read_bytes()
    said = call("sign", out, "--key", keys / "ours").stdout
    assert said == f"signed {out} with the key {signature.name(signature.public_key(keys / 'ours.pub'))}\n"
    assert out.read_bytes() == signed.read_bytes()


def test_refusals(call, one_line, artifact, signed, keys, tmp_path):
    def refusal(path, key="ours.pub"):
        results = [call(c, path, "--require-signature", keys / key) for c in ("verify", "run")]
        assert [r.exit_code for r in results] == [1, 1]
        (line,) = {one_line(r) for r in results}
        return line

    assert "it is not signed; a signature by the key" in refusal(artifact)
    assert "it is signed by the key" in refusal(signed, "theirs.pub")

    def change_weights(_, members):
        members["weights.bin"] = bytes(len(members["weights.bin"]))

    forged = rewritten(signed, tmp_path / "forged.sparsec", change_weights)
    assert "is wrong: it was changed after signing" in refusal(forged)
    sparsec.load(forged).close()  # whole as it is, so nobody but the signature tells
    assert "is not an Ed25519 public key in PEM: 'sparsec keygen' makes a pair" in refusal(signed, "ours")
    assert "cannot read the public key" in refusal(signed, "nobody.pub")


def test_require_signature_in_python(signed, keys):
    key = signature.public_key(keys / "ours.pub")
    sparsec.load(signed, require_signature=key).close()
    with pytest.raises(SignatureError, match="is signed by the key"):
        sparsec.load(signed, require_signature=bytes(32))
    with pytest.raises(InputError, match="an Ed25519 public key has 32 bytes, found 3"):
        sparsec.load(signed, require_signature=b"abc")


@pytest.mark.parametrize("bit", [0, 8 * 40, 8 * 95])
def test_a_damaged_signature_is_damage_for_everyone(signed, tmp_path, bit):
    data = bytearray(signed.read_bytes())
    at = data.index(contents.read(signed).signature) + bit // 8
    data[at] ^= 1
    path = tmp_path / "damaged.sparsec"
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"signature.bin has a wrong size or checksum"):
        sparsec.load(path)


def test_openssl_checks_it(signed, keys, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("not installed: openssl")
    with zipfile.ZipFile(signed) as opened:
        (tmp_path / "manifest.json").write_bytes(opened.read("manifest.json"))
        (tmp_path / "signature").write_bytes(opened.read("signature.bin")[32:])
    command = "openssl pkeyutl -verify -pubin -rawin -in manifest.json -sigfile signature -inkey"
    done = subprocess.run([*command.split(), keys / "ours.pub"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_keys_that_cannot_sign(call, one_line, artifact, keys, tmp_path):
    from cryptography.hazmat.primitives.asymmetric import x25519
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        NoEncryption,
        PrivateFormat,
        load_pem_private_key,
    )

    def failed(key):
        return one_line(call("sign", artifact, "--key", key, "-o", tmp_path / "out"))

    other = x25519.X25519PrivateKey.generate()
    (tmp_path / "x").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for wrong in (keys / "ours.pub", tmp_path / "x"):
        assert "is not an Ed25519 private key in PEM; 'sparsec keygen' makes one" in failed(wrong)
    ours = load_pem_private_key((keys / "ours").read_bytes(), None)
    locked = ours.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"abc"))
    (tmp_path / "locked").write_bytes(locked)
    from sparsec.compiler import signing
    from sparsec.compiler.errors import CompileError

    assert (
        signing.private_key(tmp_path / "locked", lambda: "abc").private_bytes_raw()
        == ours.private_bytes_raw()
    )
    with pytest.raises(CompileError, match="the passphrase is wrong"):
        signing.private_key(tmp_path / "locked", lambda: "abd")
    assert not (tmp_path / "out").exists()
