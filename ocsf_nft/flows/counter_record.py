"""Records of packets that the kernel has counted, but not logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from ocsf_nft.flow import counter_suffix
from ocsf_nft.record import Origin, Record, own_prefix

if TYPE_CHECKING:
    from ocsf_nft.flow import CounterId, Flow, Key
    from ocsf_nft.record import Detail

_IP: Final[dict[int | None, Literal[4, 6]]] = {0x0800: 4, 0x86DD: 6}
#: Details of a log record that show the kind of all packets of its flow.
_KINDS: Final = ("icmp_type", "icmp_code", "arp", "fragment_offset", "more_fragments")


def counter_record(  # noqa: PLR0913 - the facts of one record
    counter_id: CounterId,
    key: Key | None,
    flow: Flow,
    sample: Record | None,
    *,
    number: str,
    counted: str,
    time_ns: int,
    read_ns: int,
) -> Record:
    """Return a record of packets that a counter shows; ``sample`` is one of their log records.

    ``key`` is None for a counter without a key. No other record of the counters has ``number``.
    ``counted`` is the counter as nft prints it, read at ``read_ns``.
    """
    is_permissive = counter_id.is_permissive
    suffix = counter_suffix(counter_id.rule, is_permissive=is_permissive)
    counter_name = suffix if key is None else f"{key.kind}_{suffix}"
    return Record(
        prefix=own_prefix(counter_id.sandbox, counter_id.rule, is_permissive=is_permissive),
        sandbox=counter_id.sandbox,
        rule=counter_id.rule,
        verdict=counter_id.verdict,
        in_interface=None if sample is None else sample.in_interface,
        out_interface=None if sample is None else sample.out_interface,
        source=None if sample is None else sample.source,
        ethertype=flow.ethertype if flow.ethertype not in _IP else None,
        ip_version=_version(key, flow),
        destination=flow.destination,
        destination_port=flow.port,
        protocol=flow.protocol,
        uid=flow.uid,
        tcp_flags=None if sample is None else sample.tcp_flags,
        details={} if sample is None else _common_details(sample),
        time_ns=time_ns,
        received_ns=read_ns,
        origin=Origin(
            transport="counters",
            identity=f"{counter_id.epoch}/{counter_id.name}/{number}",
            log_source=f"nftables {counter_name}",
            log_format="nf_tables",
            raw=f"{counter_name} {{ {_key_text(flow)} {counted} }}",
        ),
    )


def _common_details(sample: Record) -> dict[str, Detail]:
    return {name: sample.details[name] for name in _KINDS if name in sample.details}


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
