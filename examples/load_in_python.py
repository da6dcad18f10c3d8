"""Load an artifact in Python: inputs by position or name, a profile, and several threads.

    python examples/load_in_python.py [ARTIFACT]

Only numpy is needed where an artifact is run.  Without an argument the demo's sparse network is compiled
first.
"""

import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

import sparsec


def main(artifact: Path) -> None:
    with sparsec.load(artifact, threads=1) as model:
        for port in model.inputs:
            print(f"takes {port.name}: {port.dtype}{list(port.shape)}")
        rng = np.random.default_rng(0)
        feeds = {port.name: rng.standard_normal(port.shape).astype(port.dtype) for port in model.inputs}

        outputs = model(feeds)  # or, in the order of model.inputs: model(image)
        for name, value in outputs.items():
            print(f"gives {name}: {value.dtype}{list(value.shape)}")

        for nodes, seconds in model.profile(feeds, repeats=20):
            print(f"{seconds * 1e6:8.1f} us  {nodes}")

        # One context a thread; code and weights are shared, the GIL is free while a model runs.
        contexts = [model.context() for _ in range(2)]
        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(lambda context: context(feeds), contexts))
        same = all(np.array_equal(a[name], outputs[name]) for a in results for name in outputs)
        print(f"{len(contexts)} threads agree: {same}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        source = Path(__file__).resolve().parent / "digits" / "sparse.onnx"
        with tempfile.TemporaryDirectory() as name:
            made = Path(name) / "digits.sparsec"
            subprocess.run([sys.executable, "-m", "sparsec", "compile", source, "-o", made], check=True)
            main(made)
