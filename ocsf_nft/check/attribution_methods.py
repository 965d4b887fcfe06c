"""Check of this host: which methods work here to find the process that sent a packet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from ocsf_nft.attribution.bpf_capture import Capture, cookie
from ocsf_nft.attribution.socket_method import SocketLookup
from ocsf_nft.check.finding import Finding
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.netns import Namespace

_NAME: Final = "attribution"
_CAPTURE: Final = (
    "capture needs CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace (root has "
    "them), libbpf 1, and Linux 5.18 with CONFIG_DEBUG_INFO_BTF; limited capture needs cgroup v2 "
    "and Linux 5.15"
)


def findings(namespace: Namespace) -> Iterator[Finding]:
    """Yield one finding: the best method to find the processes that send packets in a namespace.

    Only methods that work on this host are considered. The finding's ``remedy`` lists what a better
    method needs; it is None if there is no better method.
    """
    try:
        with Capture([cookie(namespace)]) as capture:
            yield _captured(capture)
            return
    except OcsfNftError as error:
        reason = str(error)
    try:
        with SocketLookup(namespace):
            how = "by its socket, afterwards, which finds few processes that have exited by then"
    except OcsfNftError as error:
        how, reason = "only by its user", f"{reason}; {error}"
    yield Finding(
        name=_NAME,
        severity="info",
        meaning=f"a process is identified {how}: {reason}",
        remedy=_CAPTURE,
    )


def _captured(capture: Capture) -> Finding:
    if not capture.knows_types:
        return Finding(
            name=_NAME,
            severity="info",
            meaning="a process is identified at its system call, only by PID, name and user; a "
            "process that sends on another one's socket is missed: this kernel doesn't describe "
            "its types",
            remedy="use a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    return Finding(
        name=_NAME, severity="ok", meaning="a process is identified as it sends, even if it exits"
    )
