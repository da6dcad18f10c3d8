"""Which N:M pattern a weight has, and if none, how near it is.

Everything here works on the canonical form `[out, taps, in]` (a matrix has one tap, a 3x3 convolution nine)
and looks only at which weights are zero: -0.0 is zero, NaN and infinities are not. `groups` is that of a
grouped convolution: `out` then holds `groups` runs of channels, and no block crosses from one to the next.

A pattern fits when, in every full group of m inputs, the union of the non-zeros over each block of channels
has at most n members. Of all that fit we take the one that keeps least (the dense tail counts as kept), then
the largest block, then the shortest group. It is *tight* when it explains nearly all zeros; where nothing is
tight and nothing else explains the zeros (few outliers, another axis), a loose fit is taken for what it is
worth.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sparsec.passes.base import PassError
from sparsec.passes.nm_pattern import BLOCKS, MAX_M, NM, Scattered

# Trained weights have zeros beside the pattern, so 30:64 may fit where 2:4 was meant. A longer group or a
# smaller block has to save this much more to be preferred; an exactly filled pattern needs no such doubt.
SLACK = 1.1
# Tight: at least this share of the zeros is skipped, and of the kept positions is non-zero. Scattered zeros
# come nowhere near both, so any m may be tried without seeing patterns in noise.
TIGHT_USED, TIGHT_FILLED = 0.9, 0.75
# Loose: below this share of skipped zeros the fit is an accident; and only groups that are common.
LOOSE_USED, LOOSE_M = 0.5, (4, 8, 16, 2, 32)
# A near miss is a tight pattern but for at most this share of the groups.
NEAR_GROUPS = 0.01
# Weights below this share of the root mean square are meant to be zero where they are this many.
FAINT, FAINT_SHARE = 1e-4, 0.25
# Outliers are kept by a longer group where that keeps at most this much more than the pattern they are from.
COVER = 1.15
# Scattered non-zeros are told by blocks of this many channels where the blocks are as full as this.
STRIP, STRIP_FILLED = 4, 0.85
# Short powers of two first: people prune to them, and an early good bound rejects the rest from a sample.
_ALL_M = (4, 8, 2, 16, 32, 64, *(m for m in range(3, MAX_M) if m & (m - 1)))
_SAMPLE = 64


@dataclass(frozen=True)
class NearMiss:
    """`violations` of `groups` groups have more than `nm.n` non-zeros, `worst` at most."""

    nm: NM
    violations: int
    groups: int
    worst: int

    def __str__(self) -> str:
        # Rounded down: 99.999 must not read as 100.00.
        percent = np.floor((1 - self.violations / self.groups) * 1e4) / 100
        have = "has" if self.violations == 1 else "have"
        up_to = "" if self.worst == self.nm.n + 1 else "up to "
        plural = "" if self.violations == 1 else "s"
        return (
            f"{percent:.2f} % of groups are {self.nm}; {self.violations:,} group{plural} of {self.groups:,} "
            f"{have} {up_to}{self.worst} non-zeros: prune them with "
            f"nm{{n={self.nm.n},m={self.nm.m},block={self.nm.block}}} or retrain"
        )


@dataclass(frozen=True)
class Unfinished:
    """`share` of the weights are not zero but next to it; `found` is what there would be if they were."""

    share: float
    found: NM | NearMiss | str

    def __str__(self) -> str:
        text = (
            f"{100 * self.share:.1f} % of the weights are not zero but below {FAINT:g} of the root mean "
            "square, as a soft mask leaves them: make them zero before the export"
        )
        if isinstance(self.found, NM):
            nm = self.found
            return f"{text} or with nm{{n={nm.n},m={nm.m},block={nm.block}}}; then the pattern is {nm}"
        return f"{text}; then {self.found}"


def nonzero_mask(weight: np.ndarray, groups: int = 1) -> np.ndarray:
    """uint8 `[groups, out / groups, taps, in]`: 1 where the weight is not zero."""
    if weight.ndim != 3 or weight.size == 0:
        raise PassError(
            f"N:M structure: a non-empty weight [out, taps, in] is required, found {weight.shape}"
        )
    out, taps, k = weight.shape
    if groups < 1 or out % groups:
        raise PassError(f"N:M structure: out must be a multiple of groups, found out={out}, groups={groups}")
    return np.ascontiguousarray(weight != 0).view(np.uint8).reshape(groups, out // groups, taps, k)


def find(weight: np.ndarray, groups: int = 1) -> NM | NearMiss | str:
    """The pattern that `weight` `[out, taps, in]` has exactly, or what says in one line why it has none."""
    mask = nonzero_mask(weight, groups)
    k = mask.shape[-1]
    nonzeros = int(np.count_nonzero(mask))
    density = nonzeros / mask.size
    if nonzeros == 0:
        return "every weight is zero: there is no pattern to tell"
    if nonzeros == mask.size:
        return "no weight is zero"
    if k < 2:
        return "the reduction axis has 1 input channel: an N:M group needs 2"
    nm = _tight(mask)
    if nm and nm.kept_fraction(k) == density:
        return nm
    # 33:64 fits what is 2:4 but for one group: the short pattern is the one that was meant.
    near = _near_miss(mask, nm.m if nm else MAX_M)
    if nm and not (near and near.nm.kept_fraction(k) < nm.kept_fraction(k)):
        return nm
    if near:
        return near
    silent = ~weight.any(axis=(1, 2))
    if silent.any() and groups == 1:
        return _beside(weight, silent)
    if across := _tight(np.ascontiguousarray(mask.transpose(0, 3, 2, 1))):
        return (
            f"the pattern {across} runs along output channels; it must run along the input channels: "
            "prune along dim 1 of a torch weight [out, in]"
        )
    if mask.shape[2] > 1 and (flat := _tight(_taps_last(mask))):
        return (
            f"the pattern {flat} runs along input channels and kernel taps flattened together; "
            "it must run along the input channels of each tap"
        )
    if loose := _tightest(mask, LOOSE_M, 1 - LOOSE_USED * (1 - density)):
        return loose
    zeros = f"{100 * (1 - density):.1f} % of the weights are zero, but scattered"
    if best := _tightest(mask, LOOSE_M, 1.0):
        return f"{zeros}: {best}, the tightest pattern that fits, keeps {100 * best.kept_fraction(k):.1f} %"
    return f"{zeros}: no n:m fits"


def _beside(weight: np.ndarray, silent: np.ndarray) -> NM | str:
    """What `find` says where the output channels `silent` have only zeros."""
    rest = find(weight[~silent])
    limit = 1 - LOOSE_USED * np.mean(weight == 0)
    if isinstance(rest, NM) and rest.kept_fraction(weight.shape[-1]) <= limit:
        # Its blocks may lie otherwise in the whole weight.
        whole = (NM(rest.n, rest.m, block).within(len(silent)) for block in reversed(BLOCKS))
        return next(nm for nm in whole if fits(weight, nm))
    return (
        f"{np.count_nonzero(silent)} of {len(silent)} output channels have only zeros: cut them out of the "
        f"network before the export; of the others, {rest}"
    )


def unfinished(weight: np.ndarray, groups: int = 1) -> Unfinished | None:
    """Whether a soft mask has left `weight` next to a pattern."""
    scale = np.sqrt(np.mean(np.square(weight), dtype=np.float64))
    faint = np.abs(weight) < FAINT * scale if np.isfinite(scale) else np.zeros(weight.shape, bool)
    share = np.count_nonzero(faint & (weight != 0)) / weight.size
    if share < FAINT_SHARE:
        return None
    return Unfinished(share, find(np.where(faint, np.zeros((), weight.dtype), weight), groups))


def cover(weight: np.ndarray, near: NearMiss, groups: int = 1) -> NM | None:
    """The pattern of longer groups that `weight` has exactly, outliers and all, for at most `COVER` times
    what `near` would keep; None where they lie too close together.

    A group of 64 that holds 16 groups of 2:4 has room for one more where 33 of it are kept.
    """
    union, k = _union(nonzero_mask(weight, groups), near.nm.block), weight.shape[-1]
    lengths = range(2 * near.nm.m, min(k, MAX_M) + 1, near.nm.m)
    found = [(int(_counts(union, m).max()), m) for m in lengths]
    patterns = [NM(n, m, near.nm.block) for n, m in found if n < m]
    best = min(patterns, key=lambda nm: nm.kept_fraction(k), default=None)
    small = best is not None and best.kept_fraction(k) <= COVER * near.nm.kept_fraction(k)
    return best if small else None


def scattered(weight: np.ndarray, groups: int = 1) -> Scattered:
    """How full `weight` `[out, taps, in]` is where no pattern tells: in 64ths, rounded up."""
    mask = nonzero_mask(weight, groups)
    block, union = 1, mask
    if mask.shape[1] % STRIP == 0 and mask.any():
        shared = _union(mask, STRIP)
        if np.count_nonzero(mask) >= STRIP_FILLED * STRIP * np.count_nonzero(shared):
            block, union = STRIP, shared
    return Scattered(max(1, -(-MAX_M * np.count_nonzero(union) // union.size)), MAX_M, block)


def fits(weight: np.ndarray, nm: NM, groups: int = 1) -> bool:
    """Whether every group of `weight` keeps to `nm`."""
    mask = nonzero_mask(weight, groups)
    if nm.m > mask.shape[-1]:
        return False
    return int(_counts(_union(mask, nm.block), nm.m).max()) <= nm.n


def kept_positions(weight: np.ndarray, nm: NM, groups: int = 1) -> np.ndarray:
    """The input channels that are stored: int32 `[blocks, taps, nm.kept(in)]`, ascending along the last axis.

    `blocks` counts the blocks of output channels, `groups * ceil(out / groups / block)`; the last one of each
    group may be short. A group with fewer than n non-zeros is filled up with its lowest unused positions, so
    that each has exactly n. Raises `PassError` when the weight does not have the pattern.
    """
    mask = nonzero_mask(weight, groups)
    k = mask.shape[-1]
    full = k // nm.m * nm.m
    union = _union(mask, nm.block)
    chosen = union.astype(bool)
    chosen[..., full:] = True
    in_groups = chosen[..., :full].reshape(*chosen.shape[:-1], -1, nm.m)
    missing = nm.n - np.count_nonzero(in_groups, axis=-1, keepdims=True)
    if full == 0 or missing.min() < 0:
        raise PassError(
            f"N:M structure: a weight with the pattern {nm} is required; {_shortfall(missing, k, nm)}"
        )
    # uint8 holds it: a group has at most 64 members.
    in_groups |= np.cumsum(~in_groups, axis=-1, dtype=np.uint8) <= missing
    chosen[..., :full] = in_groups.reshape(*chosen.shape[:-1], full)
    index = np.flatnonzero(chosen) % k
    return index.reshape(-1, mask.shape[2], nm.kept(k)).astype(np.int32)


def _shortfall(missing: np.ndarray, k: int, nm: NM) -> str:
    if missing.size == 0:
        return f"its {k} input channels are fewer than m={nm.m}"
    return f"{np.count_nonzero(missing < 0):,} of {missing.size:,} groups have more than {nm.n} non-zeros"


def _tight_limit(density: float) -> float:
    """The largest kept fraction that is still tight."""
    return min(1 - TIGHT_USED * (1 - density), density / TIGHT_FILLED)


def _tight(mask: np.ndarray) -> NM | None:
    return _tightest(mask, _ALL_M, _tight_limit(np.count_nonzero(mask) / mask.size))


def _tightest(mask: np.ndarray, lengths: Sequence[int], limit: float) -> NM | None:
    """The selection rule of the module's docstring over all that fits exactly and keeps at most `limit`."""
    nonzeros = int(np.count_nonzero(mask))
    k = mask.shape[-1]
    zeros_per_row = (mask.size - nonzeros) / (mask.size // k)
    sample = np.ascontiguousarray(mask[:, :_SAMPLE])
    filled = nonzeros / mask.size
    fitting: list[tuple[float, NM]] = []
    for m in lengths:
        if m > k or zeros_per_row < k // m:
            continue  # n < m takes at least one zero in every group
        # Once a pattern is filled exactly, a longer group can win by a larger block only.
        beaten = max((nm.block for kept, nm in fitting if kept == filled and nm.m < m), default=0)
        if beaten == BLOCKS[-1]:
            continue
        block_from = min(b for b in BLOCKS if b > beaten)
        least = max(1, int(_counts(_union(sample, block_from), m).max()))
        if least == m or NM(least, m).kept_fraction(k) > limit:
            continue
        for block, union in _unions(mask):
            if block < block_from:
                continue
            n = max(1, int(_counts(union, m).max()))
            if n == m or (kept := NM(n, m).kept_fraction(k)) > limit:
                break  # a larger block keeps more still
            fitting.append((kept, NM(n, m, block)))
            limit = min(limit, kept * SLACK)
    if not fitting:
        return None
    best = min(kept for kept, _ in fitting)
    if best != filled:
        best *= SLACK
    return min((nm for kept, nm in fitting if kept <= best + 1e-9), key=lambda nm: (-nm.block, nm.m))


def _near_miss(mask: np.ndarray, longest: int) -> NearMiss | None:
    """The tightest pattern, m <= longest, that all but a few groups keep to; None where all of them do."""
    k = mask.shape[-1]
    density = np.count_nonzero(mask) / mask.size
    limit = _tight_limit(density)
    sample = np.ascontiguousarray(mask[:, :_SAMPLE])
    near: list[tuple[float, NearMiss]] = []
    for m in _ALL_M:
        if m > min(k, longest):
            continue
        # Outliers raise the density above n:m by at most their share, so nothing smaller can be meant.
        lowest = max(1, int((density - NEAR_GROUPS) * m))
        patterns = [n for n in range(lowest, m) if NM(n, m).kept_fraction(k) <= limit]
        # Outliers may sit close together, hence the allowance for the sample.
        if not patterns or np.mean(_counts(sample, m) > patterns[-1]) > 0.5:
            continue
        for block, union in _unions(mask):
            counts = _counts(union, m)
            for n in patterns:
                violations = int(np.count_nonzero(counts > n))
                if violations <= NEAR_GROUPS * counts.size:
                    nm = NM(n, m, block)
                    near.append(
                        (nm.kept_fraction(k), NearMiss(nm, violations, counts.size, int(counts.max())))
                    )
                    break
            else:
                break  # a larger block violates more still
    if not near:
        return None
    tightest = min(kept for kept, _ in near) * SLACK
    best = min((x for kept, x in near if kept <= tightest), key=lambda x: (-x.nm.block, x.nm.m))
    return best if best.violations else None


def _unions(mask: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(block, non-zeros shared by block) for every block up to the first that holds all channels."""
    union, size = mask, 1
    for block in BLOCKS:
        union, size = _union(union, block // size), block
        yield block, union
        if block >= mask.shape[1]:
            return


def _union(mask: np.ndarray, block: int) -> np.ndarray:
    """`[groups, ceil(out / block), taps, in]`: 1 where any channel of the block is non-zero."""
    if block == 1:
        return mask
    groups, out, taps, k = mask.shape
    if out % block:
        mask = np.concatenate([mask, np.zeros((groups, -out % block, taps, k), np.uint8)], axis=1)
    return np.bitwise_or.reduce(mask.reshape(groups, -1, block, taps, k), axis=2)


def _counts(mask: np.ndarray, m: int) -> np.ndarray:
    """Non-zeros in each full group of `m` along the last axis, uint8."""
    full = mask.shape[-1] // m * m
    lanes = {2: np.uint16, 4: np.uint32, 8: np.uint64}.get(m)
    if lanes and full == mask.shape[-1] and mask.flags.c_contiguous:
        # Bytes are 0 or 1, so the population count of the whole group read as one integer is the sum.
        return np.bitwise_count(mask.view(lanes))
    # Summed one column at a time: numpy's reduction over a short last axis is ten times slower.
    total = mask[..., 0:full:m].copy()
    for column in range(1, m):
        total += mask[..., column:full:m]
    return total


def _taps_last(mask: np.ndarray) -> np.ndarray:
    groups, out, taps, k = mask.shape
    return np.ascontiguousarray(mask.transpose(0, 1, 3, 2)).reshape(groups, out, 1, k * taps)
