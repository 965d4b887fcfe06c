"""Sysctl ``net.netfilter.nf_log_all_netns``: set while a fence needs it, and then restored.

With the value 1, packets of all network namespaces can be logged to the kernel log. With 0, only
those of the initial namespace can (net/netfilter/nf_log.c).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from ocsf_nft.errors import FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.netns import HOST, Namespace, of_process

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.state import StateDirectory

T = TypeVar("T")

#: Set to 1 only while the fence of a namespace, except the initial one, logs to the kernel log:
#: with 1, all other namespaces can fill the kernel log too.
_SYSCTL: Final = Path("/proc/sys/net/netfilter/nf_log_all_netns")
#: Name of its previous value in the state directory.
_STORED: Final = "nf_log_all_netns"


def is_initial(namespace: Namespace) -> bool:
    """Return True if a network namespace is the initial one of this machine.

    The kernel has the sysctl only there (netfilter_log_sysctl_init). The inode of the initial
    namespace is fixed only since Linux 6.17. Raises the errors of :meth:`Namespace.call`.
    """
    return namespace.call(_SYSCTL.exists)


def blocking_value(namespace: Namespace) -> str | None:
    """Return the value of the sysctl if it excludes a namespace from the kernel log, else None.

    Any value except 1 excludes all namespaces except the initial one. Raises UnsupportedError if
    the value can't be read.
    """
    if is_initial(namespace):
        return None
    value = _in_initial(lambda: _SYSCTL.read_text("ascii").strip())
    return None if value == "1" else value


def probe() -> None:
    """Raise UnsupportedError if the sysctl can't be written; the value is not changed."""
    _in_initial(lambda: _SYSCTL.open("r+").close())


def enable(namespace: Namespace, state: StateDirectory) -> None:
    """Let packets of a namespace reach the kernel log; store the previous value of the sysctl.

    Raises UnsupportedError if the process is not root on the host, FenceError, DeliveryError.
    """
    value = blocking_value(namespace)
    if value is None:
        return
    is_first = _value_before(state) is None
    if is_first:  # stored before the change, so that it can be restored after a crash
        state.store_sysctls(_STORED, value.encode("ascii"))
    try:
        write("1")
    except UnsupportedError:
        if is_first:
            state.delete_sysctls(_STORED)
        raise


def release(sandbox: str, state: StateDirectory) -> None:
    """Restore the value before :func:`enable`, unless a sandbox other than ``sandbox`` needs it.

    Raises UnsupportedError if the sysctl can't be written, and FenceError if its previous value
    can't be read.
    """
    before = _value_before(state)
    if before is None:
        return
    for other in state.sandboxes():
        if other != sandbox:
            found = state.read_or_none(other)
            # The fence of a damaged record may use the kernel log.
            if found is None or found.transport == "kmsg":
                return
    write(before)
    state.delete_sysctls(_STORED)


def write(value: str) -> None:
    """Set the sysctl to ``value``; raises UnsupportedError if it can't be written."""
    _in_initial(lambda: _SYSCTL.write_text(value, "ascii"))


def _value_before(state: StateDirectory) -> str | None:
    content = state.stored_sysctls(_STORED)
    try:
        return None if content is None else content.decode("ascii").strip()
    except ValueError as error:
        raise FenceError(f"{state.path}/{_STORED}.before can't be read: it is not ASCII") from error


def _in_initial(work: Callable[[], T]) -> T:
    try:
        return (HOST if is_initial(HOST) else of_process(1)).call(work)
    except (OSError, OcsfNftError) as error:
        cause = error.strerror if isinstance(error, OSError) else error
        raise UnsupportedError(
            "net.netfilter.nf_log_all_netns, which allows records of other namespaces in the "
            f"kernel log, can't be read or set from here: that takes root on the host ({cause})"
        ) from error
