"""install.sh under BusyBox: whatever happens, the version in use is a whole one that passed its self-test."""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sparsec.compiler.export import programs
from sparsec.compiler.export.publish import File

from .conftest import in_use


def test_install_keep_and_go_back(folder, install, tmp_path):
    prefix = tmp_path / "a place"
    one, two, three = folder("one"), folder("two"), folder("three")
    assert install(one, prefix, "--rollback").returncode == 1
    for path, text in ((one, "one"), (two, "two")):
        done = install(path, prefix)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("toy: installed ") and in_use(prefix) == text
    assert (prefix / "previous/a folder/a file").read_text() == "one"
    assert install(two, prefix).stdout.endswith(" is in use already\n")
    assert install(three, prefix).returncode == 0
    assert len(list((prefix / "releases").iterdir())) == 2, "one version is kept, not all"
    assert install(prefix / "current", prefix, "--rollback").returncode == 0
    assert in_use(prefix) == "two"
    assert install(prefix / "current", prefix, "--rollback").returncode == 0
    assert in_use(prefix) == "three"
    status = install(three, prefix, "--status").stdout
    assert status.startswith("toy: current ") and "previous " in status
    assert {p.name for p in prefix.iterdir()} == {"current", "previous", "releases", "incoming"}
    assert not any((prefix / "incoming").iterdir())


def damaged(path):
    (path / "a folder/a file").write_text("owt")


def cut_off(path):
    (path / "a folder/a file").write_text("tw")


def missing(path):
    (path / "a folder/a file").unlink()


def added(path):
    (path / "a folder/another").write_text("x")


def linked(path):
    (path / "a folder/link").symlink_to("/etc/passwd")


def unlisted(path):
    (path / "SHA256SUMS").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damaged, "damaged: a folder/a file: FAILED"),
        (cut_off, "damaged: a folder/a file: FAILED"),
        (missing, "damaged: "),
        (added, "there are files that SHA256SUMS does not list"),
        (linked, "there is something that is neither a file nor a folder"),
        (unlisted, "has no SHA256SUMS: it was not copied whole"),
    ],
)
def test_what_is_not_whole_is_refused(folder, install, tmp_path, spoil, words):
    prefix, two = tmp_path / "prefix", folder("two")
    install(folder("one"), prefix)
    spoil(two)
    done = install(two, prefix)
    assert done.returncode == 1 and words in done.stderr and done.stderr.count("\n") == 1
    assert in_use(prefix) == "one"


def test_a_failing_selftest_changes_nothing(folder, install, tmp_path):
    prefix = tmp_path / "prefix"
    install(folder("one"), prefix)
    done = install(folder("two", "echo wrong numbers >&2; exit 1"), prefix)
    assert done.returncode == 1 and in_use(prefix) == "one"
    assert "wrong numbers" in done.stderr and "stays in use" in done.stderr
    assert len(list((prefix / "releases").iterdir())) == 1
    nothing = tmp_path / "nothing"
    assert "no version stays in use" in install(folder("two", "exit 1"), nothing).stderr
    assert in_use(nothing) is None


def test_a_command_that_fails_after_the_switch_takes_it_back(folder, install, tmp_path):
    prefix, log = tmp_path / "prefix", tmp_path / "log"
    file = f'"{prefix}/current/a folder/a file"'
    restart = f"cat {file} >>{log}; echo >>{log}; ! grep -q two {file}"
    assert install(folder("one"), prefix, "--after", restart).returncode == 0
    done = install(folder("two"), prefix, "--after", restart)
    assert done.returncode == 3 and "failed: back to " in done.stderr
    assert in_use(prefix) == "one" and log.read_text() == "one\ntwo\none\n"
    assert not (prefix / "previous").is_symlink(), "as it was"
    first = tmp_path / "first"
    done = install(folder("one"), first, "--after", "false")
    assert done.returncode == 3 and "none is in use now" in done.stderr and in_use(first) is None


def test_going_back_to_a_damaged_version_is_refused(folder, install, tmp_path):
    prefix = tmp_path / "prefix"
    install(folder("one"), prefix)
    install(folder("two"), prefix)
    damaged(prefix / "previous")
    done = install(prefix / "current", prefix, "--rollback")
    assert done.returncode == 1 and "is not right" in done.stderr and in_use(prefix) == "two"


def test_one_installation_at_a_time(folder, install, tmp_path):
    prefix, two = tmp_path / "prefix", folder("two")
    install(folder("one"), prefix)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    lock = prefix / "lock"
    lock.symlink_to(f"{os.getpid()}@{boot}")
    done = install(two, prefix)
    assert done.returncode == 4 and f"process {os.getpid()}, is at work" in done.stderr
    assert in_use(prefix) == "one" and lock.is_symlink()
    for gone in (f"{os.getpid()}@another-boot", f"{2**22 + 1}@{boot}"):  # no process has such a number
        lock.unlink(missing_ok=True)
        lock.symlink_to(gone)
        assert install(two, prefix).returncode == 0
        assert not lock.is_symlink()
    assert in_use(prefix) == "two"


def test_many_at_once(folder, install, tmp_path):
    """Ten start together: each is done or told to wait, and what is in use is whole."""
    prefix = tmp_path / "prefix"
    folders = [folder(f"version {i}") for i in range(10)]
    with ThreadPoolExecutor(10) as pool:
        done = list(pool.map(lambda path: install(path, prefix), folders))
    assert {d.returncode for d in done} <= {0, 4} and any(d.returncode == 0 for d in done)
    assert in_use(prefix).startswith("version ") and not (prefix / "lock").is_symlink()


