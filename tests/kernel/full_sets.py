"""Sets of the rule ``egress`` that are as full as after a flood, in rules/accounting.nft."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from ocsf_nft.lab import INTERNET4, INTERNET6
from tests.kernel import conftest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.netns import Namespace

_SHARED: Final = 20_480
_USERS: Final = 3072
_OTHERS: Final = 1024
_FIRST_UID: Final = 100_000


def fill(namespace: Namespace, name: str, elements: Iterable[str]) -> None:
    """Replace the elements of a set of the rule."""
    conftest.nft(namespace, "flush", "set", "inet", "ocsf_nft", f"{name}_egress")
    listed = ", ".join(elements)
    conftest.load(namespace, f"add element inet ocsf_nft {name}_egress {{ {listed} }}\n")


def fill_shared(namespace: Namespace) -> None:
    """Fill the shared slots of both IP versions, as several users together can do."""
    for version, to in (("4", INTERNET4), ("6", INTERNET6)):
        first = ipaddress.ip_address(to)
        elements = (f"7 . udp . {first + number} . 9" for number in range(_SHARED))
        fill(namespace, f"shared{version}", elements)


def fill_reserve(namespace: Namespace) -> None:
    """Give the quotas of first flows to other users."""
    uids = range(_FIRST_UID, _FIRST_UID + _USERS)
    fill(namespace, "first_flows", (f"{uid} limit rate 12/hour burst 4 packets" for uid in uids))


def fill_others(namespace: Namespace) -> None:
    """Fill the set of packets without a flow."""
    fill(namespace, "others", (f"{uid} . arp . tcp" for uid in range(_OTHERS)))
