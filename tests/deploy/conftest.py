"""Devices to deploy to: BusyBox in a folder, and an sshd on loopback whose sessions have BusyBox alone."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparsec.compiler.export import publish, texts
from sparsec.compiler.export.publish import File


def needs(*programs: str) -> None:
    missing = [p for p in programs if shutil.which(p, path=f"{os.environ['PATH']}:/usr/sbin") is None]
    if missing:
        packages = {"busybox": "busybox", "sshd": "openssh-server", "ssh": "openssh-client", "rsync": "rsync"}
        names = " ".join(packages.get(p, p) for p in missing)
        pytest.skip(f"not installed: {', '.join(missing)} (apt-get install {names})")


@pytest.fixture
def folder(tmp_path):
    """``folder(text, selftest)`` -> a folder as ``sparsec export`` makes it, for a model called toy."""

    def made(text: str, selftest: str = "exit 0", *, size: int = 0, more: dict | None = None) -> Path:
        files = {
            "install.sh": texts.script("install.sh", NAME="toy"),
            "selftest": File(f"#!/bin/sh\n{selftest}\n".encode(), program=True),
            "a folder/a file": File(text.encode() + bytes(size)),
            **(more or {}),
        }
        path = tmp_path / f"export-{len(list(tmp_path.iterdir()))}"
        publish.write_folder(path, publish.with_sums(files))
        return path

    return made


@pytest.fixture(scope="session")
def busybox(tmp_path_factory) -> Path:
    """A folder of BusyBox's programs and no others, to be a PATH."""
    needs("busybox")
    path = tmp_path_factory.mktemp("busybox")
    subprocess.run(["busybox", "--install", "-s", path], check=True)
    return path


@pytest.fixture
def install(busybox):
    """``install(folder, prefix, *options)`` runs the installer by BusyBox; a CompletedProcess."""

    def run(folder: Path, prefix: Path, *options, path: Path = busybox, variables=None, **more):
        command = [busybox / "sh", folder / "install.sh", "--prefix", prefix, *options]
        environment = {"PATH": str(path), "HOME": "/nowhere", **(variables or {})}
        given = {"capture_output": True, "text": True, "timeout": 60} | more
        return subprocess.run(list(map(str, command)), env=environment, **given)

    return run


def in_use(prefix: Path) -> str | None:
    """The text of the version in use, which must be whole; None if there is none."""
    current = prefix / "current"
    if not current.exists():
        assert not current.is_symlink()
        return None
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=current, check=True)
    return (current / "a folder/a file").read_text().rstrip("\0")


@dataclass(frozen=True)
class Server:
    """``ssh``: the command without the host; ``path``: its sessions' programs; ``root``: a folder there."""

    ssh: str
    path: Path
    root: Path


@pytest.fixture(scope="session")
def server(busybox, tmp_path_factory):
    """An sshd whose sessions are BusyBox shells with BusyBox's programs alone."""
    needs("sshd", "ssh", "ssh-keygen")
    root, keys = tmp_path_factory.mktemp("device"), tmp_path_factory.mktemp("sshd")
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", keys / name], check=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = tmp_path_factory.mktemp("programs")
    for program in busybox.iterdir():
        (path / program.name).symlink_to(program.readlink())
    session = keys / "session"
    session.write_text(
        f"#!/bin/sh\ncd {root} && exec {busybox}/env -i PATH={path} HOME={root} "
        f'{busybox}/sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    session.chmod(0o755)
    (keys / "config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {keys}/host\nAuthorizedKeysFile {keys}/user.pub\n"
        f"ForceCommand {session}\nPidFile none\nStrictModes no\nUsePAM no\nPermitRootLogin yes\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxStartups 100\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights
    sshd = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
    log = (keys / "log").open("wb")
    process = subprocess.Popen([sshd, "-D", "-e", "-f", keys / "config"], stderr=log)
    options = f"-p {port} -i {keys}/user -o IdentitiesOnly=yes -o StrictHostKeyChecking=no"
    options += f" -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR -o BatchMode=yes -o ControlPath={keys}/%C"
    ssh = f"ssh -F none {options}"
    try:
        for _ in range(100):
            # One connection for all sessions, which saves a second for each of them.
            if subprocess.run([*ssh.split(), "-MNf", host()], stderr=log).returncode == 0:
                break
            time.sleep(0.1)
        else:
            pytest.skip(f"sshd does not answer here: {(keys / 'log').read_text()[-500:]}")
        yield Server(ssh, path, root)
    finally:
        subprocess.run([*ssh.split(), "-O", "exit", host()], capture_output=True)
        process.terminate()
        process.wait()


def host() -> str:
    return f"{getpass.getuser()}@127.0.0.1"
