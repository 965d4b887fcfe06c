"""IP forwarding on the host of a VM: enabled while the VM has a fence, then restored.

Without IP forwarding, the host does not forward a VM's packets. The sysctls ``net.ipv4.ip_forward``
and ``net.ipv6.conf.all.forwarding`` belong to a network namespace, and all VMs in it share them. A
write to one of them changes other sysctls too (``inet_forward_change()`` in net/ipv4/devinet.c,
``addrconf_fixup_forwarding()`` in net/ipv6/addrconf.c):

- ``forwarding`` of every existing and future device;
- in IPv4 also ``conf.all.accept_redirects``, which gets the opposite value.

A device that forwards IPv6 accepts router advertisements only if its ``accept_ra`` is 2
(``ipv6_accept_ra()``). Otherwise the kernel at once deletes the default routes that the device got
from router advertisements (``rt6_purge_dflt_routers()``). So an ``accept_ra`` of 1 is changed to 2
before forwarding is enabled, except on the TAP device.

The previous values of all these sysctls are stored in the state directory before any of them is
written. So they can be restored after any crash. A device that is created while forwarding is
enabled has the kernel's defaults.

One change can't be restored. When forwarding is enabled, the kernel permanently disables large
receive offload, which a forwarding host must not have (``dev_disable_lro()``).
"""

from __future__ import annotations

import json
import re
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from ocsf_nft.errors import AbsentError, FenceError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.netns import Namespace

_Version: TypeAlias = Literal[4, 6]

_NET: Final = Path("/proc/sys/net")
_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_KEY: Final = re.compile(
    r"ipv([46])/conf/(?!\.{1,2}/)[^/\0]+/(?:forwarding|accept_redirects|accept_ra)"
)
_VALUE: Final = re.compile(r"-?[0-9]{1,10}", re.ASCII)
_NAMES: Final[Mapping[_Version, str]] = {
    4: "net.ipv4.ip_forward",
    6: "net.ipv6.conf.all.forwarding",
}
_SWAPPED: Final = str.maketrans("./", "/.")
_ON: Final = "1"
#: ``include/uapi/asm-generic/socket.h``.
_SO_NETNS_COOKIE: Final = 71
_COOKIE: Final = struct.Struct("=Q")
#: Accept router advertisements even while this device forwards.
_ACCEPT_RA_ALWAYS: Final = "2"


def disabled_sysctls(spec: FenceSpec, namespace: Namespace) -> tuple[str, ...]:
    """Return the names of the sysctls that are off, but must be on to forward a VM's packets.

    The result is empty if the fence is not a VM's.
    """
    if spec.tap is None:
        return ()
    return namespace.call(lambda: tuple(_name(key) for key in _missing(spec)))


