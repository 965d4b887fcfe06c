"""Which capabilities this process holds, and which command needs which."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft.check.finding import Finding
from ocsf_nft.privileges import Capability

if TYPE_CHECKING:
    from collections.abc import Iterator

_STATUS: Final = Path("/proc/thread-self/status")
_EFFECTIVE: Final = "\nCapEff:"

#: What each command can't do without, and what it is for.
_NEEDS: Final = (
    (Capability.NET_ADMIN, "install, verify, remove and run", "change and list nftables"),
    (Capability.SYS_ADMIN, "--netns and --pid of every command", "enter another namespace"),
    (Capability.SYS_PTRACE, "--pid, and users of other user namespaces", "look at processes"),
    (Capability.BPF, "run --attribution capture", "load programs that name processes"),
    (Capability.PERFMON, "the same", "read what the processes are"),
    (Capability.SYSLOG, "run --source kmsg", "read the kernel log"),
)
#: Without these a run stands, and does as well as it can.
_SPARED: Final = {Capability.BPF, Capability.PERFMON, Capability.SYSLOG}


def privileges() -> Iterator[Finding]:
    """One finding: what is lacking, and for what."""
    effective = _effective()
    lacking = [need for need in _NEEDS if not effective >> need[0] & 1]
    if not lacking:
        names = ", ".join(f"CAP_{need[0].name}" for need in _NEEDS)
        yield Finding(name="privileges", severity="ok", meaning=f"held: {names}")
        return
    yield Finding(
        name="privileges",
        severity="info" if {what for what, *_ in lacking} <= _SPARED else "degraded",
        meaning="not held: "
        + "; ".join(f"CAP_{what.name} ({where}: to {why})" for what, where, why in lacking),
        remedy="run as root, or give it these where they are needed",
    )


def _effective() -> int:
    after = _STATUS.read_text("ascii", "replace").partition(_EFFECTIVE)[2]
    return int(after.split(maxsplit=1)[0], 16)
