"""One line to read for one OCSF event, for who was woken by it.

When, how bad, where, who, what, what became of it, how often, by which rule, and what to do:

    2026-11-24T23:47:46.123Z  MEDIUM  agent  uid 1000 curl[4242]  TCP 203.0.113.7:443 https
    refused  [egress]  Use the proxy: set HTTPS_PROXY=http://10.200.0.1:3128 and try again.

Any version of OCSF will do, any class, and any event that was read as JSON, however wrong: what is
not there, or is not what it should be, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from ocsf_nft.ocsf import attribution_enrichment, protocols
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.packet_outcome import Answer
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.ocsf.services import service
from ocsf_nft.record import split_prefix
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: What a segment says; that of the severity is how bad it is.
Style: TypeAlias = Literal[
    "time", "informational", "low", "medium", "high", "critical", "place", "who", "what",
    "outcome", "count", "rule", "hint",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the line: printable, without a line end, and not empty."""

    style: Style
    text: str


#: What stands between two segments: no name has two spaces in it outside quotes.
GAP: Final = "  "

#: Characters of a name, and of a sentence, that are shown.
_NAME: Final = 64
_SENTENCE: Final = 320
_TIME: Final = len("2026-11-24T23:47:46.123Z")
_LABEL: Final = len("MEDIUM")
_INT64: Final = 1 << 63
_TIMES: Final = "\N{MULTIPLICATION SIGN}"
#: A name that can't be taken for anything else on the line; others are quoted.
_PLAIN: Final = re.compile(r'[^\s"()\[\]]+')

_SEVERITIES: Final[dict[int | None, tuple[str, Style]]] = {
    1: ("INFO", "informational"),
    2: ("LOW", "low"),
    3: ("MEDIUM", "medium"),
    4: ("HIGH", "high"),
    5: ("CRIT", "critical"),
    6: ("FATAL", "critical"),
}
_CALLED: Final[dict[int | None, str]] = {
    protocols.ICMPV6: "ICMPv6",
    4: "IP in IP",
    41: "IPv6 in IP",
}
_ARP: Final = 0x0806
#: ``disposition_id`` Blocked: it is a fence that we tell of, and it refuses.
_REFUSED: Final = 2


def shorthand(event: Mapping[str, Any]) -> tuple[Segment, ...]:
    """The line of one event; never raises for what JSON can hold."""
    label, style = _severity(event)
    parts = _FORMS.get(_number(event.get("class_uid")), _other)(event)
    return (
        Segment("time", (utc_text(event.get("time")) or "-").ljust(_TIME)),
        Segment(style, label.ljust(_LABEL)),
        *(Segment(style, text) for style, text in parts if text),
    )


def plain(segments: tuple[Segment, ...]) -> str:
    """The line without its styles."""
    return GAP.join(segment.text for segment in segments)


