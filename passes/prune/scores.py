"""Scores of single weights `[rows, K]`: the higher, the sooner a weight is kept.

magnitude   |w|
energy      w^2
random      uniform, seeded: the baseline that every method has to beat
wanda       |w_j| * ||x_j||_2   (Sun et al., 2023, eq. 1); of a block the squares are summed, which is the
            rise of the output's error when inputs are uncorrelated
"""

from __future__ import annotations

import numpy as np

from sparsec.passes.prune.moments import Problem

SEED = 0


def magnitude(problem: Problem) -> np.ndarray:
    return np.abs(problem.dense)


def energy(problem: Problem) -> np.ndarray:
    return np.square(problem.dense)


def random(problem: Problem) -> np.ndarray:
    return np.random.default_rng(SEED).random(problem.dense.shape)


def wanda(problem: Problem) -> np.ndarray:
    return np.square(problem.dense) * (problem.variance + problem.mean**2)
