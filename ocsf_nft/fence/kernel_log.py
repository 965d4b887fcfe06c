"""The sysctl that lets records of other network namespaces into the kernel log.

``net.netfilter.nf_log_all_netns`` exists in the initial namespace alone, and concerns every
namespace of the host, so it is switched on when, and only when, that transport is used, and put
back afterwards (net/netfilter/nf_log.c).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.netns import Namespace, of_process

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_SYSCTL: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")


def enable(namespace: Namespace) -> str | None:
    """Let a namespace's records reach the kernel log.

    Returns the value from before when it had to be switched on, None when nothing had to be done.
    Needs to be root on the host; raises UnsupportedError otherwise.
    """
    if namespace.call(_SYSCTL.exists):  # the initial namespace itself
        return None
    try:
        before = _in_initial(lambda: _SYSCTL.read_text("ascii").strip())
        if before == "1":
            return None
        _in_initial(lambda: _SYSCTL.write_text("1", "ascii"))
    except (OSError, OcsfNftError) as error:
        raise UnsupportedError(
            "the kernel log does not take records of this namespace: that needs "
            f"net.netfilter.nf_log_all_netns=1, which can't be set from here ({error})"
        ) from error
    return before


def probe() -> None:
    """See whether :func:`enable` would succeed; raises UnsupportedError or OSError."""
    _in_initial(lambda: _SYSCTL.open("r+").close())


def restore(before: str) -> None:
    """Put the value from before back; raises UnsupportedError or OSError when that fails."""
    _in_initial(lambda: _SYSCTL.write_text(before, "ascii"))


def _in_initial(work: Callable[[], T]) -> T:
    own = Namespace()
    return (own if own.call(_SYSCTL.exists) else of_process(1)).call(work)
