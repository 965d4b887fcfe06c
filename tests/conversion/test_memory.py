"""Test that the library in C uses no memory that it does not own, with the sanitizers of gcc."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

_SOURCES: Final = Path(__file__).parents[2] / "ocsf_nft/conversion/native"
_CONVERT: Final = """
import random, sys
from pathlib import Path
from ocsf_nft.conversion import native_library
native_library._FILE = Path(sys.argv[1])
from tests.conversion import log_lines
from tests.conversion.both_ways import BothWays
from tests.sources.corpus_cases import MESSAGES
ways = BothWays()
for message in MESSAGES:
    line = b"[ 1.000001] " + message.encode()
    for size in range(0, len(line) + 1, 7):
        ways.convert_lines(line[:size] + b"\\n")
    ways.convert_lines((line + b"\\n") * 5)
ways.convert((log_lines.log_file(random.Random(1), 400),))
print(ways.fast.records)
"""


def test_library_has_no_fault_of_memory_and_no_undefined_behaviour(tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    subprocess.run(
        [
            "gcc", "-std=gnu11", "-O1", "-g", "-fPIC", "-shared", "-fno-omit-frame-pointer",
            "-fsanitize=address,undefined", "-fno-sanitize-recover=all",
            *_SOURCES.glob("*.c"), "-o", library,
        ],
        check=True,
    )  # fmt: skip
    runtime = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # The memory of Python itself is not checked.
    environment = os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", _CONVERT, library],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100
