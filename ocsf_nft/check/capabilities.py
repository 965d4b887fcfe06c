"""Check of this process's Linux capabilities: which are missing, and which commands need them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.finding import Finding
from ocsf_nft.privileges import Capability

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS: Final = Path("/proc/thread-self/status")
_EFFECTIVE: Final = "\nCapEff:"

#: Capabilities, the commands that need them, and the purpose.
_NEEDS: Final = (
    (Capability.NET_ADMIN, "install, verify, remove and run", "change and list nftables"),
    (Capability.SYS_ADMIN, "--netns and --pid of every command", "enter another namespace"),
    (Capability.SYS_PTRACE, "--pid, and users of other user namespaces", "inspect processes"),
    (Capability.BPF, "run --attribution capture", "load programs that name processes"),
    (Capability.PERFMON, "the same", "read the processes' details"),
    (Capability.SYSLOG, "run --source kmsg", "read the kernel log"),
)
#: `run` also works without these, with less information.
_OPTIONAL: Final = {Capability.BPF, Capability.PERFMON, Capability.SYSLOG}


def findings() -> Iterator[Finding]:
    """Yield one finding, which lists the Linux capabilities that this process lacks.

    The finding also names the ``ocsf-nft`` commands that need these capabilities. If no capability
    is missing, the finding has the severity ``ok``.
    """
    effective = _effective()
    missing = [need for need in _NEEDS if not effective >> need[0] & 1]
    if not missing:
        names = ", ".join(f"CAP_{need[0].name}" for need in _NEEDS)
        yield Finding(name="privileges", severity="ok", meaning=f"held: {names}")
        return
    yield Finding(
        name="privileges",
        severity="info" if {capability for capability, *_ in missing} <= _OPTIONAL else "degraded",
        meaning="not held: "
        + "; ".join(
            f"CAP_{capability.name} ({commands}: to {purpose})"
            for capability, commands, purpose in missing
        ),
        remedy="run as root, or add these capabilities where they are needed",
    )


def _effective() -> int:
    after = _STATUS.read_text("ascii", "replace").partition(_EFFECTIVE)[2]
    return int(after.split(maxsplit=1)[0], 16)
