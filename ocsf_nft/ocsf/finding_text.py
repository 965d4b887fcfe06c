"""Sentences of Detection Findings about refused packets: titles, descriptions and advice.

The reader is a person with an alert. A process can choose some of the names, so invisible
characters are escaped and long texts are cut.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from ocsf_nft.ocsf import messages, packet_outcome
from ocsf_nft.ocsf.actors import count_others, name_of
from ocsf_nft.ocsf.enums import Direction
from ocsf_nft.ocsf.remediation import advice, general_advice
from ocsf_nft.ocsf.safe_text import visible
from ocsf_nft.record import VM_RULES
from ocsf_nft.utc_text import utc_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ocsf_nft.attempt import FanOut, Incident
    from ocsf_nft.ocsf.addresses import AddressKind
    from ocsf_nft.ocsf.context import Context, Proxy
    from ocsf_nft.process import Attribution, Process
    from ocsf_nft.record import Record

#: Maximum length of a command line, a path and a label in a description.
_MAX_CHARACTERS: Final = 400
#: Beginning of a step's number in an advice. The name of a process may contain it.
_STEP: Final = re.compile(r" (?=[0-9]+\. )")
#: Maximum number of processes that a description names.
_MAX_NAMED: Final = 8

#: Beginning of the title of an incident, and of its description.
_INCIDENTS: Final = {
    Direction.OUTBOUND: (
        "Proxy bypass",
        "A program in the sandbox sent packets to a destination without the sandbox's proxy.",
    ),
    Direction.INBOUND: (
        "Connection to the sandbox",
        "Packets that are not replies of its proxy were sent to the sandbox.",
    ),
    Direction.UNKNOWN: (
        "Forwarding through the sandbox",
        "Packets were sent to the sandbox so that it forwards them.",
    ),
}
_METADATA: Final = (
    "Access to the cloud metadata service",
    "A program in the sandbox tried to reach the service that issues the machine's credentials.",
)
#: The same for attempts by or at a VM, by rule.
_OF_VM: Final = {
    packet_outcome.VM_FORWARD: (
        "VM traffic",
        "A program in the VM sent packets that the host does not forward for a VM.",
    ),
    packet_outcome.VM_INPUT: (
        "VM connection to its host",
        "A program in the VM tried to reach the host on a port that is not the gateway's.",
    ),
    packet_outcome.VM_LINK: (
        "Spoofed or unusual frames of a VM",
        "The VM sent frames with a foreign source address, or frames that are not IP or ARP.",
    ),
    packet_outcome.VM_INGRESS: (
        "Connection to a VM",
        "Packets that are not replies on its own connections were sent to the VM.",
    ),
}
#: Descriptions of a scan.
_SCANS: Final = {
    Direction.OUTBOUND: (
        "Many destinations or ports were tried within a short time, without the sandbox's proxy."
    ),
    Direction.INBOUND: "Many ports or addresses of the sandbox were tried within a short time.",
    Direction.UNKNOWN: (
        "Many destinations or ports were tried through the sandbox within a short time."
    ),
}
_BLOCKED: Final = "The fence blocked all of it: no packet left the sandbox."
_NOT_DELIVERED: Final = "The fence blocked all of it."
_ALLOWED: Final = "The fence is permissive and allowed all of it, which it would block otherwise."
_KEEP: Final = "Keep the evidence: ocsf-nft events --sandbox {sandbox} --lines 0 --format jsonl"
_FIND_SENDER: Final = "Find out which program sends this, and why."
_ROTATE: Final = (
    "The packets were allowed: treat the machine's credentials as disclosed and replace them."
)
_NOT_DISCLOSED: Final = "The packets were blocked: no credentials were disclosed this way."
_ENFORCE: Final = (
    "The packets left the sandbox: check what was sent. Allow what is intended, then take "
    "permissive out of the policy."
)


def incident_words(record: Record, direction: Direction, *, is_metadata: bool) -> tuple[str, str]:
    """Return the beginnings of the title and of the description of an incident.

    ``record`` is its latest log record. ``is_metadata`` is true for packets to the cloud's metadata
    service.
    """
    return _METADATA if is_metadata else _OF_VM.get(record.rule) or _INCIDENTS[direction]


def incident_title(what: str, record: Record, incident: Incident, direction: Direction) -> str:
    """Return the title of an incident, such as "Proxy bypass blocked: curl[42] in sandbox a to …".

    ``what`` is its beginning, and ``record`` the latest log record.
    """
    outcome = "allowed" if record.verdict == "permit" else "blocked"
    sandbox = record.sandbox or ""
    if direction is not Direction.OUTBOUND:
        return f"{what} {outcome}: {messages.sender_text(sandbox, None, rule=record.rule)}"
    who = messages.sender_text(sandbox, record.uid, incident.attribution, rule=record.rule)
    return f"{what} {outcome}: {who}{messages.destination_text(record)}"


def incident_description(  # noqa: PLR0913 - facts about the incident, named at the call
    meaning: str,
    record: Record,
    incident: Incident,
    *,
    direction: Direction,
    context: Context,
    message: str,
    end_ms: int,
) -> str:
    """Return all that is known of an incident, as sentences.

    ``meaning`` is the beginning. ``message`` is the event's sentence about the packets. ``end_ms``
    is the time of the last packet (ms since the epoch, UTC).
    """
    packets = messages.counted(incident.packets, "packet")
    reports = messages.counted(incident.windows, "report")
    return joined(
        meaning,
        f"{message}.",
        *_sender_sentences(incident.attribution),
        f"{packets} in {reports}, from {utc_text(incident.start_ns // 1_000_000)} to "
        f"{utc_text(end_ms)}.",
        _outcome_sentence(direction, is_allowed=record.verdict == "permit"),
        labels_sentence(context),
    )


def incident_advice(  # noqa: PLR0913 - facts about the incident, named at the call
    record: Record,
    incident: Incident,
    *,
    direction: Direction,
    destination: AddressKind | None,
    proxy: Proxy | None,
    more: str = "",
) -> str:
    """Return what the sandbox's operator should check and do about an incident.

    ``more`` is a further step for this kind of incident.
    """
    sandbox = visible(record.sandbox or "")
    if direction is not Direction.OUTBOUND:
        return joined(_FIND_SENDER, general_advice(record.rule, direction, None))
    is_metadata = packet_outcome.is_metadata_access(record, direction, destination)
    is_allowed = record.verdict == "permit"
    consequence = ""
    if is_metadata:
        consequence = _ROTATE if is_allowed else _NOT_DISCLOSED
    elif is_allowed:
        consequence = _ENFORCE
    instead = advice(record, direction, proxy, destination)
    process = None if incident.attribution is None else incident.attribution.process
    return steps(
        consequence,
        _check_sentence(sandbox, record.uid, record.rule, process),
        f"If it is intended: {instead}",
        _stop_sentence(sandbox, process),
        more,
        _KEEP.format(sandbox=sandbox),
    )


def scan_title(found: FanOut, direction: Direction) -> str:
    """Return the title of a scan, such as "Scan blocked: 25 processes of uid 1000 in sandbox a"."""
    outcome = "allowed" if found.verdict == "permit" else "blocked"
    sandbox = messages.sender_text(found.sandbox, None, rule=found.rule)
    if direction is not Direction.OUTBOUND:
        return f"Scan {outcome}: {sandbox}"
    return f"Scan {outcome}: {scan_sender(found)}"


def scan_sender(found: FanOut) -> str:
    """Return the senders of a scan as text, such as "nmap[33] (uid 1000) in sandbox agent"."""
    user = "" if found.uid is None else f"uid {found.uid}"
    number = len(found.senders) + found.unnamed
    sandbox = messages.sender_text(found.sandbox, None, rule=found.rule)
    sole = found.sole_sender
    if sole is None and number <= 1:
        return messages.sender_text(found.sandbox, found.uid, rule=found.rule)
    if sole is not None:
        one = _name(sole)
        return f"{one} ({user}) in {sandbox}" if user else f"{one} in {sandbox}"
    least = "at least " if found.unnamed or found.unknown else ""
    several = f"{least}{number} processes"
    return f"{several} of {user} in {sandbox}" if user else f"{several} in {sandbox}"


def scan_description(found: FanOut, context: Context, direction: Direction, message: str) -> str:
    """Return all that is known of a scan, as sentences; ``message`` is the event's sentence."""
    processes = [each.process for each in found.senders]
    senders = list(process_sentences(found.sole_sender))
    if len(processes) == 1 and not found.unnamed:
        one = found.senders[0]
        senders.append(
            f"{_name(one.process)} made {one.attempts} of {found.windows} reported attempts."
        )
    elif processes:
        senders.append(f"Processes seen to send: {_names(processes, found.unnamed)}.")
        parents = sorted({_name(each.ancestors[0]) for each in processes if each.ancestors})
        if parents:
            senders.append(f"Started by: {', '.join(parents[:_MAX_NAMED])}.")
    return joined(
        _SCANS[direction],
        "This is typical of a scan.",
        f"{message}.",
        *senders,
        f"First packet at {utc_text(found.start_ns // 1_000_000)}, last new flow at "
        f"{utc_text(found.end_ns // 1_000_000)}.",
        _outcome_sentence(direction, is_allowed=found.verdict == "permit"),
        "The numbers of flows, destinations, ports and processes are lower bounds.",
        labels_sentence(context),
    )


