"""What a virtual machine's own rules are made from: the addresses that it may be."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ocsf_nft.fence.spec import Surroundings, Tap
    from ocsf_nft.fence.values import Subnet

_ZONES: Final = 0xFFFF
#: In accounting.nft, the way to the chain of what has an owner, and that chain.
_OWNED: Final = re.compile(
    r"^\t\tmeta skuid >= 0 goto account_owned_egress\n"
    r"|^\tchain account_owned_egress \{\n(?:\t\t.*\n)+\t\}\n\n",
    re.MULTILINE,
)


def addresses(tap: Tap) -> dict[str, str]:
    """The values of ``vm4``, ``subnet4`` and so on, of the families that the VM has."""
    found = {}
    for subnet in tap.subnets:
        found[f"vm{subnet.version}"] = "{ " + ", ".join(_free(subnet)) + " }"
        found[f"subnet{subnet.version}"] = str(subnet.network)
    return found


def zone(around: Surroundings) -> str:
    """The conntrack zone of a VM: by its device's number, which one made anew has another of.

    There are 65535 besides the one that is everybody's; then a number comes again.
    """
    return str((around.ifindex or 0) % _ZONES + 1)


def without_families(text: str, tap: Tap) -> str:
    """A ruleset without the lines that name addresses of a family that the VM has none of."""
    for version in {4, 6} - {subnet.version for subnet in tap.subnets}:
        named = re.compile(rf"\$(?:vm|subnet){version}\b|^define (?:vm|subnet){version} = ")
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not named.search(line))
    return text


def without_owners(accounting: str) -> str:
    """The accounting of rules whose packets nobody on the host has sent.

    A packet from a TAP device has the hypervisor's socket, and one to a socket of the host has that
    one: by their owners nothing in the VM is told apart.
    """
    kept, count = _OWNED.subn("", accounting)
    if count != 2:
        raise AssertionError("accounting.nft must tell what has an owner in one chain")
    return kept


def _free(subnet: Subnet) -> Iterator[str]:
    """The ranges of a subnet that are nobody else's.

    The first address is the network's, in IPv6 that of whichever router is nearest (RFC 4291), the
    last one IPv4's broadcast address; where there are two, both are hosts (RFC 3021, RFC 6164).
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
