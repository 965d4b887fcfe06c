"""Return of memory to the kernel. Each case has its own process: a setting can't be undone."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

_BEGINNING: Final = """
import ctypes, resource
from pathlib import Path
from ocsf_nft import malloc_trim

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

class MallInfo2(ctypes.Structure):  # malloc.h
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd",
        "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
    )]

libc.mallinfo2.restype = MallInfo2

def blocks_apart():
    return libc.mallinfo2().hblks

def is_apart(size):
    before = blocks_apart()
    blocks = [libc.malloc(size) for _ in range(100)]  # the first ones may fit into free memory
    found = blocks_apart() - before > 50
    for block in blocks:
        libc.free(block)
    return found
"""

_LARGE: Final = """
libc.free(libc.malloc(1 << 20))  # from now on glibc keeps blocks of this size by itself
print(is_apart(128 << 10), is_apart((128 << 10) - 64))
"""

_HEAPS: Final = """
import os, threading

def allocate(barrier):
    libc.malloc(1000)
    barrier.wait()

barrier = threading.Barrier(5)
threads = [threading.Thread(target=allocate, args=(barrier,)) for _ in range(4)]
for thread in threads:
    thread.start()
barrier.wait()
for thread in threads:
    thread.join()
libc.fdopen.restype = ctypes.c_void_p
reader, writer = os.pipe()
stream = ctypes.c_void_p(libc.fdopen(writer, b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
with open(reader, "rb") as xml:
    print(xml.read().count(b"<heap nr="))
"""

_FREED: Final = """
def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

blocks = [libc.malloc(1024) for _ in range(50_000)]
for block in blocks[:-1]:  # the last one keeps the heap from becoming shorter
    libc.free(block)
before = resident_bytes()
{work}
print(before - resident_bytes() > 40_000_000)
"""


def _output(*parts: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", "\n".join((_BEGINNING, *parts))],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_large_blocks_are_separate_from_the_default_size_of_glibc() -> None:
    assert _output(_LARGE) == "False False"
    assert _output("malloc_trim.fix_mmap_threshold()", _LARGE) == "True False"


def test_threads_share_one_heap() -> None:
    assert int(_output(_HEAPS)) > 1
    assert _output("malloc_trim.use_one_heap()", _HEAPS) == "1"


def test_free_memory_is_returned() -> None:
    assert _output(_FREED.format(work="pass")) == "False"
    assert _output(_FREED.format(work="malloc_trim.trim()")) == "True"


def test_other_c_library_is_not_changed() -> None:
    without = "malloc_trim.ctypes.CDLL = lambda _: object()"
    calls = "malloc_trim.fix_mmap_threshold(); malloc_trim.use_one_heap(); malloc_trim.trim()"
    assert _output(without, calls) == ""
