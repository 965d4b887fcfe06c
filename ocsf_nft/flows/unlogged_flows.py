"""Flows without a log record, to find the one that counted a certain packet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ocsf_nft.flow import user_of, without_port

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.flow import Key
    from ocsf_nft.flows.flow_counter import FlowCounter


class UnloggedFlows:
    """Counters of flows without a log record, to find the one that counted a certain packet.

    The kernel may count a packet under another flow than it logs, for example if the packet's
    header is cut short, or names a wrong protocol.
    """

    def __init__(self, counters: Iterable[tuple[Key, FlowCounter]]) -> None:
        self._of_user: dict[int | None, list[tuple[Key, FlowCounter]]] = {}
        #: Counters by user, protocol and destination.
        self._alike: dict[Key, list[tuple[Key, FlowCounter]]] = {}
        for key, counter in counters:
            self._of_user.setdefault(user_of(key), []).append((key, counter))
            self._alike.setdefault(without_port(key), []).append((key, counter))

    def find(self, packets: int, key: Key) -> list[tuple[Key, FlowCounter]]:
        """Return the counter that probably counted ``packets`` packets logged as flow ``key``.

        It is of the same user, and preferably of the same protocol and destination. The list is
        empty if there is none.
        """
        alike = self._alike.get(without_port(key), [])
        return _last(alike, packets) or _last(self._of_user.get(user_of(key), []), packets)


def _last(found: list[tuple[Key, FlowCounter]], packets: int) -> list[tuple[Key, FlowCounter]]:
    while found and found[-1][1].unreported_packets < packets:
        # Later calls do not find this counter, even if they need fewer packets.
        found.pop()
    return found[-1:]
