"""Checks and times every kernel of a bundle on this machine's GPU; bundle.py puts this file beside it.

python bare.py FOLDER [--json results.json] [--check] [--few]
python bare.py FOLDER --sanitize

--check: no times; --few: only what is small; --sanitize: both, under NVIDIA's compute-sanitizer.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

if __package__:
    from .driver import Device, DriverError
    from .problems import expected, inputs, tolerance, work
else:
    from driver import Device, DriverError
    from problems import expected, inputs, tolerance, work

#: Enough launches between two events that the queue never runs dry.
_REPEATS = 20
#: Multiply-adds of what is small.
_FEW = 1 << 26
#: Of compute-sanitizer: accesses outside of buffers, races, reads of what nobody wrote, barriers.
_TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")


def run(device: Device, plan: list[dict], check_only: bool, peers=None) -> list[dict]:
    """The rows: each problem with ``error``, relative to its largest result, and ``seconds``."""
    rows, key, made = [], None, None
    for problem in plan:
        own = {name: value for name, value in problem.items() if name not in _LAUNCH}
        if own != key:
            device.free()
            key, made = own, _prepare(device, problem)
            others = peers(problem) if peers and not check_only else {}
        rows.append({**problem, **_one(device, problem, made, check_only), "peers": others})
        print(_line(rows[-1]), flush=True)
    return rows


_LAUNCH = ("tile", "launches", "scratch")


def _prepare(device: Device, problem: dict):
    arrays, shape, weight = inputs(problem)
    sample, want = expected(problem, arrays, weight)
    result = np.full(shape, np.nan, np.float32)
    scratch = device.upload(np.zeros(max(1, problem["scratch"]), np.uint8))
    return [device.upload(a) for a in (*arrays, result)], scratch, result, sample, want


def _one(device: Device, problem: dict, made, check_only: bool) -> dict:
    memory, scratch, result, sample, want = made
    launches = []
    for each in problem["launches"]:
        args = [memory[at] if kind == "param" else device.behind(scratch, at) for kind, at in each["args"]]
        kernel = device.kernel(each["kernel"], each["shared"])
        launches.append((kernel, each["grid"], each["block"], each["shared"], args))

    def launch():
        for each in launches:
            device.launch(*each)

    launch()
    device.synchronize()
    got = device.download(memory[-1], result.copy()).reshape(-1, result.shape[-1])[sample]
    error = float(np.abs(got - want).max() / np.abs(want).max())
    found = {"error": error, "right": error <= tolerance(problem)}
    if not check_only:
        found["seconds"] = device.seconds(launch, _REPEATS)
    return found


_SHOWN = ("heads", "m", "k", "n", "sparse", "picked", "pattern", "shape", "normaliser", "half")


def _line(row: dict) -> str:
    sizes = " ".join(f"{k}={row[k]}" for k in _SHOWN if k in row)
    took = f"{row['seconds'] * 1e6:9.1f} us" if "seconds" in row else ""
    others = " ".join(f"{name} {s * 1e6:.1f}" for name, s in row["peers"].items())
    return f"{'right' if row['right'] else 'WRONG'} {row['error']:.1e} {took}  {row['op']} {sizes}  {others}"


def sanitize(folder: Path) -> int:
    """Runs the small problems under every tool of compute-sanitizer; nonzero where one finds something."""
    command = shutil.which("compute-sanitizer")
    if command is None:
        print("compute-sanitizer is not installed, and was not run")
        return 0
    run_it = [sys.executable, __file__, str(folder), "--check", "--few"]
    return max(
        subprocess.run([command, "--tool", tool, "--error-exitcode", "1", *run_it]).returncode
        for tool in _TOOLS
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--check", action="store_true", help="check the numbers, take no times")
    parser.add_argument("--few", action="store_true", help="the small problems only, and no network")
    parser.add_argument("--sanitize", action="store_true", help="the same under compute-sanitizer")
    asked = parser.parse_args()
    if asked.sanitize:
        return sanitize(asked.folder)
    plan = json.loads((asked.folder / "plan.json").read_text())
    plan = [problem for problem in plan if not asked.few or work(problem) <= _FEW]
    peers = network_peers = None
    if not asked.check:
        try:
            from peer_networks import seconds as network_peers
            from peers import seconds as peers
        except ImportError as error:
            print(f"no peers: {error}")
    started = time.time()
    try:
        device = Device((asked.folder / "kernels.fatbin").read_bytes())
        rows = run(device, plan, asked.check, peers)
        device.close()
        if not asked.few:
            from bare_networks import run as run_networks

            rows += run_networks(asked.folder, asked.check, network_peers)
    except (DriverError, OSError) as error:
        print(f"bare.py: {error}", file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    wrong = sum(not row["right"] for row in rows)
    print(f"{len(rows)} kernels and networks, {wrong} wrong, {time.time() - started:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
