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

    ``vm4`` and ``vm6`` are nftables sets of the addresses that the VM may have. If ``tap`` has no
    subnet of an IP version, the two variables of this version are omitted.
    """
    found = {}
    for subnet in tap.subnets:
        found[f"vm{subnet.version}"] = "{ " + ", ".join(_vm_ranges(subnet)) + " }"
        found[f"subnet{subnet.version}"] = str(subnet.network)
    return found


def zone(around: Surroundings) -> str:
    """Return the number of the conntrack zone for a VM's connections, as text.

    The number depends on the interface index of the VM's TAP device.
    """
    # A new device has another index, so a new VM can't use the tracked connections of an earlier
    # VM. The numbers repeat after 65535 indexes.
    return str((around.ifindex or 0) % _ZONES + 1)


def without_families(text: str, tap: Tap) -> str:
    """Return the ruleset ``text`` without the IPv4 or IPv6 lines that the VM does not need.

    A VM needs the lines for IPv4 only if ``tap`` has an IPv4 subnet. The same applies to IPv6.
    """
    for version in {4, 6} - {subnet.version for subnet in tap.subnets}:
        named = re.compile(rf"\$(?:vm|subnet){version}\b|^define (?:vm|subnet){version} = ")
        lines = text.splitlines(keepends=True)
        text = "".join(line for line in lines if not named.search(line))
    return text


def without_owners(accounting: str) -> str:
    """Return the text of ``accounting.nft`` without the chain that counts packets by owner (uid).

    For a VM, this chain would count wrong owners. The kernel reports a process on the host as the
    owner, for example the hypervisor.
    """
    remaining, count = _OWNER_CHAIN.subn("", accounting)
    if count != 2:
        raise AssertionError("accounting.nft must count packets with an owner in one chain")
    return remaining


def _vm_ranges(subnet: Subnet) -> Iterator[str]:
    """Yield the addresses that a VM may have in its subnet, for example ``10.0.0.2-10.0.0.254``."""
    first, last = int(subnet.network[0]), int(subnet.network[-1])
    taken = {int(subnet.ip)}
    # The first address is reserved (network in IPv4, anycast of all routers in IPv6: RFC 4291), and
    # the last in IPv4 (broadcast). A subnet of two addresses reserves none (RFC 3021, RFC 6164).
    if last - first > 1:
        taken |= {first, last} if subnet.version == 4 else {first}
    make = type(subnet.ip)
    for before, after in itertools.pairwise((first - 1, *sorted(taken), last + 1)):
        if after - before == 2:
            yield str(make(before + 1))
        elif after - before > 2:
            yield f"{make(before + 1)}-{make(after - 1)}"