def scan_advice(found: FanOut, context: Context, direction: Direction) -> str:
    """Return what the sandbox's operator should check and do about a scan."""
    if direction is Direction.INBOUND:
        return joined(_FIND_SENDER, general_advice(found.rule, direction, None))
    sandbox = visible(found.sandbox)
    if found.rule in VM_RULES:
        instead = general_advice(found.rule, direction, None)
    else:
        proxies = context.proxies
        proxy = f"the proxy at {proxies[0].url}" if proxies else "the sandbox's proxy"
        instead = f"Intended traffic must use {proxy}."
    senders, sole = [each.process for each in found.senders], found.sole_sender
    check = _check_sentence(sandbox, found.uid, found.rule, sole)
    if senders and sole is None:
        check = f"Check if {_names(senders, found.unnamed)} should do this, and what started them."
    return steps(
        _ENFORCE if found.verdict == "permit" else "",
        check,
        instead,
        _stop_sentence(sandbox, found.sole_sender),
        "Search for the same program in other sandboxes.",
        _KEEP.format(sandbox=sandbox),
    )


def joined(*sentences: str) -> str:
    """Return the sentences that are not empty as one text."""
    return " ".join(filter(None, sentences))


def steps(*sentences: str) -> str:
    """Return the sentences that are not empty as one text with numbers.

    A number such as ``2.`` in a sentence would look like a step: the space before it is escaped.
    """
    found = enumerate((_STEP.sub(r"\\x20", each) for each in sentences if each), 1)
    return " ".join(f"{number}. {sentence}" for number, sentence in found)


