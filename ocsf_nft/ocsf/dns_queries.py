"""DNS questions of an attempt in OCSF: objects, observables and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import DnsActivityId, DnsOpcode, ObservableType
from ocsf_nft.ocsf.event_codes import EventCode
from ocsf_nft.ocsf.events import DnsActivity
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.objects import DnsQuery, Enrichment

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.objects import Observable
    from ocsf_nft.record import DnsQuestion

#: Maximum number of questions that an event lists.
LISTED: Final = 20
#: Maximum number of names that are observables of an event.
OBSERVED: Final = 10
_ENRICHMENT: Final = "dns_query"
#: Maximum length of a name in a sentence.
NAME_CHARACTERS: Final = 64
#: Record types by number (IANA), of those that programs use.
TYPES: Final = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 13: "HINFO", 15: "MX", 16: "TXT",
    24: "SIG", 25: "KEY", 28: "AAAA", 33: "SRV", 35: "NAPTR", 37: "CERT", 39: "DNAME", 43: "DS",
    44: "SSHFP", 46: "RRSIG", 47: "NSEC", 48: "DNSKEY", 50: "NSEC3", 52: "TLSA", 64: "SVCB",
    65: "HTTPS", 99: "SPF", 251: "IXFR", 252: "AXFR", 255: "ANY", 256: "URI", 257: "CAA",
}  # fmt: skip


def type_name(number: int) -> str:
    """Return the name of a record type, such as "AAAA"; RFC 3597 has the form of other numbers."""
    return TYPES.get(number) or f"TYPE{number}"


def is_usual(question: DnsQuestion) -> bool:
    """Return True if a sentence has the whole name, and if the type has a name of its own."""
    return len(question.name) <= NAME_CHARACTERS and question.type in TYPES


def number_of_names(questions: Iterable[DnsQuestion]) -> int:
    """Return how many different names the questions have."""
    return len({question.name for question in questions})


def questions_text(questions: Sequence[DnsQuestion]) -> str:
    """Return the questions of an attempt as the end of a sentence, such as ": A example.com"."""
    if not questions:
        return ""
    if len(questions) == 1:
        return f": {question_text(questions[0])}"
    number = number_of_names(questions)
    return f": at least {number} DNS name{'' if number == 1 else 's'}"


def question_text(question: DnsQuestion) -> str:
    """Return a question for a sentence, such as "A example.com"; a long name is shortened."""
    name = question.name
    if len(name) > NAME_CHARACTERS:
        name = f"{name[: NAME_CHARACTERS - 1]}…"
    return f"{type_name(question.type)} {name}"


def query(question: DnsQuestion) -> DnsQuery:
    """Return a question as an OCSF object."""
    return DnsQuery(
        hostname=question.name,
        type=type_name(question.type),
        opcode_id=DnsOpcode.QUERY,
    )


def unmapped_of(questions: Sequence[DnsQuestion]) -> dict[str, Any]:
    """Return the questions in the form of the attribute ``unmapped.dns``."""
    return {
        "queries": [
            {"hostname": question.name, "type": type_name(question.type)}
            for question in questions[:LISTED]
        ],
        "names": number_of_names(questions),
    }


def dns_activity(
    event: NetworkActivity, question: DnsQuestion, *, is_only: bool = True
) -> DnsActivity:
    """Return the DNS Activity event for a question of a Network Activity event.

    ``is_only`` is true if the event has no other question, so that its message has this one.
    """
    message = event.message if is_only else f"{question_text(question)}: {event.message}"
    hostname = observable("query.hostname", ObservableType.HOSTNAME, question.name)
    sandbox = (event.unmapped or {}).get("sandbox")
    return DnsActivity(
        activity_id=DnsActivityId.QUERY,
        time=event.time,
        start_time=event.start_time,
        end_time=event.end_time,
        severity_id=event.severity_id,
        status_id=event.status_id,
        status_code=event.status_code,
        status_detail=event.status_detail,
        message=message,
        action_id=event.action_id,
        disposition_id=event.disposition_id,
        firewall_rule=event.firewall_rule,
        query=query(question),
        src_endpoint=event.src_endpoint,
        dst_endpoint=event.dst_endpoint,
        connection_info=event.connection_info,
        actor=event.actor,
        device=event.device,
        cloud=event.cloud,
        observables=(hostname, *other_observables(event)),
        enrichments=other_enrichments(event),
        unmapped=None if sandbox is None else {"sandbox": sandbox},
        metadata=event.metadata.model_copy(
            update={
                "uid": stable_uid("dns", event.metadata.uid, question.name, question.type),
                "event_code": EventCode.DNS_QUERY,
            }
        ),
    )


def enrichments_of(questions: Sequence[DnsQuestion]) -> tuple[Enrichment, ...]:
    """Return the first names of an attempt as enrichments of its destination.

    Network Activity has no attribute for names, and an observable must refer to an attribute.
    """
    return tuple(
        Enrichment(
            name="dst_endpoint",
            value=question.name,
            type=_ENRICHMENT,
            provider="ocsf-nft",
            data={"type": type_name(question.type)},
        )
        for question in _of_names(questions)
    )


def observables_of(questions: Sequence[DnsQuestion], before: int) -> tuple[Observable, ...]:
    """Return the observables of these enrichments; ``before`` is the number of others."""
    return tuple(
        observable(f"enrichments[{number}].value", ObservableType.HOSTNAME, question.name)
        for number, question in enumerate(_of_names(questions), before)
    )


def _of_names(questions: Sequence[DnsQuestion]) -> list[DnsQuestion]:
    """Return the first question for each of the first ten names."""
    by_name: dict[str, DnsQuestion] = {}
    for question in questions[:LISTED]:
        by_name.setdefault(question.name, question)
    return list(by_name.values())[:OBSERVED]


def other_enrichments(event: NetworkActivity) -> tuple[Enrichment, ...] | None:
    """Return the enrichments of an event without those of :func:`enrichments_of`."""
    return tuple(each for each in event.enrichments or () if each.type != _ENRICHMENT) or None


def other_observables(event: NetworkActivity) -> Iterator[Observable]:
    """Yield the observables of an event without those of :func:`observables_of`."""
    return (each for each in event.observables or () if not each.name.startswith("enrichments["))
