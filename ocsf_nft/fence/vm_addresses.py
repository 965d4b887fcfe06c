"""Parts of a VM's ruleset that depend on the VM's addresses or on its TAP device."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import Surroundings, Tap
    from ocsf_nft.fence.values import Subnet

_ZONES: Final = 0xFFFF
#: In accounting.nft, the jump to the chain for packets with an owner, and that chain.
_OWNER_CHAIN: Final = re.compile(
    r"^\t\tmeta skuid >= 0 goto account_owned_egress\n"
    r"|^\tchain account_owned_egress \{\n(?:\t\t.*\n)+\t\}\n\n",
    re.MULTILINE,
)


def addresses(tap: Tap) -> dict[str, str]:
    """Return the values of the ruleset's variables ``vm4``, ``subnet4``, ``vm6`` and ``subnet6``.

    ``vm4`` is a set of the addresses that the VM may have. Variables of an address family without a
    subnet are omitted.
    """
    found = {}
    for subnet in tap.subnets:
        found[f"vm{subnet.version}"] = "{ " + ", ".join(_vm_ranges(subnet)) + " }"
        found[f"subnet{subnet.version}"] = str(subnet.network)
    return found


def zone(around: Surroundings) -> str:
    """Return the number of the conntrack zone for a VM's connections, as text.

    The number is derived from the index of the VM's TAP device, in ``around``. The device of a new
    VM has another index. So a new VM does not use the connections of the previous VM. After 65535
    indexes the numbers repeat.
    """
    return str((around.ifindex or 0) % _ZONES + 1)


def without_families(text: str, tap: Tap) -> str:
    """Return the ruleset text without the lines for an address family that the VM lacks.

    The families are IPv4 and IPv6. The VM lacks a family if ``tap`` has no subnet of it.
    """
    for version in {4, 6} - {subnet.version for subnet in tap.subnets}:
        named = re.compile(rf"\$(?:vm|subnet){version}\b|^define (?:vm|subnet){version} = ")
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not named.search(line))
    return text


def without_owners(accounting: str) -> str:
    """Return the text of ``accounting.nft`` without its chain that counts packets by owner (uid).

    A VM's rules use the result, because the owner that nftables sees is a process on the host. For
    a packet from a TAP device, the owner is the hypervisor. For a packet to a socket of the host,
    the owner is the process of that socket.
    """
    remaining, count = _OWNER_CHAIN.subn("", accounting)
    if count != 2:
        raise AssertionError("accounting.nft must count packets with an owner in one chain")
    return remaining


def _vm_ranges(subnet: Subnet) -> Iterator[str]:
    """Yield the address ranges of a subnet that the VM may use, as text.

    The VM may use neither the gateway's address nor the first address. The first address is that of
    the network (IPv4) or of all routers (IPv6: subnet-router anycast, RFC 4291). In IPv4, the VM
    may not use the last address either, because it is the broadcast address. In a subnet of two
    addresses, both are hosts (RFC 3021, RFC 6164), and only the gateway's address is excluded.
    """
    first, last = int(subnet.network[0]), int(subnet.network[-1])
    taken = {int(subnet.ip)}
    if last - first > 1:
        taken |= {first, last} if subnet.version == 4 else {first}
    make = type(subnet.ip)
    for before, after in itertools.pairwise((first - 1, *sorted(taken), last + 1)):
        if after - before == 2:
            yield str(make(before + 1))
        elif after - before > 2:
            yield f"{make(before + 1)}-{make(after - 1)}"
