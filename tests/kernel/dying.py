"""Installer or remover of a VM's fence that is killed just before a given step.

``python -m tests.kernel.dying install|remove NETNS STATE STEP``. A step is an operation that
changes a file, a ruleset or a sysctl, which outlive the process.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from ocsf_nft.fence import installer, ip_forwarding, nft
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from tests.kernel import tap

NAME = "vm-7"


def _dying(owner: Any, name: str, left: list[int]) -> None:
    real = getattr(owner, name)

    def step(*arguments: object) -> object:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    setattr(owner, name, step)


def main(what: str, netns: str, path: str, number: int) -> None:
    """Install or remove the fence until the process is killed before step ``number``."""
    left = [number]
    for owner, names in (
        (nft, ("load",)),
        (ip_forwarding, ("_write",)),
        (
            StateDirectory,
            ("_write", "delete", "delete_sysctls"),
        ),
    ):
        for name in names:
            _dying(owner, name, left)
    state = StateDirectory(Path(path))
    if what == "install":
        installer.install(tap.spec(NAME), named(netns), state, "nflog")
    else:
        installer.remove(NAME, state)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
