"""Checking Ed25519 signatures (RFC 8032, section 5.1.7) with Python's integers.

Accepts what ``runtime/c/lib/ed25519.c`` accepts: one encoding of everything, no key of small order, the
group equation without the cofactor.  Everything is public, so nothing has to take constant time.
"""

import hashlib
from functools import reduce

_P = 2**255 - 19
_ORDER = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_ROOT_OF_MINUS_1 = pow(2, (_P - 1) // 4, _P)

# A point is (x, y, z, t): x / z, y / z and t = x y / z.
_Point = tuple[int, int, int, int]
_NEUTRAL: _Point = (0, 1, 1, 0)


def verify(key: bytes, signature: bytes, message: bytes) -> bool:
    """Whether ``signature`` (64 bytes) is one of ``message`` under the public ``key`` (32 bytes)."""
    a, b = _decode(key), _decode(bytes([0x58] + [0x66] * 31))
    s = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or s >= _ORDER or a is None or b is None or _has_small_order(a):
        return False
    digest = hashlib.sha512(signature[:32] + key + message).digest()
    k = int.from_bytes(digest, "little") % _ORDER
    minus_a = (-a[0] % _P, a[1], a[2], -a[3] % _P)
    return _encode(_combination(s, b, k, minus_a)) == signature[:32]


def _add(p: _Point, q: _Point) -> _Point:
    """RFC 8032, section 5.1.4; complete, so it doubles, too."""
    a, b = (p[1] - p[0]) * (q[1] - q[0]) % _P, (p[1] + p[0]) * (q[1] + q[0]) % _P
    c, d = 2 * p[3] * q[3] * _D % _P, 2 * p[2] * q[2] % _P
    e, f, g, h = b - a, d - c, d + c, b + a
    return e * f % _P, g * h % _P, f * g % _P, e * h % _P


def _combination(s: int, p: _Point, k: int, q: _Point) -> _Point:
    """[s] p + [k] q"""
    choices = (_NEUTRAL, p, q, _add(p, q))
    r = _NEUTRAL
    for bit in reversed(range(256)):
        r = _add(r, r)
        if choice := (s >> bit & 1) | (k >> bit & 1) << 1:
            r = _add(r, choices[choice])
    return r


def _has_small_order(p: _Point) -> bool:
    x, y, z, _ = reduce(lambda q, _: _add(q, q), range(3), p)
    return x == 0 and y == z


def _encode(p: _Point) -> bytes:
    inverse = pow(p[2], -1, _P)
    x, y = p[0] * inverse % _P, p[1] * inverse % _P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def _decode(data: bytes) -> _Point | None:
    """RFC 8032, section 5.1.3; None where the bytes are no point's one encoding."""
    y = int.from_bytes(data, "little")
    sign, y = y >> 255, y & (1 << 255) - 1
    if len(data) != 32 or y >= _P:
        return None
    u, v = y * y - 1, _D * y * y + 1
    x = u * v**3 * pow(u * v**7, (_P - 5) // 8, _P) % _P
    if (v * x * x + u) % _P == 0:
        x = x * _ROOT_OF_MINUS_1 % _P
    elif (v * x * x - u) % _P:
        return None
    if sign and x == 0:
        return None
    x = _P - x if x & 1 != sign else x
    return x, y, 1, x * y % _P
