from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import sys

import pytest

from ocsf_nft import privileges
from ocsf_nft.errors import UnsupportedError

pytestmark = pytest.mark.kernel

_CODE = """
import os, sys
from ocsf_nft import privileges
privileges.raise_priority()
print(os.getpriority(os.PRIO_PROCESS, 0), sys.getswitchinterval())
"""


@pytest.mark.parametrize(
    ("under", "nice"), [((), "-10"), (("setpriv", "--bounding-set=-sys_nice"), "0")]
)
def test_process_raises_its_priority_if_it_may(under: tuple[str, ...], nice: str) -> None:
    command = [*under, sys.executable, "-c", _CODE]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True,
        preexec_fn=lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
    )  # fmt: skip
    assert done.stdout.split() == [nice, "0.001"]


_CHILD = """
import subprocess
from ocsf_nft import privileges
privileges.keep_only({privileges.Capability.NET_ADMIN})
shown = subprocess.run(["grep", "CapEff", "/proc/self/status"], capture_output=True, text=True)
print(int(shown.stdout.split()[1], 16))
"""


def test_children_inherit_the_capabilities_without_special_treatment_of_root() -> None:
    """A service of systemd with its own user has such ambient capabilities."""
    ambient = ("--inh-caps=+net_admin,+syslog", "--ambient-caps=+net_admin,+syslog")
    command = ["setpriv", "--securebits=+noroot", *ambient, sys.executable, "-c", _CHILD]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 1 << privileges.Capability.NET_ADMIN


def test_refused_drop_of_capabilities_is_an_error_with_its_cause() -> None:
    ctypes.set_errno(errno.EPERM)
    privileges._check(0)
    sentence = "dropping privileges failed: Operation not permitted"
    with pytest.raises(UnsupportedError, match=sentence):
        privileges._check(-1)
