"""Short floating-point numbers of NumPy: rounded to nearest, as bit patterns.  Needs numpy alone.

==========  ========================  =======================================================
format      exponent, fraction        beyond the largest value
==========  ========================  =======================================================
bfloat16    8, 7 bits                 as float32
float16     5, 10 bits                65504, then infinity; below 2^-25 zero
tf32        8, 10 bits of float32     as float32
==========  ========================  =======================================================

NaN stays NaN.  Ties are to even, those of tf32 away from zero, which is what GPUs have an instruction for.
"""

import numpy as np

_BITS = 16


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of the nearest bfloat16, ties to even; NaN stays NaN."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + (bits >> np.uint32(_BITS) & np.uint32(1))) >> np.uint32(_BITS)
    quiet = bits >> np.uint32(_BITS) | np.uint32(0x40)
    return np.where(np.isnan(values), quiet, rounded).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(_BITS)).view(np.float32)


def to_float16(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint16) of the nearest float16; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.asarray(values, np.float32).astype(np.float16).view(np.uint16)


def from_float16(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float32)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """Bit patterns (uint32) of float32 with 10 bits of fraction, as ``cvt.rna.tf32.f32``."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    near = (bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)
    return np.where(np.isnan(values), np.uint32(0x7FFFFFFF), near).astype(np.uint32)
