"""What a counter owes, as an attempt: in the form of a record, where none may be left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.attempt import Attempt
from ocsf_nft.flow import counting_name
from ocsf_nft.record import Origin, Record, own_prefix

if TYPE_CHECKING:
    from ocsf_nft.accounting.counter_id import Whose
    from ocsf_nft.accounting.flow_counter import Counted
    from ocsf_nft.attempt import Merged
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Detail

_IP: Final[dict[int | None, Literal[4, 6]]] = {0x0800: 4, 0x86DD: 6}
_KINDS: Final = ("icmp_type", "icmp_code", "arp", "fragment_offset", "more_fragments")
#: A reading takes no longer (``fence.counters``), or hardly.
_READ_NS: Final = 12 * 1_000_000_000


def attempt(  # noqa: PLR0913 - what is told, and in whose words
    whose: Whose,
    counted: Counted,
    key: Key | None,
    flow: Flow,
    *,
    packets: int,
    number: int,
    read_ns: int,
    specimen: Record | None = None,
    attribution: Attribution | None = None,
    merged: Merged | None = None,
) -> Attempt:
    """What a counter owes, as one attempt, taken off it.

    ``packets`` is how many; ``number`` how many of the rule were told before, which is another
    one for each attempt; ``read_ns`` when it was read. ``specimen`` is the latest record of it,
    ``attribution`` who sent one of the packets.
    """
    octets = max(counted.owed_bytes, 0)
    start_ns, end_ns = _window(counted)
    counted.told(packets, octets)
    counted.since_ns = end_ns
    counting = counting_name(whose.rule, is_permissive=whose.is_permissive)
    where = counting if key is None else f"{key.kind}_{counting}"
    record = Record(
        prefix=own_prefix(whose.sandbox, whose.rule, is_permissive=whose.is_permissive),
        sandbox=whose.sandbox,
        rule=whose.rule,
        verdict=whose.verdict,
        in_interface=None if specimen is None else specimen.in_interface,
        out_interface=None if specimen is None else specimen.out_interface,
        source=None if specimen is None else specimen.source,
        ethertype=flow.ethertype if flow.ethertype not in _IP else None,
        ip_version=_version(key, flow),
        destination=flow.destination,
        destination_port=flow.port,
        protocol=flow.protocol,
        uid=flow.uid,
        tcp_flags=None if specimen is None else specimen.tcp_flags,
        details={} if specimen is None else _told_of_all(specimen),
        time_ns=end_ns,
        received_ns=read_ns,
        origin=Origin(
            transport="counters",
            identity=f"{whose.epoch}/{whose.name}/{number}",
            log_source=f"nftables {where}",
            log_format="nf_tables",
            raw=f"{where} {{ {_words(flow)} counter packets {packets} bytes {octets} }}",
        ),
    )
    return Attempt(
        record=record,
        packets=packets,
        bytes=octets,
        start_ns=start_ns,
        end_ns=end_ns,
        merged=merged,
        attribution=attribution,
    )


def _window(counted: Counted) -> tuple[int, int]:
    """From when to when the packets are that it owes: not before those that were told."""
    since_ns, last_ns = counted.since_ns, counted.last_ns
    if last_ns >= since_ns:
        return since_ns, last_ns
    # Both are the latest moments that can be, to some seconds; else the clock was set back.
    return (since_ns, since_ns) if since_ns - last_ns < _READ_NS else (last_ns, last_ns)


def _told_of_all(specimen: Record) -> dict[str, Detail]:
    """What decides of a packet what it is, and what became of it: the key doesn't tell."""
    return {name: specimen.details[name] for name in _KINDS if name in specimen.details}


def _version(key: Key | None, flow: Flow) -> Literal[4, 6] | None:
    if key is None:
        return None
    if key.kind == "others":
        return _IP.get(flow.ethertype)
    return 4 if key.kind == "flows4" else 6


def _words(flow: Flow) -> str:
    """A key as nft would print it; what it hasn't got is left out."""
    parts = (flow.uid, flow.ethertype, flow.protocol, flow.destination, flow.port)
    return " . ".join(str(part) for part in parts if part is not None)
