"""What a fence is: the values that its rulesets are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.values import Address, Endpoint, Subnet

#: How refused packets are reported: netlink, kernel log, or not at all. Best first.
LogTransport: TypeAlias = Literal["nflog", "kmsg", "none"]
LADDER: Final[tuple[LogTransport, ...]] = ("nflog", "kmsg", "none")
#: The class of the events that come of it; any other free group does as well.
DEFAULT_GROUP: Final = 4001

#: What a fence encloses. ``sandbox``: a network namespace; ``sidecar``: one that the proxy lives in
#: as well, and is told by its user; ``tap``: a virtual machine, by its TAP device on the host.
Profile: TypeAlias = Literal["sandbox", "sidecar", "tap"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tap:
    """The virtual machine's end of a fence on its host.

    ``subnets`` are what is on the link: the gateway's own address, and how far the subnet reaches.
    ``mac`` is the machine's link address; None: the first that it sends from.
    """

    device: str
    subnets: tuple[Subnet, ...]
    mac: str | None = None

    def __post_init__(self) -> None:
        """Check what the types don't."""
        values.device_name(self.device)
        if self.mac is not None:
            values.mac(self.mac)
        versions = [subnet.version for subnet in self.subnets]
        if not versions or len(set(versions)) < len(versions):
            raise UsageError("a VM needs a --subnet CIDR, at most one of IPv4 and one of IPv6")


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceSpec:
    """What the operator asks for. Every value is checked when it is made (UsageError).

    With ``proxy_uids`` it is a sidecar's fence, with ``tap`` one round a virtual machine.
    ``is_permissive``: it logs what it would refuse, and lets it pass. ``has_changed``: it was of
    the other kind before, and what it counted then is kept; the installer finds that out.
    ``is_owned``: while a run watches, no other process can change its tables.
    """

    sandbox: str
    proxies: tuple[Endpoint, ...] = ()
    exceptions: tuple[Endpoint, ...] = ()
    proxy_uids: tuple[int, ...] = ()
    tap: Tap | None = None
    group: int = DEFAULT_GROUP
    guard_device: str | None = None
    is_permissive: bool = False
    has_changed: bool = False
    is_owned: bool = False

    def __post_init__(self) -> None:
        """Check what the types don't."""
        values.sandbox_name(self.sandbox)
        values.nflog_group(self.group)
        for uid in self.proxy_uids:
            values.uid(uid)
        if self.guard_device is not None:
            values.device_name(self.guard_device)
            if self.tap is not None:
                raise UsageError("a VM's TAP device is guarded anyway: leave --host-guard out")
        if self.proxy_uids and self.tap is not None:
            raise UsageError("a fence is a sidecar's or a VM's: give --proxy-uid or --device")
        if not self.proxies and not self.proxy_uids:
            raise UsageError("a fence needs at least one --proxy ADDR:PORT to let through")

    @property
    def profile(self) -> Profile:
        """What it encloses."""
        if self.tap is not None:
            return "tap"
        return "sidecar" if self.proxy_uids else "sandbox"

    @property
    def allowed(self) -> tuple[Endpoint, ...]:
        """Everything that is let through, whoever sends it, in a stable order."""
        return tuple(sorted({*self.proxies, *self.exceptions}, key=_order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the namespace looks like: its links, and who has to be found on them.

    ``links`` are the names of all interfaces but loopback, ``uplinks`` those that lead to what is
    allowed (all of them while no route tells), ``neighbours`` the next hops towards it. Of a VM's
    fence ``links`` is its TAP device, and ``ifindex`` that device's number: one that is made anew
    by the same name has another.
    """

    links: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()
    neighbours: tuple[Address, ...] = ()
    ifindex: int | None = None

    def __post_init__(self) -> None:
        """Check what the kernel said: an interface's name is its owner's choice."""
        for link in self.links:
            values.device_name(link)


def _order(endpoint: Endpoint) -> tuple[int, int, str, int]:
    return endpoint.address.version, int(endpoint.address), endpoint.protocol, endpoint.port
