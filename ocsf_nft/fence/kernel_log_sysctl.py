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


def blocked(namespace: Namespace) -> str | None:
    """The value that keeps a namespace's records out of the kernel log, None when nothing does.

    Raises UnsupportedError when it can't be read from here.
    """
    if namespace.call(_SYSCTL.exists):  # the initial namespace itself
        return None
    value = _in_initial(lambda: _SYSCTL.read_text("ascii").strip())
    return None if value == "1" else value


def enable() -> None:
    """Let the records of all namespaces into the kernel log.

    Needs to be root on the host; raises UnsupportedError otherwise.
    """
    _in_initial(lambda: _SYSCTL.write_text("1", "ascii"))


def probe() -> None:
    """See whether :func:`enable` would succeed; raises UnsupportedError when not."""
    _in_initial(lambda: _SYSCTL.open("r+").close())


def restore(before: str) -> None:
    """Put the value from before back; raises UnsupportedError when that fails."""
    _in_initial(lambda: _SYSCTL.write_text(before, "ascii"))


def _in_initial(work: Callable[[], T]) -> T:
    own = Namespace()
    try:
        return (own if own.call(_SYSCTL.exists) else of_process(1)).call(work)
    except (OSError, OcsfNftError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UnsupportedError(
            "net.netfilter.nf_log_all_netns, which lets records of other namespaces into the "
            f"kernel log, can't be read or set from here: that takes root on the host ({cause})"
        ) from error
