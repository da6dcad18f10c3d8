"""A device that is reached over ssh.  It needs a POSIX shell, such as BusyBox's, and rsync or tar."""

import shlex
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

UNREACHABLE = 255
"""ssh's exit status where the connection fails, and not what runs over it."""


@dataclass(frozen=True)
class Done:
    """What a command on a device left: its exit status, its lines on stdout, its last line on stderr."""

    status: int
    lines: tuple[str, ...]
    complaint: str


@dataclass(frozen=True)
class Device:
    """``host`` as ssh takes it, ``ssh`` the command without the host."""

    host: str
    ssh: tuple[str, ...]

    def run(self, command: str, stdin: bytes = b"") -> Done:
        """Runs a shell command there."""
        made = [*self.ssh, self.host, command]
        return _done(subprocess.run(made, input=stdin, capture_output=True))

    def copy(self, folder: Path, to: str, *, rsync: bool) -> Done:
        """Copies the content of ``folder`` into the folder ``to``, which is there, by rsync or as a tar."""
        if rsync and shutil.which("rsync"):
            options = ["-rlps", "--delete", "-e", shlex.join(self.ssh)]
            made = ["rsync", *options, f"{folder}/", f"{self.host}:{to}/"]
            return _done(subprocess.run(made, stdin=subprocess.DEVNULL, capture_output=True))
        made = [*self.ssh, self.host, f"tar -C {shlex.quote(to)} -xf -"]
        pipe = subprocess.PIPE
        with subprocess.Popen(made, stdin=pipe, stdout=pipe, stderr=pipe) as process:
            try:
                with tarfile.open(fileobj=process.stdin, mode="w|") as out:
                    out.add(folder, ".", filter=_nobodys)
            except OSError:
                pass  # the other end says why
            stdout, stderr = process.communicate()
        return _done(subprocess.CompletedProcess(made, process.returncode, stdout, stderr))


def _nobodys(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """What belongs to somebody here shall belong to root there, where root unpacks it."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _done(process: subprocess.CompletedProcess) -> Done:
    said = process.stderr.decode(errors="replace").strip().splitlines() or [""]
    lines = process.stdout.decode(errors="replace").splitlines()
    return Done(process.returncode, tuple(lines), said[-1])
