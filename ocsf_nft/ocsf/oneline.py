"""One-line form of an OCSF event, for a person who reads events in a terminal.

An example, which is one line in reality:

    2026-11-24T23:47:46.123Z  MEDIUM  agent  uid 1000 curl[4242]  TCP 203.0.113.7:443 https
    blocked  [egress]  Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again.

The event may have any version and class of OCSF. Missing and invalid values are omitted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ocsf_nft.ocsf import actors, protocols
from ocsf_nft.ocsf.enums import Direction, Disposition
from ocsf_nft.ocsf.json_values import at as _at
from ocsf_nft.ocsf.json_values import number as _number
from ocsf_nft.ocsf.json_values import text as _text
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.protocols import service
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import split_prefix
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Kind of a segment; the segment of the severity has one kind for each level.
Style: TypeAlias = Literal[
    "time", "informational", "low", "medium", "high", "critical", "sandbox", "who", "what",
    "outcome", "count", "rule", "hint",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """Part of the one-line form of an event.

    ``style`` is the kind of the part, for example ``time`` or ``rule``; it selects the colour.
    ``text`` is printable and not empty, and has no line end.
    """

    style: Style
    text: str


#: Separator of two segments: outside quotes, no name has two successive spaces.
GAP: Final = "  "

#: Maximum number of characters of a name, and of a sentence.
_NAME: Final = 64
_SENTENCE: Final = 320
_TIME: Final = len("2026-11-24T23:47:46.123Z")
_LABEL: Final = len("MEDIUM")
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
#: Name that can't be mistaken for another part of the line; other names are quoted.
_PLAIN: Final = re.compile(r'[^\s"()\[\]]+')

_SEVERITIES: Final[dict[int | None, tuple[str, Style]]] = {
    1: ("INFO", "informational"),
    2: ("LOW", "low"),
    3: ("MEDIUM", "medium"),
    4: ("HIGH", "high"),
    5: ("CRIT", "critical"),
    6: ("FATAL", "critical"),
}


def shorthand(event: Mapping[str, Any]) -> tuple[Segment, ...]:
    """Return the one-line form of an OCSF event as segments. No decoded JSON raises an error."""
    label, style = _severity(event)
    parts = _FORMS.get(_number(event.get("class_uid")), _other)(event)
    return (
        Segment("time", (utc_text(event.get("time")) or "-").ljust(_TIME)),
        Segment(style, label.ljust(_LABEL)),
        *(Segment(style, text) for style, text in parts if text),
    )


def plain(segments: tuple[Segment, ...]) -> str:
    """Join the segments of an event's line to plain text."""
    return GAP.join(segment.text for segment in segments)