def _network(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    traffic = _traffic(event)
    if not traffic:
        yield from _other(event)
        return
    yield "place", place_of(event)
    yield "who", _who(event)
    yield "what", traffic
    yield "outcome", _outcome(event)
    yield "count", _count(event)
    yield "rule", _rule(event)
    detail = _text(event.get("status_detail"))
    # First what befell it, which the line says already, then what to do.
    yield "hint", _sentence(detail.partition(". ")[2] or detail)


def _finding(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    yield "place", place_of(event)
    yield "who", _who(event)
    title = _sentence(_at(event, "finding_info", "title")) or _sentence(event.get("message"))
    yield "what", ": ".join(filter(None, (_word(event.get("activity_name")), title)))
    if _at(event, "unmapped", "flows") is None:  # of many, one says little
        yield "what", _traffic(_at(event, "evidences", 0))
    yield "count", ", ".join(filter(None, (_count(event), *_totals(event))))
    yield "rule", _rule(event)
    yield "hint", _sentence(_at(event, "remediation", "desc"))


def _other(event: Mapping[str, Any]) -> Iterator[tuple[Style, str]]:
    yield "place", place_of(event)
    yield "who", _who(event)
    message = _text(event.get("message"))
    yield "what", _sentence(message) or _kind(event)
    detail = _text(event.get("status_detail"))
    yield "hint", "" if detail in message else _sentence(detail)


_Parts: TypeAlias = "Callable[[Mapping[str, Any]], Iterator[tuple[Style, str]]]"
_FORMS: Final[dict[int | None, _Parts]] = {2004: _finding, 4001: _network}


def _severity(event: Mapping[str, Any]) -> tuple[str, Style]:
    known = _SEVERITIES.get(_number(event.get("severity_id")))
    return known or (_word(event.get("severity")).upper() or "-", "informational")


def place_of(event: Mapping[str, Any]) -> str:
    """The sandbox that an event is of, or at least the machine."""
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


def _who(event: Mapping[str, Any]) -> str:
    evidence = _at(event, "evidences", 0)
    actor = event.get("actor") or _at(evidence, "actor")
    process = _at(actor, "process") or _at(evidence, "process")
    user, one = _user(_at(actor, "user")), _process(process)
    others, was_each = _others(event, _at(process, "pid"))
    if one:
        more = f"and {others} more" if others else ""
        return " ".join(filter(None, (user, one, more)))
    if others < 2:
        return user
    several = attribution_enrichment.in_words(others, was_each=was_each)
    return f"{several} of {user}" if user else several


def _others(event: Mapping[str, Any], pid: Any) -> tuple[int, bool]:
    """How many processes it was beside that one, and whether each was seen to try."""
    found = event.get("enrichments")
    for each in found if isinstance(found, list) else ():
        if (
            _at(each, "name") == attribution_enrichment.NAME
            and _at(each, "type") == attribution_enrichment.TYPE
        ):
            seen, unnamed = _at(each, "data", "processes"), _at(each, "data", "unnamed")
            named = seen if isinstance(seen, list) else []
            others = sum(pid is None or _at(one, "pid") != pid for one in named)
            was_each = all(_at(one, "calls") is not None for one in named)
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
        # The path has this place from OCSF 1.4 on.
        path = _text(_at(process, "path")) or _text(_at(process, "file", "path"))
        name = _word(path.rpartition("/")[2]) or _word(_at(process, "file", "name"))
    if pid is None:
        return name
    return f"{name}[{pid}]" if name else f"pid {pid}"


def _traffic(event: Any) -> str:
    """What was sent where, by an event or its evidence."""
    protocol = _number(_at(event, "connection_info", "protocol_num"))
    source, destination = _end(_at(event, "src_endpoint")), _end(_at(event, "dst_endpoint"))
    known = service(protocol, _number(_at(event, "dst_endpoint", "port")))
    if _at(event, "unmapped", "merged") is not None:
        flows = _number(_at(event, "unmapped", "merged", "flows"))
        ends = "flows told together" if flows is None else f"flows ≥{flows}"
    elif _at(event, "connection_info", "direction_id") == Direction.OUTBOUND and destination:
        ends = destination
    elif source:
        ends = f"{source} → {destination}" if destination else f"from {source}"
    else:
        ends = destination
    called = "" if known is None else known.name
    return " ".join(filter(None, (_protocol(event, protocol), ends, called)))


def _protocol(event: Any, number: int | None) -> str:
    if number is None:
        ethertype = _number(_at(event, "unmapped", "ethertype"))
        if ethertype is None:
            return _word(_at(event, "connection_info", "protocol_name")).upper()
        return "ARP" if ethertype == _ARP else f"frame {ethertype:#06x}"
    known = protocols.NAMES.get(number)
    return _CALLED.get(number) or (f"IP protocol {number}" if known is None else known.upper())


def _end(endpoint: Any) -> str:
    """One end of a connection, by what tells it best from others; its name is its place."""
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
    if _number(event.get("disposition_id")) == _REFUSED:
        return "refused"
    if event.get("status_code") == Answer.PERMITTED.value:
        return "let pass (permissive)"
    for key in ("disposition", "action", "activity_name", "status"):
        word = _word(event.get(key)).lower()
        if word not in {"", "unknown"}:
            return word
    return ""


def _count(event: Mapping[str, Any]) -> str:
    count, duration = _number(event.get("count")), _number(event.get("duration"))
    if count is None or count <= 1:
        return ""
    took = ""
    if duration is not None:
        took = f" in {duration} ms" if duration < 1000 else f" in {duration / 1000:.1f} s"
    return f"{_TIMES}{count}{took}"


def _totals(event: Mapping[str, Any]) -> Iterator[str]:
    for place, what in (
        (("finding_info", "related_events_count"), "events"),
        (("unmapped", "flows"), "flows"),
        (("unmapped", "destinations"), "destinations"),
        (("unmapped", "ports"), "ports"),
    ):
        if total := _number(_at(event, *place)):
            yield f"{what} {total}"


def _rule(event: Mapping[str, Any]) -> str:
    name = _word(_at(event, "firewall_rule", "name"))
    return name if not name or name.startswith('"') else f"[{name}]"


def _kind(event: Mapping[str, Any]) -> str:
    """What an event without a message is, by the names that the schema gives it."""
    for key in ("type_name", "class_name"):
        if kind := _sentence(event.get(key)):
            return kind
    number = _number(event.get("class_uid"))
    return "an event of no class" if number is None else f"an event of class {number}"


def _at(value: Any, *path: str | int) -> Any:
    """What is at the end of a path of keys and places; None where the path leads nowhere."""
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, Mapping) else None
        else:
            value = value[step] if isinstance(value, list) and len(value) > step else None
    return value


def _number(value: Any) -> int | None:
    """A whole number of 64 bits, as OCSF's are."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return value if is_number and -_INT64 <= value < _INT64 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _word(value: Any) -> str:
    """A name, or a number in its place, such that nothing in it is taken for the line's own."""
    if (number := _number(value)) is not None:
        return str(number)
    name = _cut(_text(value), _NAME)
    if not name or _PLAIN.fullmatch(name) is not None:
        return name
    return '"' + name.replace('"', r"\x22") + '"'


def _sentence(value: Any) -> str:
    # Of two spaces the second would be taken for the end of a part of the line.
    return " ".join(_cut(_text(value), _SENTENCE).split())


def _cut(text: str, width: int) -> str:
    """``text`` as it may be shown, in at most ``width`` characters."""
    shown = visible(text[: width + 1])  # cut first: what is cut off may be long
    return shown if len(shown) <= width else f"{shown[: width - 1]}…"
