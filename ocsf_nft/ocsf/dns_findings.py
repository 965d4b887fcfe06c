"""Parts of a Detection Finding about DNS queries, and about a DNS tunnel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.ocsf import dns_queries
from ocsf_nft.ocsf.endpoints import observable
from ocsf_nft.ocsf.enums import ObservableType
from ocsf_nft.ocsf.finding_objects import Evidences

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ocsf_nft.ocsf.dns_tunnel import Tunnel
    from ocsf_nft.ocsf.events import NetworkActivity
    from ocsf_nft.ocsf.objects import DnsQuery, Observable
    from ocsf_nft.record import DnsQuestion

#: Maximum number of evidences: one for each question.
_EVIDENCES: Final = 10


def words(tunnel: Tunnel) -> tuple[str, str]:
    """Return the beginnings of the title and of the description of a tunnel."""
    desc = (
        f"A program in the sandbox sent DNS queries for {tunnel.reason}. Ordinary lookups have few "
        "such names below one domain: names like these carry data."
    )
    return f"DNS tunnel to {tunnel.domain}", desc


def advice(tunnel: Tunnel | None) -> str:
    """Return a step of the remediation of a tunnel; empty without one."""
    return "" if tunnel is None else "Decode some names to see which data they carry."


def first_query(questions: Sequence[DnsQuestion]) -> DnsQuery | None:
    """Return the first question as an OCSF object; None without questions."""
    return dns_queries.query(questions[0]) if questions else None


def more_evidences(event: NetworkActivity, questions: Sequence[DnsQuestion]) -> Iterator[Evidences]:
    """Yield evidences for the questions after the first one, at most nine."""
    for question in questions[1:_EVIDENCES]:
        yield Evidences(
            dst_endpoint=event.dst_endpoint,
            connection_info=event.connection_info,
            query=dns_queries.query(question),
        )


def observables(event: NetworkActivity, questions: Sequence[DnsQuestion]) -> tuple[Observable, ...]:
    """Return the observables of ``event``, with the names in the evidences for those in it."""
    paths: dict[str, str] = {}
    for number, question in enumerate(questions[:_EVIDENCES]):
        paths.setdefault(question.name, f"evidences[{number}].query.hostname")
    names = (observable(path, ObservableType.HOSTNAME, name) for name, path in paths.items())
    return (*dns_queries.other_observables(event), *names)


def unmapped_of(questions: Sequence[DnsQuestion], tunnel: Tunnel | None) -> dict[str, Any]:
    """Return the questions and the figures of a tunnel for ``unmapped`` of the finding."""
    if not questions:
        return {}
    found = dns_queries.unmapped_of(questions)
    if tunnel is not None:
        found |= {
            "domain": tunnel.domain,
            "long_names": tunnel.names,
            "mean_length": round(tunnel.length, 1),
            "entropy": round(tunnel.entropy, 2),
        }
    return {"dns": found}
