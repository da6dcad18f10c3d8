"""``sparsec deploy`` against an sshd on loopback whose sessions have BusyBox alone."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from sparsec.compiler.cli import main

from .conftest import host, in_use


@pytest.fixture
def deploy(server):
    """``deploy(folder, prefix, *options)`` -> (exit code, outcomes, stderr)."""

    def call(folder, prefix, *options, ssh=server.ssh):
        words = ["deploy", folder, host(), "--prefix", prefix, "--ssh", ssh, "--json", *options]
        result = CliRunner().invoke(main, list(map(str, words)), prog_name="sparsec")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, json.loads(result.stdout or "[]"), result.stderr

    return call


@pytest.fixture(params=["tar", "rsync"])
def transport(request, server):
    """With rsync on the device, and without."""
    if request.param == "tar":
        yield request.param
        return
    if shutil.which("rsync") is None:
        pytest.skip("not installed: rsync (apt-get install rsync)")
    (server.path / "rsync").symlink_to(shutil.which("rsync"))
    yield request.param
    (server.path / "rsync").unlink()


def test_deploy_and_go_back(folder, deploy, server, transport):
    prefix = server.root / f"a place {transport}"
    for text in ("one", "two"):
        code, (outcome,), _ = deploy(folder(text), prefix)
        assert (code, outcome["status"]) == (0, "done") and outcome["message"].startswith("toy: installed ")
        assert in_use(prefix) == text and (prefix / "current").readlink().name == outcome["version"]
    assert not any((prefix / "incoming").iterdir())
    code, (outcome,), _ = deploy(folder("two"), prefix, "--rollback")
    assert code == 0 and outcome["message"].startswith("toy: rolled back to ") and in_use(prefix) == "one"


def test_a_failing_selftest_and_a_failing_command(folder, deploy, server):
    prefix = server.root / "failing"
    deploy(folder("one"), prefix)
    code, (outcome,), stderr = deploy(folder("two", "exit 1"), prefix)
    assert (code, outcome["status"]) == (1, "refused") and "the self-test of" in outcome["message"]
    assert stderr.splitlines()[-1] == f"sparsec: 1 of 1 device failed: {host()}"
    assert in_use(prefix) == "one"
    code, (outcome,), _ = deploy(folder("two"), prefix, "--after", "! grep -q two */current/a*/a*")
    assert (code, outcome["status"]) == (1, "taken back") and in_use(prefix) == "one"
    assert not any((prefix / "incoming").iterdir())


def test_an_interrupted_copy(folder, deploy, server, tmp_path):
    """The connection ends after some bytes of the tar: nothing changes, and the next deployment is whole."""
    prefix, two = server.root / "interrupted", folder("two", size=30_000)
    deploy(folder("one"), prefix)
    wrapper = tmp_path / "ssh"
    for cut in (0, 511, 20_000):
        wrapper.write_text(
            f'#!/bin/sh\ncase "$*" in *"tar -C"*) head -c {cut} | {server.ssh} "$@"; exit 255;; esac\n'
            f'exec {server.ssh} "$@"\n'
        )
        wrapper.chmod(0o755)
        code, (outcome,), _ = deploy(two, prefix, ssh=str(wrapper))
        assert (code, outcome["status"]) == (1, "unreachable") and in_use(prefix) == "one"
    # What is cut off but looks complete to the sender is refused by the hashes.
    wrapper.write_text(
        f'#!/bin/sh\ncase "$*" in *"tar -C"*) head -c 5000 | {server.ssh} "$@"; exit 0;; esac\n'
        f'exec {server.ssh} "$@"\n'
    )
    code, (outcome,), _ = deploy(two, prefix, ssh=str(wrapper))
    assert (code, outcome["status"]) == (1, "refused") and in_use(prefix) == "one"
    assert deploy(two, prefix)[0] == 0 and in_use(prefix) == "two"


def test_a_full_disk_on_the_device(folder, deploy, server, transport):
    prefix = server.root / f"small-{transport}"
    prefix.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "none", prefix]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        assert deploy(folder("one", size=50_000), prefix)[0] == 0
        code, (outcome,), _ = deploy(folder("two", size=200_000), prefix)
        assert (code, outcome["status"]) == (1, "refused") and "the copy failed" in outcome["message"]
        assert in_use(prefix) == "one" and not any((prefix / "incoming").iterdir())
        assert deploy(folder("three", size=50_000), prefix)[0] == 0 and in_use(prefix) == "three"
    finally:
        subprocess.run(["umount", prefix], check=True)


def test_signatures(folder, deploy, server, tmp_path):
    pytest.importorskip("cryptography", reason="not installed: pip install 'sparsec[sign]'")
    pytest.importorskip("ziglang")
    from sparsec.compiler import signing
    from sparsec.compiler.export import programs
    from sparsec.compiler.export.publish import File

    signing.new_key(tmp_path / "key")
    prefix, key = server.root / "signed", tmp_path / "key.pub"
    made = folder("one", more={"bin/sparsec-verify": File(programs.verifier("x86_64"), program=True)})
    code, (outcome,), _ = deploy(made, prefix, "--require-signature", key)
    assert (code, outcome["status"]) == (1, "refused") and "it is not signed" in outcome["message"]
    assert in_use(prefix) is None
    result = CliRunner().invoke(main, ["sign", str(made), "--key", str(tmp_path / "key")])
    assert result.exit_code == 0, result.output
    assert deploy(made, prefix, "--require-signature", key)[0] == 0
    assert in_use(prefix) == "one" and not any((prefix / "incoming").iterdir())
    (made / "a folder/a file").write_text("two")
    result = CliRunner().invoke(main, ["sign", str(made), "--key", str(tmp_path / "key")])
    assert result.exit_code == 1 and "are not those of its SHA256SUMS" in result.output


def test_several_devices_and_one_that_is_away(folder, deploy, server, tmp_path):
    """Each by itself: what is away or slow holds up nobody else; two on one device take turns or are told."""
    prefix, names = server.root / "several", tmp_path / "hosts"
    nobody = f"nobody-here@{host().split('@')[1]}"
    names.write_text(f"# the lab\n{nobody}  # away\n\n")
    code, outcomes, stderr = deploy(folder("one"), prefix, "--hosts-file", names)
    assert code == 1 and [o["status"] for o in outcomes] == ["done", "unreachable"]
    assert [o["host"] for o in outcomes] == [host(), nobody]
    assert stderr.splitlines()[-1] == f"sparsec: 1 of 2 devices failed: {nobody}"


def test_concurrent_deployments(folder, deploy, server):
    prefix = server.root / "concurrent"
    deploy(folder("one"), prefix)
    slow = folder("two", f"while [ ! -e {server.root}/go ]; do sleep 0.1; done")
    words = ["deploy", slow, host(), "--prefix", prefix, "--ssh", server.ssh]
    command = ["sparsec", *map(str, words)]
    program = "import sys; from sparsec.compiler.cli import main; sys.argv = sys.argv[1:]; main()"
    with subprocess.Popen([sys.executable, "-P", "-c", program, *command], stdout=-1, stderr=-1) as first:
        while not any(p.name.startswith(version_of(slow)) for p in (prefix / "releases").iterdir()):
            assert first.poll() is None, first.communicate()
        code, (outcome,), _ = deploy(folder("three"), prefix)
        assert (code, outcome["status"]) == (1, "busy")
        assert "another installation, process " in outcome["message"]
        (server.root / "go").touch()
        first.communicate()
        assert first.returncode == 0
    assert in_use(prefix) == "two"
    assert deploy(folder("three"), prefix)[0] == 0 and in_use(prefix) == "three"


def version_of(folder) -> str:
    from sparsec.compiler.deploy import Plan

    return Plan(folder).version


def test_the_table(folder, server):
    prefix = server.root / "table"
    words = ["deploy", folder("one"), host(), "--prefix", prefix, "--ssh", server.ssh]
    result = CliRunner().invoke(main, list(map(str, words)))
    assert result.exit_code == 0
    header, _, row = result.stdout.splitlines()
    assert header.split() == ["host", "version", "in", "use", "time"]
    assert row.startswith(f"{host()}  done  ") and row.endswith(f"toy: installed {row.split()[2]}")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "name a HOST, or a file of them with --hosts-file"),
        (("--", "-oProxyCommand=x"), 2, "is an option where a host is wanted"),
        (("h", "--prefix", "relative"), 1, "must be an absolute path, found 'relative'"),
        (("h", "--require-signature", "/nowhere"), 1, "cannot read the public key '/nowhere'"),
    ],
)
def test_wrong_usage(folder, words, code, said):
    result = CliRunner().invoke(main, ["deploy", str(folder("one")), *words])
    assert result.exit_code == code and said in result.stderr


def test_a_folder_that_is_no_export(tmp_path):
    result = CliRunner().invoke(main, ["deploy", str(tmp_path), "h"])
    assert result.exit_code == 1 and "is no folder that 'sparsec export' made" in result.stderr