def _network(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    traffic_text = traffic(event)
    if not traffic_text:
        yield from _other(event)
        return
    yield "sandbox", sandbox_or_host(event)
    yield "who", sender(event)
    yield "what", traffic_text
    yield "outcome", _outcome(event)
    yield "count", _count(event)
    yield "rule", _rule(event)
    detail = _text(event.get("status_detail"))
    # The first sentence is the outcome, which the line already has; the advice follows.
    yield "hint", _sentence(detail.partition(". ")[2] or detail)


def _finding(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    yield "sandbox", sandbox_or_host(event)
    yield "who", sender(event)
    title = _sentence(_at(event, "finding_info", "title")) or _sentence(event.get("message"))
    yield "what", ": ".join(filter(None, (_word(event.get("activity_name")), title)))
    if _at(event, "unmapped", "flows") is None:  # one flow of many is not informative
        yield "what", traffic(_at(event, "evidences", 0))
    yield "count", ", ".join(filter(None, (_count(event), *_totals(event))))
    yield "rule", _rule(event)
    yield "hint", _sentence(_at(event, "remediation", "desc"))


def _other(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    yield "sandbox", sandbox_or_host(event)
    yield "who", sender(event)
    message = _text(event.get("message"))
    yield "what", _sentence(message) or _kind(event)
    detail = _text(event.get("status_detail"))
    yield "hint", "" if detail in message else _sentence(detail)


_Parts: TypeAlias = "Callable[[Mapping[str, Any]], Iterator[tuple[Style, str]]]"
_FORMS: Final[dict[int | None, _Parts]] = {2004: _finding, 4001: _network}


def _severity(event: Mapping[str, Any]) -> tuple[str, Style]:
    known = _SEVERITIES.get(_number(event.get("severity_id")))
    return known or (_word(event.get("severity")).upper() or "-", "informational")


def sandbox_or_host(event: Mapping[str, Any]) -> str:
    """Return an event's sandbox name, else its host name; an empty text if both are unknown."""
    way = _at(event, "connection_info", "direction_id")
    end = "dst_endpoint" if way == Direction.INBOUND else "src_endpoint"
    for found in (
        split_prefix(_text(_at(event, "unmapped", "prefix"))).sandbox,
        _at(event, "unmapped", "sandbox"),
        _at(event, "resources", 0, "name"),
        _at(event, end, "name"),
        _at(event, end, "container", "name"),
        _at(event, "device", "hostname"),
        _at(event, "device", "name"),
    ):
        if word := _word(found):
            return word
    return ""


def sender(event: Mapping[str, Any]) -> str:
    """Return the user and the process behind an event, such as ``uid 1000 curl[4242]``."""
    evidence = _at(event, "evidences", 0)
    actor = event.get("actor") or _at(evidence, "actor")
    # An actor without a process: the evidences have the processes, and none of them sent all.
    process = _at(actor, "process") or (not event.get("actor") and _at(evidence, "process"))
    user, one = _user(_at(actor, "user")), _process(process)
    others, was_each = _others(event, _at(process, "pid"))
    number = 0 if _at(event, "actor", "process") else _in_evidences(event)
    if number > 1:
        one, others = "", number
    if one:
        more = f"and {others} more" if others else ""
        return " ".join(filter(None, (user, one, more)))
    if others < 2:
        return user
    several = actors.count_text(others, was_each=was_each)
    return f"{several} of {user}" if user else several


def _in_evidences(event: Mapping[str, Any]) -> int:
    """Return the number of different processes in the evidences of a finding."""
    found = event.get("evidences")
    processes = (
        _at(each, "process") or _at(each, "actor", "process")
        for each in (found if isinstance(found, list) else ())
    )
    return len({_number(_at(each, "pid")) for each in processes if each} - {None})


def _others(event: Mapping[str, Any], pid: Any) -> tuple[int, bool]:
    """Return the number of possible senders of an event's packets, except the process ``pid``.

    If ``pid`` is None, no process is excepted. The second result is True if each process that the
    event lists certainly sent a packet.
    """
    found = event.get("enrichments")
    for each in found if isinstance(found, list) else ():
        kind = _at(each, "name"), _at(each, "type")
        if kind == (actors.ATTRIBUTION_NAME, actors.ATTRIBUTION_TYPE):
            seen, unnamed = _at(each, "data", "processes"), _at(each, "data", "unnamed")
            named = seen if isinstance(seen, list) else []
            others = sum(pid is None or _at(one, "pid") != pid for one in named)
            was_each = bool(named) and all(_at(one, "calls") is not None for one in named)
            return others + max(_number(unnamed) or 0, 0), was_each
    return 0, True


def _user(user: Any) -> str:
    uid, name = _word(_at(user, "uid")), _word(_at(user, "name"))
    if not uid:
        return name
    return f"uid {uid} ({name})" if name else f"uid {uid}"


def _process(process: Any) -> str:
    pid = _number(_at(process, "pid"))
    name = _word(_at(process, "name"))
    if not name:
        # The attribute path exists from OCSF 1.4 on.
        path = _text(_at(process, "path")) or _text(_at(process, "file", "path"))
        name = _word(path.rpartition("/")[2]) or _word(_at(process, "file", "name"))
    if pid is None:
        return name
    return f"{name}[{pid}]" if name else f"pid {pid}"


def traffic(event: Any) -> str:
    """Return protocol, endpoints and service as text, for example ``TCP 203.0.113.7:443 https``.

    ``event`` is an event, or the evidence in a finding.
    """
    protocol = _number(_at(event, "connection_info", "protocol_num"))
    source, destination = _end(_at(event, "src_endpoint")), _end(_at(event, "dst_endpoint"))
    known = service(protocol, _number(_at(event, "dst_endpoint", "port")))
    if _at(event, "unmapped", "aggregation") is not None:
        flows = _number(_at(event, "unmapped", "aggregation", "flows"))
        ends = "aggregated flows" if flows is None else f"flows ≥{flows}"
    elif _at(event, "connection_info", "direction_id") == Direction.OUTBOUND and destination:
        ends = destination
    elif source:
        ends = f"{source} → {destination}" if destination else f"from {source}"
    else:
        ends = destination
    service_name = "" if known is None else known.name
    return " ".join(filter(None, (_protocol(event, protocol), ends, service_name)))


def _protocol(event: Any, number: int | None) -> str:
    if number is None:
        ethertype = _number(_at(event, "unmapped", "ethertype"))
        if ethertype is None:
            return _word(_at(event, "connection_info", "protocol_name")).upper()
        return "ARP" if ethertype == protocols.ETHERTYPE_ARP else f"frame {ethertype:#06x}"
    return protocols.usual_name(number)


def _end(endpoint: Any) -> str:
    """Return an endpoint as text, such as ``10.0.0.1:443``; an empty text if all is unknown."""
    # Not the endpoint's name: it is the sandbox's name, which the line already has.
    for key in ("ip", "hostname", "domain", "mac", "uid", "interface_name"):
        if host := _word(_at(endpoint, key)):
            break
    else:
        return ""
    port = _number(_at(endpoint, "port"))
    if port is None:
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _outcome(event: Mapping[str, Any]) -> str:
    if _number(event.get("disposition_id")) == Disposition.BLOCKED:
        return "blocked"  # also if the event has no captions
    if event.get("status_code") == Answer.PERMITTED.value:
        return "allowed (permissive)"
    for key in ("disposition", "action", "activity_name", "status"):
        word = _word(event.get(key)).lower()
        if word not in {"", "unknown"}:
            return word
    return ""


def _count(event: Mapping[str, Any]) -> str:
    count, duration = _number(event.get("count")), _number(event.get("duration"))
    if count is None or count <= 1:
        return ""
    duration_text = ""
    if duration is not None:
        duration_text = f" in {duration} ms" if duration < 1000 else f" in {duration / 1000:.1f} s"
    return f"{_TIMES}{count}{duration_text}"


def _totals(event: Mapping[str, Any]) -> Iterator[str]:
    for path, what in (
        (("finding_info", "related_events_count"), "events"),
        (("unmapped", "flows"), "flows"),
        (("unmapped", "destinations"), "destinations"),
        (("unmapped", "ports"), "ports"),
    ):
        if total := _number(_at(event, *path)):
            yield f"{what} {total}"


def _rule(event: Mapping[str, Any]) -> str:
    name = _word(_at(event, "firewall_rule", "name"))
    return name if not name or name.startswith('"') else f"[{name}]"


def _kind(event: Mapping[str, Any]) -> str:
    for key in ("type_name", "class_name"):
        if kind := _sentence(event.get(key)):
            return kind
    number = _number(event.get("class_uid"))
    return "an event of no class" if number is None else f"an event of class {number}"


def _word(value: Any) -> str:
    """Return a name or a number as text; a name with a space, a quote or a bracket is quoted."""
    if (number := _number(value)) is not None:
        return str(number)
    name = _cut(_text(value), _NAME)
    if not name or _PLAIN.fullmatch(name) is not None:
        return name
    return '"' + name.replace('"', r"\x22") + '"'


def _sentence(value: Any) -> str:
    # Two successive spaces would end a segment.
    return " ".join(_cut(_text(value), _SENTENCE).split())


def _cut(text: str, width: int) -> str:
    shown = visible(text[: width + 1])  # cut first: the rest may be long
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
