"""The time of compiled networks, run by turns, so that a slow moment costs all of them alike."""

import time

import numpy as np


def best(models: dict, rounds: int) -> dict[str, float]:
    """Milliseconds of the best of ``rounds`` runs of each; all have the inputs of the first, all ones."""
    feed = {port.name: np.ones(port.shape, port.dtype) for port in next(iter(models.values())).inputs}
    found = dict.fromkeys(models, float("inf"))
    for _ in range(rounds):
        for name, model in models.items():
            start = time.perf_counter()
            model(feed)
            found[name] = min(found[name], 1e3 * (time.perf_counter() - start))
    return found