def prepare(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Store the previous values of the forwarding sysctls that :func:`switch_on` will change.

    Does nothing if forwarding is on already, or if the fence is not a VM's. Raises UnsupportedError
    if a sysctl can't be written, for example in a read-only ``/proc/sys``. In that case nothing is
    stored or changed.
    """
    if spec.tap is None:
        return
    identity = namespace.identity()
    origin = namespace.call(_origin)
    stored = _stored(state, identity, origin)
    found = namespace.call(lambda: _values_before(spec, stored))
    if found != stored:
        _store(state, identity, origin, found)


def switch_on(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Enable the forwarding of a VM's packets in a namespace.

    Before this call, :func:`prepare` must have stored the previous values. Does nothing if the
    fence is not a VM's. Raises UnsupportedError if a sysctl can't be written.
    """
    if spec.tap is None:
        return
    stored = _stored(state, namespace.identity(), namespace.call(_origin))
    namespace.call(lambda: _switch_on(spec, stored))


def release(
    identity: str, namespace: Namespace, others: Iterable[FenceSpec], state: StateDirectory
) -> None:
    """Restore the forwarding sysctls of a namespace, except those that other VMs' fences need.

    ``identity`` identifies the namespace in which forwarding was enabled. If that namespace was
    deleted or replaced, ``namespace`` has another identity or none, and nothing is restored.
    ``others`` are the fences that remain in the namespace. Raises UnsupportedError if a sysctl
    can't be written.
    """
    needed = {version for spec in others for version in _versions(spec)}
    try:
        is_there = namespace.identity() == identity
    except AbsentError:
        is_there = False
    if not is_there:
        if not needed:
            state.delete_forwarding_before(identity)
        return
    origin = namespace.call(_origin)
    stored = _stored(state, identity, origin)
    needed_values = {key: value for key, value in stored.items() if _version(key) in needed}
    unneeded = {key: value for key, value in stored.items() if key not in needed_values}
    if unneeded:
        namespace.call(lambda: _restore(unneeded))
    if not needed_values:
        state.delete_forwarding_before(identity)
    elif unneeded:
        _store(state, identity, origin, needed_values)


def _versions(spec: FenceSpec) -> tuple[_Version, ...]:
    return () if spec.tap is None else tuple(subnet.version for subnet in spec.tap.subnets)


def _version(key: str) -> _Version:
    return 4 if key.startswith("ipv4/") else 6


def _missing(spec: FenceSpec) -> Iterator[str]:
    """Yield the sysctls that a VM's fence needs and that are off, as paths below /proc/sys/net.

    Each IP version has a sysctl for all devices. In IPv4 the TAP device also has its own sysctl
    (``IN_DEV_FORWARD()``).
    """
    for version in _versions(spec):
        keys = [f"ipv{version}/conf/all/forwarding"]
        if version == 4 and spec.tap is not None:
            keys.append(f"ipv4/conf/{spec.tap.device}/forwarding")
        yield from (key for key in keys if _read(key) == "0")


def _values_before(spec: FenceSpec, stored: Mapping[str, str]) -> dict[str, str]:
    """Return the values that the sysctls had before forwarding was enabled, by path of the sysctl.

    The result has all values in ``stored``. It also has the current values of other sysctls that
    will change when forwarding is enabled now. Raises UnsupportedError if a sysctl can't be
    written.
    """
    found = dict(stored)
    for key in _missing(spec):
        _check_writable(key)
        for affected in _affected(key, spec):
            value = _read(affected)
            if value is not None:
                found.setdefault(affected, value)
    return found


def _affected(key: str, spec: FenceSpec) -> Iterator[str]:
    """Yield the paths of all sysctls that change when the sysctl ``key`` is switched on.

    The kernel changes most of them, and :func:`_switch_on` changes ``accept_ra``.
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
    tap = None if spec.tap is None else spec.tap.device
    for device in devices:
        values = [_read(f"ipv6/conf/{device}/{name}") for name in ("forwarding", "accept_ra")]
        if values == ["0", "1"] and device not in {"all", "default", "lo", tap}:
            yield f"ipv6/conf/{device}/accept_ra"


def _switch_on(spec: FenceSpec, stored: Mapping[str, str]) -> None:
    for key in _missing(spec):
        if key == "ipv6/conf/all/forwarding":
            for other in stored:
                if other.endswith("/accept_ra") and _read(other) == "1":
                    _write(other, _ACCEPT_RA_ALWAYS)
        _write(key, _ON)


def _restore(before: Mapping[str, str]) -> None:
    """Write the previous values ``before`` to the sysctls.

    The sysctls for all devices are written first, because a write to them changes other sysctls.
    ``accept_ra`` is written last.
    """

    def order(key: str) -> tuple[bool, bool]:
        return key.endswith("/accept_ra"), not key.endswith("/all/forwarding")

    for key in sorted(before, key=order):
        if _read(key) not in {None, before[key]}:
            _write(key, before[key])


def _name(key: str) -> str:
    if "/all/" in key:
        return _NAMES[_version(key)]
    # As sysctl(8) writes them; a device may have any name.
    return ascii(f"net.{key.translate(_SWAPPED)}").strip("'")


def _read(key: str) -> str | None:
    """Return the value of a sysctl; None if it doesn't exist, because its device was deleted."""
    try:
        return (_NET / key).read_text("ascii").strip()
    except FileNotFoundError:
        return None


def _check_writable(key: str) -> None:
    try:
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
    """Return the stored previous values of a namespace's sysctls, by sysctl.

    ``identity`` and ``origin`` (see :func:`_origin`) identify the namespace. A later namespace may
    have the same ``identity``, but another ``origin``. The result is empty if nothing is stored for
    this namespace. Raises FenceError if the stored values are damaged.
    """
    content = state.forwarding_before(identity)
    if content is None:
        return {}
    try:
        found, values = json.loads(content)
        well_formed = all(_KEY.fullmatch(key) and _VALUE.fullmatch(values[key]) for key in values)
    except (ValueError, TypeError, AttributeError) as error:
        raise _damaged(state) from error
    if not well_formed:
        raise _damaged(state)
    return dict(values) if found == origin else {}


def _store(state: StateDirectory, identity: str, origin: str, values: Mapping[str, str]) -> None:
    content = json.dumps([origin, dict(values)], indent=1)
    state.store_forwarding_before(identity, content.encode("ascii"))


def _origin() -> str:
    """Return a text that identifies the calling thread's namespace: boot id and netns cookie.

    No other namespace ever has the same text. An inode number would not suffice, because another
    namespace soon reuses it. Linux before 5.14 has no cookie: then the text is only the boot id,
    the same for all namespaces.
    """
    boot = _BOOT.read_text("ascii").strip()
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE.size)
        except OSError:
            return boot
    return f"{boot} {_COOKIE.unpack(raw)[0]}"


def _damaged(state: StateDirectory) -> FenceError:
    return FenceError(
        f"the stored IP forwarding settings in {state.path} are damaged: set the sysctls as you "
        "need them and remove the file forwarding-*.before"
    )
