"""IP forwarding, which a VM's packets need on its host: on while a VM is there, and put back.

``net.ipv4.ip_forward`` and ``net.ipv6.conf.all.forwarding`` are a namespace's, and shared by all
VMs in it. Writing one sets others as well (``inet_forward_change()`` in net/ipv4/devinet.c,
``addrconf_fixup_forwarding()`` in net/ipv6/addrconf.c): ``forwarding`` of every device and of those
to come, and in IPv4 ``conf.all.accept_redirects`` to its opposite. With forwarding a device takes
router advertisements only where ``accept_ra`` is 2 (``ipv6_accept_ra()``), and the default routes
that it had from them are gone at once (``rt6_purge_dflt_routers()``). What all of these were before
is kept in the state directory before any is written, so that it is put back after any crash.

Devices that are made meanwhile get what the kernel gives them. What the kernel switches off for
good is large receive offload, which a host that forwards must not have (``dev_disable_lro()``).
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
#: Router advertisements are taken while this device forwards, too.
_ACCEPT_RA_ALWAYS: Final = "2"


def off(spec: FenceSpec, namespace: Namespace) -> tuple[str, ...]:
    """The sysctls by name that keep a VM's packets from being forwarded; none for other fences."""
    if spec.tap is None:
        return ()
    return namespace.call(lambda: tuple(_name(key) for key in _missing(spec)))


def prepare(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Keep what switching on will change, where something has to be switched on.

    Raises UnsupportedError where it can't be (``/proc/sys`` is read-only); nothing has changed
    then.
    """
    if spec.tap is None:
        return
    identity = namespace.identity()
    origin = namespace.call(_origin)
    kept = _kept(state, identity, origin)
    found = namespace.call(lambda: _before(spec, kept))
    if found != kept:
        _keep(state, identity, origin, found)


def switch_on(spec: FenceSpec, namespace: Namespace, state: StateDirectory) -> None:
    """Forward a VM's packets; ``prepare`` comes first. Raises UnsupportedError."""
    if spec.tap is None:
        return
    kept = _kept(state, namespace.identity(), namespace.call(_origin))
    namespace.call(lambda: _switch_on(spec, kept))


def release(
    identity: str, namespace: Namespace, others: Iterable[FenceSpec], state: StateDirectory
) -> None:
    """Put back what is not needed by the fences of ``others``, which stand in the same namespace.

    ``identity`` is that of the namespace where it was switched on; where that is gone, nothing is
    left to put back. Raises UnsupportedError.
    """
    needed = {version for spec in others for version in _versions(spec)}
    try:
        is_there = namespace.identity() == identity
    except AbsentError:
        is_there = False
    if not is_there:
        if not needed:
            state.forget_forwarding_before(identity)
        return
    origin = namespace.call(_origin)
    kept = _kept(state, identity, origin)
    left = {key: value for key, value in kept.items() if _version(key) in needed}
    over = {key: value for key, value in kept.items() if key not in left}
    if over:
        namespace.call(lambda: _put_back(over))
    if not left:
        state.forget_forwarding_before(identity)
    elif over:
        _keep(state, identity, origin, left)


def _versions(spec: FenceSpec) -> tuple[_Version, ...]:
    return () if spec.tap is None else tuple(subnet.version for subnet in spec.tap.subnets)


def _version(key: str) -> _Version:
    return 4 if key.startswith("ipv4/") else 6


def _missing(spec: FenceSpec) -> Iterator[str]:
    """The keys that have to be on, and are not.

    Of IPv4 each device has its own say (``IN_DEV_FORWARD()``), of IPv6 there is one for all.
    """
    for version in _versions(spec):
        keys = [f"ipv{version}/conf/all/forwarding"]
        if version == 4 and spec.tap is not None:
            keys.append(f"ipv4/conf/{spec.tap.device}/forwarding")
        yield from (key for key in keys if _read(key) == "0")


def _before(spec: FenceSpec, kept: Mapping[str, str]) -> dict[str, str]:
    """What is kept, and of what will be changed now the values that it has now."""
    found = dict(kept)
    for key in _missing(spec):
        _see_writable(key)
        for touched in _touched(key, spec):
            value = _read(touched)
            if value is not None:
                found.setdefault(touched, value)
    return found


def _touched(key: str, spec: FenceSpec) -> Iterator[str]:
    """What becomes another when a key is switched on."""
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


def _switch_on(spec: FenceSpec, kept: Mapping[str, str]) -> None:
    for key in _missing(spec):
        if key == "ipv6/conf/all/forwarding":
            for other in kept:
                if other.endswith("/accept_ra") and _read(other) == "1":
                    _write(other, _ACCEPT_RA_ALWAYS)
        _write(key, _ON)


def _put_back(before: Mapping[str, str]) -> None:
    """First what sets others, router advertisements when nothing is forwarded any more."""

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
    """A value; None where there is no such key, because the device is gone."""
    try:
        return (_NET / key).read_text("ascii").strip()
    except FileNotFoundError:
        return None


def _see_writable(key: str) -> None:
    try:
        (_NET / key).open("r+").close()
    except OSError as error:
        raise _unwritable(key, error) from error


def _write(key: str, value: str) -> None:
    try:
        # Not as a file that would be made where the device is gone.
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


def _kept(state: StateDirectory, identity: str, origin: str) -> dict[str, str]:
    """What was before, by key; nothing where nothing was switched on in this very namespace."""
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


def _keep(state: StateDirectory, identity: str, origin: str, values: Mapping[str, str]) -> None:
    content = json.dumps([origin, dict(values)], indent=1)
    state.keep_forwarding_before(identity, content.encode("ascii"))


def _origin() -> str:
    """What no other namespace has, now or later: the kernel's start, and its number since.

    An inode's number is soon another namespace's. Without the cookie (Linux before 5.14) it has to
    do.
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
        f"what is kept of IP forwarding in {state.path} is damaged: put the sysctls back as you "
        "want them and remove the file forwarding-*.before"
    )