def changed_by(processes: Sequence[Process], unknown: int) -> str:
    """Return who changed a fence, for a title: "nft[42] (uid 0), "; empty if unknown.

    ``unknown`` is the number of changes by unknown processes.
    """
    if not processes:
        return ""
    if unknown:
        return f"{_several(processes)} and an unknown process, "
    one = processes[0]
    if len(processes) > 1 or one.uid is None:
        return f"{_several(processes)}, "
    return f"{_name(one)} (uid {one.uid}), "


def changed_by_sentences(processes: Sequence[Process], unknown: int) -> Iterator[str]:
    """Yield sentences about the processes that changed a fence; see :func:`changed_by`."""
    if len(processes) == 1:
        yield from process_sentences(processes[0])
    elif processes:
        yield f"Processes: {_names(processes, 0)}."
    if processes and unknown:
        yield f"{messages.counted(unknown, 'change')} by an unknown process."


def _several(processes: Sequence[Process]) -> str:
    return _name(processes[0]) if len(processes) == 1 else f"{len(processes)} processes"


def _outcome_sentence(direction: Direction, *, is_allowed: bool) -> str:
    if is_allowed:
        return _ALLOWED
    return _BLOCKED if direction is Direction.OUTBOUND else _NOT_DELIVERED


def _check_sentence(sandbox: str, uid: int | None, rule: str, process: Process | None) -> str:
    if process is None:
        where = messages.sender_text(sandbox, uid, rule=rule)
        return f"Find out what {where} runs, and if it should do this."
    path = "" if process.path is None else f" ({_cut(process.path)})"
    return f"Check if {_name(process)}{path} should do this."


