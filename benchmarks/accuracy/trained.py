"""Time networks that `examples/minilm/distil.py` has trained, beside the dense one compiled alike.

    python examples/minilm/distil.py 2:4x32 --folder FOLDER
    python -m benchmarks.accuracy.trained FOLDER [FOLDER ...]

Results are added to ``benchmarks/results/accuracy.json``.
"""

import argparse
import json
import sys
from pathlib import Path

import sparsec

from .minilm import ROOT
from .store import add
from .turns import best

sys.path.append(str(ROOT / "examples" / "minilm"))

from distil import export

from zoo.minilm import minilm

ROUNDS = 200


def dense(folder: Path) -> Path:
    """The artifact of the dense network, made in `folder` where it is not there."""
    artifact = folder / "dense.sparsec"
    if not artifact.exists():
        export(minilm(small=False).module, folder / "dense.onnx")
        sparsec.compile(folder / "dense.onnx", artifact, target="native")
    return artifact


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    folders = parser.parse_args().folders
    files = {"dense": dense(folders[0])} | {str(folder): folder / "minilm.sparsec" for folder in folders}
    times = best({name: sparsec.load(file, threads=1) for name, file in files.items()}, ROUNDS)
    for folder in folders:
        row = json.loads((folder / "result.json").read_text())
        row |= {"ms": round(times[str(folder)], 2), "dense_ms": round(times["dense"], 2)}
        row["speed"] = round(times["dense"] / times[str(folder)], 3)
        add("trained", row)
        print(f"{row['pattern']}: {row['speed']:.2f}x, cosine {row['cosine']}")


if __name__ == "__main__":
    main()
