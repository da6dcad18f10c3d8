"""Run the model from Python: needs NumPy and the folder `python` beside this one.

    python3 run.py [NAME=FILE.npy ...]

Inputs without a file are zeros.
"""

import sys
from pathlib import Path

import numpy as np

here = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(here / "python"))

import sparsec_runtime  # noqa: E402

model = sparsec_runtime.load(here / "model.sparsec")
feeds = {info.name: np.zeros(info.shape, info.dtype) for info in model.inputs}
for argument in sys.argv[1:]:
    name, _, path = argument.partition("=")
    feeds[name] = np.load(path, allow_pickle=False)
for name, array in model(feeds).items():
    print(f"{name}: {array.dtype}{list(array.shape)}", *(f"{x:.9g}" for x in array.ravel().tolist()))