def _stop_sentence(sandbox: str, process: Process | None) -> str:
    if process is None:
        return f"If not: stop sandbox {sandbox}."
    return f"If not: stop process {process.pid}, or sandbox {sandbox}."


def labels_sentence(context: Context) -> str:
    """Return a sentence with the labels of the sandbox; empty if it has none."""
    if not context.labels:
        return ""
    return f"Labels of the sandbox: {_cut(', '.join(context.labels))}."


def _sender_sentences(by: Attribution | None) -> Iterator[str]:
    if by is None:
        return
    if by.process is not None and not count_others(by):
        yield from process_sentences(by.process)
        if by.confidence != "high":
            yield f"Confidence {by.confidence}: {visible(by.reason)}."
    elif by.seen:
        processes = [each.process for each in by.seen]
        yield f"Possible senders: {_names(processes, by.unnamed)}."
    else:
        yield f"The process is not known: {visible(by.reason)}."


def process_sentences(process: Process | None) -> Iterator[str]:
    """Yield sentences with all known facts about a process."""
    if process is None:
        return
    facts = [f"process {process.pid}"]
    if process.path is not None:
        deleted = ", deleted since" if process.is_deleted else ""
        facts.append(f"program {_cut(process.path)}{deleted}")
    if process.uid is not None:
        name = "" if process.user_name is None else f" ({_cut(process.user_name)})"
        facts.append(f"user {process.uid}{name}")
    if process.working_directory is not None:
        facts.append(f"in {_cut(process.working_directory)}")
    if process.created_ns is not None:
        facts.append(f"started at {utc_text(process.created_ns // 1_000_000)}")
    yield f"The process is {_name(process)}: {', '.join(facts)}."
    if process.cmd_line is not None:
        yield f"Its command line is `{_cut(process.cmd_line)}`."
    if process.ancestors:
        chain = " ← ".join(map(_name, process.ancestors[:_MAX_NAMED]))
        yield f"Started by: {chain}."
    inside = process.container
    if inside is not None and (inside.name or inside.uid):
        image = "" if inside.image_name is None else f" of image {_cut(inside.image_name)}"
        yield f"It runs in container {_cut(inside.name or inside.uid or '')}{image}."


def _names(processes: Iterable[Process], unnamed: int) -> str:
    names = [_name(each) for each in processes]
    more = len(names) - _MAX_NAMED + unnamed if len(names) > _MAX_NAMED else unnamed
    listed = ", ".join(names[:_MAX_NAMED])
    return f"{listed} and {more} more" if more > 0 else listed


def _name(process: Process) -> str:
    return f"{messages.short_name(process) or name_of(process) or 'process '}[{process.pid}]"


def _cut(text: str) -> str:
    shown = visible(text)
    return shown if len(shown) <= _MAX_CHARACTERS else f"{shown[: _MAX_CHARACTERS - 1]}…"
