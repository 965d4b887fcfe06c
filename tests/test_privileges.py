from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.kernel

_CODE = """
import os, sys
from ocsf_nft import privileges
privileges.go_first()
print(os.getpriority(os.PRIO_PROCESS, 0), sys.getswitchinterval())
"""


@pytest.mark.parametrize(
    ("under", "nice"), [((), "-10"), (("setpriv", "--bounding-set=-sys_nice"), "0")]
)
def test_a_process_goes_first_as_far_as_it_may(under: tuple[str, ...], nice: str) -> None:
    command = ["nice", "-n", "0", *under, sys.executable, "-c", _CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [nice, "0.001"]
