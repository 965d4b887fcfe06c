"""IP forwarding sysctls of a VM's host: enabled while the VM has a fence, then restored.

All VMs in a network namespace share its sysctls. The previous values are stored before the change,
so that a crash can't prevent their restoration.
"""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ocsf_nft import netlink
from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence import table_query

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ocsf_nft.fence.spec import FenceSpec, Tap
    from ocsf_nft.fence.state import InstalledFence, StateDirectory
    from ocsf_nft.netns import Namespace

_NET: Final = Path("/proc/sys/net")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_KEY: Final = re.compile(
    r"ipv([46])/conf/(?!\.{1,2}/)[^/\0]+/(?:forwarding|accept_redirects|accept_ra)"
)
_VALUE: Final = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_SWAPPED: Final = str.maketrans("./", "/.")
_ON: Final = "1"
#: Accept router advertisements even while this device forwards.
_ACCEPT_RA_ALWAYS: Final = "2"


def disabled_sysctls(spec: FenceSpec, namespace: Namespace) -> tuple[str, ...]:
    """Return the names of the forwarding sysctls that a VM's fence needs and that are off.

    If the fence is not for a VM, the result is an empty tuple.
    """
    if (tap := spec.tap) is None:
        return ()
    return namespace.call(lambda: tuple(_name(key) for key in _missing(tap)))


