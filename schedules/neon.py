"""aarch64's products of narrow numbers and its lookup of bytes, as LLVM's text.

=========  ====================  ======================================================================
feature    instruction           what a lane of 32 bits adds up
=========  ====================  ======================================================================
dotprod    ``sdot``              four products of signed bytes
i8mm       ``sudot``, ``usdot``  four products of a signed and an unsigned byte
bf16       ``bfdot``             two products of bfloat16, rounded to odd; denormals are 0
=========  ====================  ======================================================================

One word of activations meets all lanes of a tile.  The instructions take it from a lane of a register, so a
row's words are loaded or looked up four at once; LLVM would broadcast each, in the place of a product.  Hence
the assembly.
"""

import re
from collections.abc import Iterable, Set

from sparsec.schedules.target import Cpu

LANES = 4
#: Bytes of a register: so many channels are joined at once to words of neighbouring columns.
BYTES = 16
#: Vectors in which bytes are looked up.  More would have to be neighbours among registers that hold sums.
TABLE = 2
DOT, MIXED, BFLOAT16 = "+dotprod", "+i8mm", "+bf16"
#: Bytes without a sign as signed ones 128 smaller: this, by exclusive or.
_FLIP = 0x80808080 - (1 << 32)


def dots(cpu: Cpu) -> bool:
    """Whether there are products of bytes; every level of bfloat16 has them, too."""
    return DOT in cpu.features


def signed(cpu: Cpu) -> bool:
    """Whether products of bytes are of signed ones alone."""
    return DOT in cpu.features and MIXED not in cpu.features


_BYTES = {"sum": "i32", "all": "16b", "part": "4b"}
_PAIRS = {"sum": "float", "all": "8h", "part": "2h", "instruction": "bfdot"}
#: The first operand is a word, or a lane of words, the second one are weights; or the other way round.
_ACTIVATIONS, _WEIGHTS = {"a": "one", "b": "each"}, {"a": "each", "b": "one"}

#: Of words that were loaded together.
_OF_LANE = """
define weak_odr <4 x {sum}> @{name}(<4 x {sum}> %sum, <4 x i32> %{a}, <4 x i32> %{b}) alwaysinline {{
  %dot = call <4 x {sum}> asm "{instruction} $0.4s, $2.{all}, $3.{part}[{lane}]", "=w,0,w,w"(
    <4 x {sum}> %sum, <4 x i32> %each, <4 x i32> %one)
  ret <4 x {sum}> %dot
}}
"""

#: Of a word in all lanes: a number, which is loaded into the first.
_OF_NUMBER = """
define weak_odr <4 x {sum}> @{name}(<4 x {sum}> %sum, <4 x i32> %{a}, <4 x i32> %{b}) alwaysinline {{
  %bits = extractelement <4 x i32> %one, i32 0
  %word = xor i32 %bits, {flip}
  %number = bitcast i32 %word to float
  %dot = call <4 x {sum}> asm "{instruction} $0.4s, $2.{all}, $3.{part}[0]", "=w,0,w,w"(
    <4 x {sum}> %sum, <4 x i32> %each, float %number)
  ret <4 x {sum}> %dot
}}
"""

#: Of words that differ between lanes, in four registers.
_OF_EACH = """
declare <4 x i32> @llvm.aarch64.neon.{instruction}.v4i32.v16i8(<4 x i32>, <16 x i8>, <16 x i8>)
define weak_odr <16 x i32> @{name}(<16 x i32> %s, <16 x i32> %x, <16 x i32> %w) alwaysinline {{
{quarters}  %low = shufflevector <4 x i32> %dot0, <4 x i32> %dot1, <8 x i32> <{eight}>
  %high = shufflevector <4 x i32> %dot2, <4 x i32> %dot3, <8 x i32> <{eight}>
  %all = shufflevector <8 x i32> %low, <8 x i32> %high, <16 x i32> <{sixteen}>
  ret <16 x i32> %all
}}
"""
_QUARTER = """\
  %s{i} = shufflevector <16 x i32> %s, <16 x i32> poison, <4 x i32> <{own}>
  %x{i} = shufflevector <16 x i32> %x, <16 x i32> poison, <4 x i32> <{own}>
  %w{i} = shufflevector <16 x i32> %w, <16 x i32> poison, <4 x i32> <{own}>
  %a{i} = bitcast <4 x i32> %x{i} to <16 x i8>
  %b{i} = bitcast <4 x i32> %w{i} to <16 x i8>
  %dot{i} = call <4 x i32> @llvm.aarch64.neon.{instruction}.v4i32.v16i8(
    <4 x i32> %s{i}, <16 x i8> %a{i}, <16 x i8> %b{i})
"""
#: Signs are changed before the bytes are joined: neighbouring pixels share columns, not words.
_JOINED = """
define weak_odr <16 x i32> @{name}(<16 x i8> %a, <16 x i8> %b, <16 x i8> %c, <16 x i8> %d) alwaysinline {{
  %sa = xor <16 x i8> %a, splat (i8 {sign})
  %sb = xor <16 x i8> %b, splat (i8 {sign})
  %sc = xor <16 x i8> %c, splat (i8 {sign})
  %sd = xor <16 x i8> %d, splat (i8 {sign})
  %ab = shufflevector <16 x i8> %sa, <16 x i8> %sb, <32 x i32> <{merged}>
  %cd = shufflevector <16 x i8> %sc, <16 x i8> %sd, <32 x i32> <{merged}>
  %low = bitcast <32 x i8> %ab to <16 x i16>
  %high = bitcast <32 x i8> %cd to <16 x i16>
  %both = shufflevector <16 x i16> %low, <16 x i16> %high, <32 x i32> <{merged}>
  %words = bitcast <32 x i16> %both to <16 x i32>
  ret <16 x i32> %words
}}
"""
_WORDS = """
define weak_odr <4 x i32> @{name}(ptr %from) alwaysinline {{
  %loaded = load <4 x i32>, ptr %from, align {align}
  %words = xor <4 x i32> %loaded, splat (i32 {flip})
  ret <4 x i32> %words
}}
"""

