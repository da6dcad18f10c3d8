"""What static programs take in the libc's place (runtime/c/tools/libc.c), beside the libc itself."""

import ctypes
import errno
import os
import subprocess
import time

import pytest

from sparsec.runtime import build

WRAPPER = """
#include <stdarg.h>
#include <stddef.h>
#include <time.h>
int vsnprintf(char *restrict, size_t, const char *restrict, va_list);
int format(char *text, size_t size, const char *format, ...) {
    va_list args;
    va_start(args, format);
    int length = vsnprintf(text, size, format, args);
    va_end(args);
    return length;
}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("libc")
    (folder / "wrapper.c").write_text(WRAPPER)
    sources = ["wrapper.c", build.SOURCES / "tools/libc.c"]
    renamed = [f"-D{name}=small_{name}" for name in ("vsnprintf", "strerror", "clock_gettime")]
    flags = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["cc", *flags, *renamed, *sources, "-o", "small.so"], cwd=folder, check=True)
    library = ctypes.CDLL(folder / "small.so")
    library.small_strerror.restype = ctypes.c_char_p
    return library


FORMATS = [
    (b"", ()),
    (b"no argument, 100 of 7", ()),
    (b"%s '%s' takes %llu bytes, found %llu", (b"input", b"x", 2**64 - 1, 0)),
    (b"step '%.100s' failed: %s", (b"n" * 258, b"")),
    (b"%.3s|%.0s|%.9s", (b"abcdef", b"abc", b"abc")),
    (b"%d %d %d %d", (0, -1, 2**31 - 1, -(2**31))),
    (b"%u %u", (2**32 - 1, 10)),
    (b"%02u %03u %03u %01u", (7, 42, 12345, 0)),
    (b"%s", (b"ends with it",)),
]


@pytest.mark.parametrize("size", [0, 1, 2, 17, 600])
def test_formats(small, size):
    libc = ctypes.CDLL(None)
    for text, values in FORMATS:
        found, wanted = (ctypes.create_string_buffer(b"#" * 601) for _ in range(2))
        given = [ctypes.c_ulonglong(v) if isinstance(v, int) else v for v in values]
        lengths = small.format(found, size, text, *given), libc.snprintf(wanted, size, text, *given)
        assert lengths[0] == lengths[1], text
        assert found.raw == wanted.raw, text


def test_errors_of_files(small):
    for code in (errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EROFS):
        assert small.small_strerror(code).decode() == os.strerror(code)
    assert small.small_strerror(errno.EXDEV) == b"system error %d" % errno.EXDEV


def test_clock(small):
    t = (ctypes.c_long * 2)()
    before = time.monotonic_ns()
    assert small.small_clock_gettime(time.CLOCK_MONOTONIC, t) == 0
    assert before <= t[0] * 10**9 + t[1] <= time.monotonic_ns()