def prepare(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Store the current values of the sysctls that :func:`switch_on` changes to forward packets.

    Does nothing if the fence is not for a VM. If IP forwarding can't be enabled, stores nothing and
    raises UnsupportedError.
    """
    if (tap := spec.tap) is None:
        return
    identity = namespace.identity()
    origin = namespace.call(_origin)
    stored = _stored(state, identity, origin)
    found = namespace.call(lambda: _values_before(tap, stored))
    if found != stored:
        _store(state, identity, origin, found)


def switch_on(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Enable the forwarding of a VM's packets in a namespace; call :func:`prepare` before.

    Does nothing if the fence is not for a VM. Raises UnsupportedError if a sysctl can't be written.
    """
    if (tap := spec.tap) is None:
        return
    stored = _stored(state, namespace.identity(), namespace.call(_origin))
    namespace.call(lambda: _switch_on(tap, stored))


def release(
    identity: str, namespace: Namespace, state: StateDirectory, *, besides: str | None = None
) -> None:
    """Restore a namespace's IP forwarding sysctls, except those that active fences of VMs need.

    Nothing is restored if ``namespace`` is deleted, or if its present identity is not ``identity``.
    The fence of the sandbox ``besides`` counts as inactive. Raises UnsupportedError if a sysctl
    can't be written.
    """
    if state.stored_sysctls(_file(identity)) is None:
        return
    others = []
    for other in state.sandboxes():
        if other != besides:
            found = state.read_or_none(other)
            # The fence of a damaged record may need all these sysctls.
            if found is None:
                return
            tap = found.spec.tap
            if tap and found.identity == identity and _may_be_active(found, namespace):
                others.append(tap)
    _release(identity, namespace, others, state)


def _may_be_active(installed: InstalledFence, namespace: Namespace) -> bool:
    # If ``namespace`` is now another one, the recorded one may still exist, with an active fence.
    return not namespace.has_identity(installed.identity) or any(
        table_query.comment(namespace, *table_id) is not None for table_id in installed.spec.tables
    )


def _release(
    identity: str, namespace: Namespace, others: Iterable[Tap], state: StateDirectory
) -> None:
    needed = {subnet.version for tap in others for subnet in tap.subnets}
    if not namespace.has_identity(identity):
        if not needed:
            state.delete_sysctls(_file(identity))
        return
    origin = namespace.call(_origin)
    stored = _stored(state, identity, origin)
    needed_values = {key: value for key, value in stored.items() if _version(key) in needed}
    unneeded = {key: value for key, value in stored.items() if key not in needed_values}
    if unneeded:
        namespace.call(lambda: _restore(unneeded))
    if not needed_values:
        state.delete_sysctls(_file(identity))
    elif unneeded:
        _store(state, identity, origin, needed_values)


def _file(identity: str) -> str:
    return f"forwarding-{identity}"


def _version(key: str) -> int:
    return 4 if key.startswith("ipv4/") else 6


def _missing(tap: Tap) -> Iterator[str]:
    """Yield the sysctls that a VM's fence needs and that are off, as paths below /proc/sys/net."""
    for version in (subnet.version for subnet in tap.subnets):
        keys = [f"ipv{version}/conf/all/forwarding"]
        if version == 4:
            keys.append(f"ipv4/conf/{tap.device}/forwarding")  # see IN_DEV_FORWARD()
        yield from (key for key in keys if _read(key) == "0")


def _values_before(tap: Tap, stored: Mapping[str, str]) -> dict[str, str]:
    """Return ``stored``, with the present values of the other sysctls that a VM's fence changes.

    Raises UnsupportedError if a sysctl is read-only.
    """
    # Stored earlier, for example for another VM. The present value may be the changed one.
    found = dict(stored)
    for key in _missing(tap):
        _check_writable(key)
        for affected in _affected(key, tap):
            value = _read(affected)
            if value is not None:
                found.setdefault(affected, value)
    return found


def _affected(key: str, tap: Tap) -> Iterator[str]:
    """Yield the forwarding sysctl ``key``, and all others that change when ``key`` is enabled.

    A key for all devices changes ``forwarding`` of every existing and future device. In IPv4,
    ``conf.all.accept_redirects`` gets the opposite value (``inet_forward_change()`` in
    net/ipv4/devinet.c, ``addrconf_fixup_forwarding()`` in net/ipv6/addrconf.c). One change is
    permanent: the kernel disables large receive offload (``dev_disable_lro()``).
    """
    if "/all/" not in key:
        yield key
        return
    version = _version(key)
    devices = sorted(entry.name for entry in (_NET / f"ipv{version}/conf").iterdir())
    yield from (f"ipv{version}/conf/{device}/forwarding" for device in devices)
    if version == 4:
        yield "ipv4/conf/all/accept_redirects"
        return
    # _switch_on() also changes accept_ra of devices, except the VM's TAP device.
    for device in devices:
        values = [_read(f"ipv6/conf/{device}/{name}") for name in ("forwarding", "accept_ra")]
        if values == ["0", "1"] and device not in {"all", "default", "lo", tap.device}:
            yield f"ipv6/conf/{device}/accept_ra"


def _switch_on(tap: Tap, stored: Mapping[str, str]) -> None:
    for key in _missing(tap):
        if key == "ipv6/conf/all/forwarding":
            # A device that forwards accepts router advertisements only with this value
            # (ipv6_accept_ra()). With the value 1, the kernel would delete the default routes from
            # router advertisements at once (rt6_purge_dflt_routers()).
            for other in stored:
                if other.endswith("/accept_ra") and _read(other) == "1":
                    _write(other, _ACCEPT_RA_ALWAYS)
        _write(key, _ON)


def _restore(before: Mapping[str, str]) -> None:
    # First the sysctls for all devices, because a write to them changes other sysctls.
    def order(key: str) -> tuple[bool, bool]:
        return key.endswith("/accept_ra"), not key.endswith("/all/forwarding")

    for key in sorted(before, key=order):
        if _read(key) not in {None, before[key]}:
            _write(key, before[key])


def _name(key: str) -> str:
    if key.startswith("ipv4/conf/all/"):
        return "net.ipv4.ip_forward"
    # As sysctl(8) writes them; a device may have any name.
    return ascii(f"net.{key.translate(_SWAPPED)}").strip("'")


def _read(key: str) -> str | None:
    try:
        return (_NET / key).read_text("ascii").strip()
    except FileNotFoundError:  # its device was deleted
        return None


def _check_writable(key: str) -> None:
    try:  # /proc/sys may be read-only
        (_NET / key).open("r+").close()
    except OSError as error:
        raise _unwritable(key, error) from error


def _write(key: str, value: str) -> None:
    try:
        # Opened so that no new file is created if the device was deleted.
        with (_NET / key).open("r+") as file:
            file.write(value)
    except FileNotFoundError:
        return
    except OSError as error:
        raise _unwritable(key, error) from error


def _unwritable(key: str, error: OSError) -> UnsupportedError:
    return UnsupportedError(
        f"a VM needs {_name(key)}, which can't be switched from here ({error.strerror}): "
        f"run `sysctl -w {_name(key)}=1` where it can, and then this again"
    )


def _stored(state: StateDirectory, identity: str, origin: str) -> dict[str, str]:
    """Return the stored values of a namespace, which ``identity`` and ``origin`` identify.

    Return no values if none are stored. Raises FenceError if they are damaged.
    """
    content = state.stored_sysctls(_file(identity))
    if content is None:
        return {}
    try:
        found, values = json.loads(content)
        well_formed = all(_KEY.fullmatch(key) and _VALUE.fullmatch(values[key]) for key in values)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(state) from error
    if not well_formed:
        raise _damaged(state)
    # The kernel may give the identity of a deleted namespace to a new one, with another origin.
    return dict(values) if found == origin else {}


def _store(state: StateDirectory, identity: str, origin: str, values: Mapping[str, str]) -> None:
    content = json.dumps([origin, dict(values)], indent=1)
    state.store_sysctls(_file(identity), content.encode("ascii"))


def _origin() -> str:
    """Return a text that identifies this thread's network namespace: boot id and netns cookie."""
    boot = _BOOT.read_text("ascii").strip()
    with socket.socket(socket.AF_UNIX) as sock:
        try:  # unlike an inode number, a cookie is never used again
            return f"{boot} {netlink.namespace_cookie(sock)}"
        except OSError:  # before Linux 5.14: the same text for all namespaces
            return boot


def _damaged(state: StateDirectory) -> FenceError:
    return FenceError(
        f"the stored IP forwarding settings in {state.path} are damaged: set the sysctls as you "
        "need them and remove the file forwarding-*.before"
    )