_NARROW = """
define weak_odr <{lanes} x i16> @{name}(<{lanes} x float> %x) alwaysinline {{
  %near = fptrunc <{lanes} x float> %x to <{lanes} x bfloat>
  %bits = bitcast <{lanes} x bfloat> %near to <{lanes} x i16>
  ret <{lanes} x i16> %bits
}}
"""


def functions(cpu: Cpu, called: Set[str]) -> str:
    """LLVM's text of those functions of this file that are ``called``; none for other architectures.

    ``quad(sums, x, w)`` and ``dot(sums, x, w)`` multiply activations by weights of int8 and of bfloat16,
    ``bytes(sums, w, x)`` weights without a sign, less 128 where ``signed``, by activations of int8.
    ``words(from)`` loads activations for products of a lane; ``picked(from, choices)`` looks them up.
    """
    if not cpu.triple.startswith("aarch64"):
        return ""
    flip = _FLIP if signed(cpu) else 0
    quad = {**_BYTES, **_ACTIVATIONS, "instruction": "sdot" if signed(cpu) else "sudot"}
    forms = (
        (r"quad_4", _OF_NUMBER, quad | {"flip": flip}),
        (r"quad_4_(?P<lane>\d)", _OF_LANE, quad),
        (r"quad_16", _OF_EACH, _quarters("sdot" if signed(cpu) else "usdot")),
        (
            r"joined_16",
            _JOINED,
            {"merged": _listed(i // 2 + 16 * (i % 2) for i in range(32)), "sign": -128 if signed(cpu) else 0},
        ),
        (
            r"bytes_4",
            _OF_NUMBER,
            quad | _WEIGHTS | {"instruction": "sdot" if signed(cpu) else "usdot", "flip": 0},
        ),
        (r"dot_4", _OF_NUMBER, _PAIRS | _ACTIVATIONS | {"flip": 0}),
        (r"dot_4_(?P<lane>\d)", _OF_LANE, _PAIRS | _ACTIVATIONS),
        (r"words_8", _WORDS, {"align": 1, "flip": flip}),
        (r"words_16", _WORDS, {"align": 2, "flip": 0}),
        (r"narrow_(?P<lanes>\d+)", _NARROW, {}),
    )
    text, lookups = "", set()
    for name in sorted(called):
        for pattern, form, values in forms:
            if found := re.fullmatch(f"sparsec_{pattern}", name):
                text += form.format(name=name, **values, **found.groupdict())
        if found := re.fullmatch(r"sparsec_picked_\d_(\d)_4", name):
            text += _lookup(name, int(found[1]), flip)
            lookups.add(int(found[1]))
    return text + "".join(map(_declared, sorted(lookups)))


def _quarters(instruction: str) -> dict[str, str]:
    """What ``_OF_EACH`` takes."""
    parts = (
        _QUARTER.format(i=i, own=_listed(range(4 * i, 4 * i + 4)), instruction=instruction) for i in range(4)
    )
    orders = {"eight": _listed(range(8)), "sixteen": _listed(range(16))}
    return {"instruction": instruction, "quarters": "".join(parts), **orders}


def _listed(lanes: Iterable[int]) -> str:
    return ", ".join(f"i32 {lane}" for lane in lanes)


def _lookup(name: str, registers: int, flip: int) -> str:
    """16 bytes, each one of those in so many ``registers``."""
    loads = "".join(
        f"  %at{i} = getelementptr i8, ptr %from, i64 {16 * i}\n"
        f"  %r{i} = load <16 x i8>, ptr %at{i}, align 1\n"
        for i in range(registers)
    )
    table = ", ".join(f"<16 x i8> %r{i}" for i in range(registers))
    return f"""
define weak_odr <4 x i32> @{name}(ptr %from, <4 x i32> %choices) alwaysinline {{
{loads}  %bytes = bitcast <4 x i32> %choices to <16 x i8>
  %found = call <16 x i8> @llvm.aarch64.neon.tbl{registers}.v16i8({table}, <16 x i8> %bytes)
  %picked = bitcast <16 x i8> %found to <4 x i32>
  %words = xor <4 x i32> %picked, splat (i32 {flip})
  ret <4 x i32> %words
}}
"""


def _declared(registers: int) -> str:
    kinds = ", ".join(["<16 x i8>"] * (registers + 1))
    return f"declare <16 x i8> @llvm.aarch64.neon.tbl{registers}.v16i8({kinds})\n"
