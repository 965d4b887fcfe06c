"""What a fence is: the values that its rulesets are made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from ocsf_nft.errors import UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.values import Address, Endpoint

#: How refused packets are reported: netlink, kernel log, or not at all. Best first.
LogTransport: TypeAlias = Literal["nflog", "kmsg", "none"]
LADDER: Final[tuple[LogTransport, ...]] = ("nflog", "kmsg", "none")
#: The class of the events that come of it; any other free group does as well.
DEFAULT_GROUP: Final = 4001


@dataclass(frozen=True, slots=True, kw_only=True)
class FenceSpec:
    """What the operator asks for. Every value is checked when it is made (UsageError)."""

    sandbox: str
    proxies: tuple[Endpoint, ...]
    exceptions: tuple[Endpoint, ...] = ()
    group: int = DEFAULT_GROUP
    guard_device: str | None = None

    def __post_init__(self) -> None:
        """Check what the types don't."""
        values.sandbox_name(self.sandbox)
        values.nflog_group(self.group)
        if self.guard_device is not None:
            values.device_name(self.guard_device)
        if not self.proxies:
            raise UsageError("a fence needs at least one --proxy ADDR:PORT to let through")

    @property
    def allowed(self) -> tuple[Endpoint, ...]:
        """Everything that is let through, in a stable order."""
        return tuple(sorted({*self.proxies, *self.exceptions}, key=_order))


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What the namespace looks like: its links, and who has to be found on them.

    ``links`` are the names of all interfaces but loopback, ``uplinks`` those that lead to what is
    allowed (all of them while no route tells), ``neighbours`` the next hops towards it.
    """

    links: tuple[str, ...] = ()
    uplinks: tuple[str, ...] = ()
    neighbours: tuple[Address, ...] = ()

    def __post_init__(self) -> None:
        """Check what the kernel said: an interface's name is its owner's choice."""
        for link in self.links:
            values.device_name(link)


def _order(endpoint: Endpoint) -> tuple[int, int, str, int]:
    return endpoint.address.version, int(endpoint.address), endpoint.protocol, endpoint.port
