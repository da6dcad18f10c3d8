"""One folder onto several devices, each by itself: copy, then let its installer verify, test and switch."""

import dataclasses
import hashlib
import secrets
import shlex
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from sparsec.compiler.errors import CompileError
from sparsec.compiler.export.publish import SUMS

from .device import UNREACHABLE, Device, Done

# The exit statuses of install.sh.
_STATUSES = {0: "done", 1: "refused", 3: "taken back", 4: "busy", UNREACHABLE: "unreachable"}


@dataclass(frozen=True)
class Plan:
    """What is to be done on every device.

    ``folder``: an exported folder.  ``prefix``: where versions lie there; the installer's default if empty.
    ``key``: the PEM of a public key that must have signed the folder, or nothing.  ``after``: a shell command
    that runs there after each change of the version in use.
    """

    folder: Path
    prefix: str = ""
    key: bytes = b""
    after: str = ""
    rollback: bool = False

    def __post_init__(self):
        if not ((self.folder / "install.sh").is_file() and (self.folder / SUMS).is_file()):
            raise CompileError(f"{str(self.folder)!r} is no folder that 'sparsec export' made")
        if self.prefix and not self.prefix.startswith("/"):
            raise CompileError(f"the folder on the device must be an absolute path, found {self.prefix!r}")

    @property
    def version(self) -> str:
        """What the installer calls the folder's content."""
        return hashlib.sha256((self.folder / SUMS).read_bytes()).hexdigest()[:16]


@dataclass(frozen=True)
class Outcome:
    """What became of a device: ``status`` is done, refused, taken back, busy or unreachable."""

    host: str
    status: str
    message: str
    version: str
    seconds: float

    def to_json(self) -> dict:
        return dataclasses.asdict(self)


def roll_out(
    plan: Plan, hosts: Sequence[str], ssh: Sequence[str], jobs: int, tell: Callable[[str], None]
) -> list[Outcome]:
    """Carries out ``plan`` on ``hosts``, ``jobs`` at a time; ``tell`` gets a line for each that is finished.

    No exception for what happens on a device: that is its outcome.
    """

    def one(host: str) -> Outcome:
        start = time.monotonic()
        device = Device(host, tuple(ssh))
        done = go_back(plan, device) if plan.rollback else install(plan, device)
        message = (done.lines[-1] if done.lines else "") if done.status == 0 else done.complaint
        version = current(plan, device) if done.status != UNREACHABLE else ""
        status = _STATUSES.get(done.status, "refused")
        tell(f"{host}: {status}: {message}")
        return Outcome(host, status, message, version, round(time.monotonic() - start, 3))

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, hosts))


def install(plan: Plan, device: Device) -> Done:
    """Copies the folder to ``incoming`` and runs its installer there; what could not be copied is removed."""
    incoming = f"incoming/{plan.version}-{secrets.token_hex(4)}"
    probe = f"""{_prefix(plan)}; umask 022; mkdir -p "$P/{incoming}" && echo "$P"; command -v rsync"""
    found = device.run(probe)
    if not found.lines or not found.lines[0].startswith("/"):
        return dataclasses.replace(found, status=found.status or 1)
    prefix, to = found.lines[0], f"{found.lines[0]}/{incoming}"
    done = device.copy(plan.folder, to, rsync=len(found.lines) > 1)
    if done.status:
        device.run(shlex.join(["rm", "-rf", to]))
        status = UNREACHABLE if done.status == UNREACHABLE else 1
        return dataclasses.replace(done, status=status, complaint=f"the copy failed: {done.complaint}")
    words = ["sh", f"{to}/install.sh", "--prefix", prefix, *_after(plan)]
    if not plan.key:
        done = device.run(shlex.join(words))
    else:
        key = f"{to}.pub"
        command = f"cat >{shlex.quote(key)} && {shlex.join([*words, '--require-signature', key])}"
        done = device.run(f"{command}; s=$?; rm -f {shlex.quote(key)}; exit $s", plan.key)
    if done.status and done.status != UNREACHABLE:
        device.run(shlex.join(["rm", "-rf", to]))
    return done


def go_back(plan: Plan, device: Device) -> Done:
    """Makes the previous version current, by the installer of the current one."""
    words = shlex.join(["--rollback", *_after(plan)])
    return device.run(f"""{_prefix(plan)}; sh "$P/current/install.sh" --prefix "$P" {words}""")


def current(plan: Plan, device: Device) -> str:
    """The version in use; nothing if there is none."""
    done = device.run(f"""{_prefix(plan)}; readlink "$P/current" """)
    return done.lines[0].rpartition("/")[2] if done.lines else ""


def _prefix(plan: Plan) -> str:
    """Sets P there to the folder of versions, by the rule of install.sh."""
    if plan.prefix:
        return f"P={shlex.quote(plan.prefix)}"
    line = next(x for x in (plan.folder / "install.sh").read_text().splitlines() if x.startswith("name="))
    return f"{line}; P=/opt/sparsec/$name; [ $(id -u) = 0 ] || P=$HOME/sparsec/$name"


def _after(plan: Plan) -> list[str]:
    return ["--after", plan.after] if plan.after else []
