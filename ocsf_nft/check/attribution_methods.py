"""How the process behind an attempt can be named on this host, and what a better way would take."""

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
    "capture takes CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN in the initial user namespace (root has "
    "them), libbpf 1, and Linux 5.18 with CONFIG_DEBUG_INFO_BTF; or, for less, cgroup v2 and 5.15"
)


def naming(namespace: Namespace) -> Iterator[Finding]:
    """One finding: the best rung that stands, tried in the namespace."""
    try:
        with Capture([cookie(namespace)]) as capture:
            yield _captured(capture)
            return
    except OcsfNftError as error:
        reason = str(error)
    try:
        with SocketLookup(namespace):
            how = "by whose socket it is, afterwards, which finds few that are gone by then"
    except OcsfNftError as error:
        how, reason = "by its user alone", f"{reason}; {error}"
    yield Finding(
        name=_NAME, severity="info", meaning=f"a process is named {how}: {reason}", remedy=_CAPTURE
    )


def _captured(capture: Capture) -> Finding:
    if not capture.knows_types:
        return Finding(
            name=_NAME,
            severity="info",
            meaning="a process is named as it calls, by its number, name and user alone, and who "
            "sends by another one's socket is not seen: this kernel doesn't describe its types",
            remedy="use a kernel with CONFIG_DEBUG_INFO_BTF",
        )
    return Finding(
        name=_NAME, severity="ok", meaning="a process is named as it sends, also if it is gone"
    )
