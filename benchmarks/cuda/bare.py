"""Checks and times every kernel of a bundle on this machine's GPU; bundle.py puts this file beside it.

python bare.py FOLDER [--json results.json] [--check]      --check: no times, for compute-sanitizer
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

if __package__:
    from .driver import Device, DriverError
    from .problems import TOLERANCE, expected, inputs
else:
    from driver import Device, DriverError
    from problems import TOLERANCE, expected, inputs

#: Enough launches between two events that the queue never runs dry.
_REPEATS = 20


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


_LAUNCH = ("kernel", "tile", "grid", "block", "shared", "args")


def _prepare(device: Device, problem: dict):
    arrays, shape, weight = inputs(problem)
    sample, want = expected(problem, arrays, weight)
    result = np.full(shape, np.nan, np.float32)
    return [device.upload(a) for a in (*arrays, result)], result, sample, want


def _one(device: Device, problem: dict, made, check_only: bool) -> dict:
    memory, result, sample, want = made
    kernel = device.kernel(problem["kernel"], problem["shared"])
    args = [memory[i] for i in problem["args"]]

    def launch():
        device.launch(kernel, problem["grid"], problem["block"], problem["shared"], args)

    launch()
    device.synchronize()
    got = device.download(memory[-1], result.copy()).reshape(-1, result.shape[-1])[sample]
    error = float(np.abs(got - want).max() / np.abs(want).max())
    found = {"error": error, "right": error <= TOLERANCE}
    if not check_only:
        found["seconds"] = device.seconds(launch, _REPEATS)
    return found


def _line(row: dict) -> str:
    sizes = " ".join(f"{k}={row[k]}" for k in ("m", "k", "n", "sparse", "pattern", "shape") if k in row)
    took = f"{row['seconds'] * 1e6:9.1f} us" if "seconds" in row else ""
    others = " ".join(f"{name} {s * 1e6:.1f}" for name, s in row["peers"].items())
    return f"{'right' if row['right'] else 'WRONG'} {row['error']:.1e} {took}  {row['op']} {sizes}  {others}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path, help="write the rows there")
    parser.add_argument("--check", action="store_true", help="check the numbers, take no times")
    asked = parser.parse_args()
    plan = json.loads((asked.folder / "plan.json").read_text())
    peers = None
    if not asked.check:
        try:
            from peers import seconds as peers
        except ImportError as error:
            print(f"no peers: {error}")
    started = time.time()
    try:
        device = Device((asked.folder / "kernels.fatbin").read_bytes())
        rows = run(device, plan, asked.check, peers)
        device.close()
    except (DriverError, OSError) as error:
        print(f"bare.py: {error}", file=sys.stderr)
        return 1
    if asked.json:
        asked.json.write_text(json.dumps(rows, indent=1))
    wrong = sum(not row["right"] for row in rows)
    print(f"{len(rows)} kernels, {wrong} wrong, {time.time() - started:.0f} s")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
