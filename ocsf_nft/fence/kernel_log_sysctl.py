"""Sysctl that allows records of other network namespaces in the kernel log.

``net.netfilter.nf_log_all_netns`` exists only in the initial namespace, and affects every namespace
of the host (net/netfilter/nf_log.c). So it is switched on only while the kernel-log transport is
used, and restored afterwards.
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


def blocking_value(namespace: Namespace) -> str | None:
    """Return the value that blocks a namespace's records from the kernel log; None if not blocked.

    Raises UnsupportedError if the value can't be read from here.
    """
    if namespace.call(_SYSCTL.exists):  # the initial namespace itself
        return None
    value = _in_initial(lambda: _SYSCTL.read_text("ascii").strip())
    return None if value == "1" else value


def enable() -> None:
    """Allow the records of all namespaces in the kernel log.

    Needs root on the host; raises UnsupportedError otherwise.
    """
    _in_initial(lambda: _SYSCTL.write_text("1", "ascii"))


def probe() -> None:
    """Check that :func:`enable` would succeed; raises UnsupportedError if not."""
    _in_initial(lambda: _SYSCTL.open("r+").close())


def restore(before: str) -> None:
    """Restore the previous value; raises UnsupportedError if that fails."""
    _in_initial(lambda: _SYSCTL.write_text(before, "ascii"))


def _in_initial(work: Callable[[], T]) -> T:
    own = Namespace()
    try:
        return (own if own.call(_SYSCTL.exists) else of_process(1)).call(work)
    except (OSError, OcsfNftError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UnsupportedError(
            "net.netfilter.nf_log_all_netns, which allows records of other namespaces in the "
            f"kernel log, can't be read or set from here: that takes root on the host ({cause})"
        ) from error
