"""Setting of the sysctl ``net.netfilter.nf_log_all_netns``, and restoring of its old value.

With the value 1, packets of all network namespaces can be logged to the kernel log. With 0, only
those of the initial namespace can (net/netfilter/nf_log.c).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.errors import OcsfNftError, UnsupportedError
from ocsf_nft.netns import Namespace, of_process

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

#: Set to 1 only while the fence of a namespace, except the initial one, logs to the kernel log:
#: with 1, all other namespaces can fill the kernel log too.
_SYSCTL: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")


def blocking_value(namespace: Namespace) -> str | None:
    """Return the value of a sysctl if it excludes a namespace from the kernel log, else None.

    The sysctl is ``nf_log_all_netns``. Any value except 1 excludes all namespaces except the
    initial one. Raises UnsupportedError if the value can't be read.
    """
    if namespace.call(_SYSCTL.exists):  # the initial namespace itself
        return None
    value = _in_initial(lambda: _SYSCTL.read_text("ascii").strip())
    return None if value == "1" else value


def enable() -> None:
    """Set the sysctl ``nf_log_all_netns`` to 1: packets of all namespaces reach the kernel log.

    Raises UnsupportedError if the process is not root on the host.
    """
    _in_initial(lambda: _SYSCTL.write_text("1", "ascii"))


def probe() -> None:
    """Raise UnsupportedError if ``nf_log_all_netns`` can't be written; the value is not changed."""
    _in_initial(lambda: _SYSCTL.open("r+").close())


def restore(before: str) -> None:
    """Restore the value that the sysctl ``nf_log_all_netns`` had before :func:`enable`.

    ``before`` is that value. Raises UnsupportedError if the sysctl can't be written.
    """
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
