"""Attempts (refused packets that one event reports), made from the kernel's packet counters.

The counters are needed, because the kernel counts each refused packet, but does not log each one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.attempt import Attempt
from ocsf_nft.flow import counter_suffix
from ocsf_nft.record import Origin, Record, own_prefix

if TYPE_CHECKING:
    from ocsf_nft.accounting.counter_id import CounterId
    from ocsf_nft.accounting.flow_counter import FlowCounter
    from ocsf_nft.attempt import Aggregation
    from ocsf_nft.flow import Flow, Key
    from ocsf_nft.process import Attribution
    from ocsf_nft.record import Detail

_IP: Final[dict[int | None, Literal[4, 6]]] = {0x0800: 4, 0x86DD: 6}
_KINDS: Final = ("icmp_type", "icmp_code", "arp", "fragment_offset", "more_fragments")
#: Maximum duration of a reading (``fence.counters``), approximately.
_READ_NS: Final = 12 * 1_000_000_000


def attempt(  # noqa: PLR0913 - the facts of one attempt
    # Identity of all counters of the rule; `counter` is one of these counters.
    counter_id: CounterId,
    counter: FlowCounter,
    # Key in the nftables set; None for a counter without a key.
    key: Key | None,
    flow: Flow,
    *,
    packets: int,
    # Number of the rule's packets in earlier events. It makes the attempt's identity unique.
    number: int,
    # Time at which the counters were read (ns since the epoch, UTC).
    read_ns: int,
    # Log record that supplies the header fields.
    sample_record: Record | None = None,
    attribution: Attribution | None = None,
    aggregation: Aggregation | None = None,
) -> Attempt:
    """Build an attempt (the refused packets that one event reports) from a packet counter.

    This function also subtracts ``packets`` from the counter's unreported packets. ``number``
    counts the firewall rule's packets in earlier events. It makes the attempt's identity unique.
    """
    octets = max(counter.unreported_bytes, 0)
    start_ns, end_ns = _window(counter)
    counter.mark_reported(packets, octets)
    counter.since_ns = end_ns
    suffix = counter_suffix(counter_id.rule, is_permissive=counter_id.is_permissive)
    counter_name = suffix if key is None else f"{key.kind}_{suffix}"
    record = Record(
        prefix=own_prefix(
            counter_id.sandbox, counter_id.rule, is_permissive=counter_id.is_permissive
        ),
        sandbox=counter_id.sandbox,
        rule=counter_id.rule,
        verdict=counter_id.verdict,
        in_interface=None if sample_record is None else sample_record.in_interface,
        out_interface=None if sample_record is None else sample_record.out_interface,
        source=None if sample_record is None else sample_record.source,
        ethertype=flow.ethertype if flow.ethertype not in _IP else None,
        ip_version=_version(key, flow),
        destination=flow.destination,
        destination_port=flow.port,
        protocol=flow.protocol,
        uid=flow.uid,
        tcp_flags=None if sample_record is None else sample_record.tcp_flags,
        details={} if sample_record is None else _common_details(sample_record),
        time_ns=end_ns,
        received_ns=read_ns,
        origin=Origin(
            transport="counters",
            identity=f"{counter_id.epoch}/{counter_id.name}/{number}",
            log_source=f"nftables {counter_name}",
            log_format="nf_tables",
            raw=f"{counter_name} {{ {_key_text(flow)} counter packets {packets} bytes {octets} }}",
        ),
    )
    return Attempt(
        record=record,
        packets=packets,
        bytes=octets,
        start_ns=start_ns,
        end_ns=end_ns,
        aggregation=aggregation,
        attribution=attribution,
    )


def _window(counter: FlowCounter) -> tuple[int, int]:
    """Return the earliest and the latest possible time of a counter's unreported packets."""
    since_ns, last_ns = counter.since_ns, counter.last_ns
    if last_ns >= since_ns:
        return since_ns, last_ns
    # Each is the latest possible time, exact to some seconds. A larger difference shows that the
    # clock was set back.
    return (since_ns, since_ns) if since_ns - last_ns < _READ_NS else (last_ns, last_ns)


def _common_details(sample_record: Record) -> dict[str, Detail]:
    """Return those details of a log record that show the kind of packet, such as ``icmp_type``.

    An attempt with several packets of a flow gets these details from the log record of one packet.
    """
    return {name: sample_record.details[name] for name in _KINDS if name in sample_record.details}


def _version(key: Key | None, flow: Flow) -> Literal[4, 6] | None:
    if key is None:
        return None
    if key.kind == "others":
        return _IP.get(flow.ethertype)
    return 4 if key.kind == "flows4" else 6


def _key_text(flow: Flow) -> str:
    """Format a flow as nft prints a set element's key: ``1000 . 6 . 203.0.113.7 . 443``."""
    parts = (flow.uid, flow.ethertype, flow.protocol, flow.destination, flow.port)
    return " . ".join(str(part) for part in parts if part is not None)