@pytest.mark.parametrize("options", [["--what"], ["--prefix"], ["--prefix", "relative"]])
def test_wrong_usage(folder, install, tmp_path, options):
    done = install(folder("one"), tmp_path / "prefix", *options)
    assert done.returncode == 2 and done.stderr.startswith("toy: ")


def test_help(folder, install, tmp_path):
    done = install(folder("one"), tmp_path / "prefix", "--help")
    assert done.returncode == 0 and "--rollback" in done.stdout and not (tmp_path / "prefix").exists()


@pytest.mark.parametrize(
    "victims", [pytest.param("0", id="all"), pytest.param("$PPID", id="parent", marks=pytest.mark.slow)]
)
def test_killed_at_every_command(folder, install, busybox, tmp_path, victims):
    """Every program that the script starts is, in its turn, the moment when all of it, or the shell, dies."""
    path, started, killed = tmp_path / "path", tmp_path / "started", tmp_path / "killed"
    path.mkdir()
    for program in busybox.iterdir():
        (path / program.name).symlink_to(program)
    for program in ("sha256sum", "mkdir", "ln", "mv", "cp", "rm", "sync", "find", "readlink", "cut", "sh"):
        (path / program).unlink()
        (path / program).write_text(
            f"#!{busybox}/sh\necho >>{started}\n"
            f"n=$({busybox}/wc -l <{started})\n"
            f"if [ $n -ge $STEP ] && {busybox}/mkdir {killed} 2>{os.devnull}; then\n"
            f'    {busybox}/kill -9 {victims}\n    exit 1\nfi\nexec {busybox}/{program} "$@"\n'
        )
        (path / program).chmod(0o755)
    one, two = folder("one"), folder("two")
    seen, step = set(), 0
    while True:
        step += 1
        prefix = tmp_path / f"prefix{step}"
        install(one, prefix)
        started.write_text("")
        done = install(two, prefix, path=path, start_new_session=True, variables={"STEP": str(step)})
        assert done.returncode in (0, 1, -9), done.stderr
        left = in_use(prefix)
        assert left in ("one", "two")
        seen.add((done.returncode == 0, left))
        again = install(two, prefix)
        assert again.returncode == 0, again.stderr
        assert in_use(prefix) == "two" and (prefix / "previous/a folder/a file").read_text() == "one"
        if not killed.exists():
            break  # the script starts fewer programs than that
        killed.rmdir()
    assert step > 20 and {(False, "one"), (False, "two"), (True, "two")} <= seen


def test_a_full_disk(folder, install, tmp_path):
    """On a file system of 300 kB, with versions of 50 kB: some fit, the one too many changes nothing."""
    prefix = tmp_path / "small"
    prefix.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", prefix]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        assert install(folder("one", size=50_000), prefix).returncode == 0
        assert install(folder("two", size=50_000), prefix).returncode == 0
        (prefix / "filler").write_bytes(bytes(120_000))
        done = install(folder("three", size=50_000), prefix)
        assert done.returncode == 1 and "cannot copy to" in done.stderr
        assert in_use(prefix) == "two" and not any((prefix / "incoming").iterdir())
        (prefix / "filler").unlink()
        assert install(folder("three", size=50_000), prefix).returncode == 0
        assert in_use(prefix) == "three"
    finally:
        subprocess.run(["umount", prefix], check=True)


def test_signatures(folder, install, tmp_path):
    pytest.importorskip("cryptography", reason="not installed: pip install 'sparsec[sign]'")
    pytest.importorskip("ziglang")
    from sparsec.compiler import signing

    for name in ("ours", "theirs"):
        signing.new_key(tmp_path / name)
    prefix, key = tmp_path / "prefix", tmp_path / "ours.pub"
    verify = {"bin/sparsec-verify": File(programs.verifier("x86_64"), program=True)}

    def signed(text, by):
        made = folder(text, more=verify)
        if by:
            signing.sign_folder(made, signing.private_key(tmp_path / by, str))
        return made

    assert install(signed("one", "ours"), prefix, "--require-signature", key).returncode == 0
    for by, words in ((None, "it is not signed"), ("theirs", "it is signed by another key")):
        done = install(signed("two", by), prefix, "--require-signature", key)
        assert done.returncode == 1 and words in done.stderr and in_use(prefix) == "one"
    forged = signed("two", "ours")
    other = signed("forged", None)
    (other / "SHA256SUMS.sig").write_bytes((forged / "SHA256SUMS.sig").read_bytes())
    assert "its signature is wrong" in install(other, prefix, "--require-signature", key).stderr
    # The device's own key is required without being named, and its own program checks it.
    (prefix / "require-signature.pub").write_bytes(key.read_bytes())
    liar = folder("liar", more={"bin/sparsec-verify": File(b"#!/bin/sh\nexit 0\n", program=True)})
    done = install(liar, prefix)
    assert done.returncode == 1 and "it is not signed" in done.stderr and in_use(prefix) == "one"
    assert install(forged, prefix).returncode == 0 and in_use(prefix) == "two"
    assert "cannot read the key" in install(forged, prefix, "--require-signature", "/nowhere").stderr
