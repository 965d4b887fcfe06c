"""Detection Findings (OCSF class 2004) about the protection of a sandbox.

The protection has a fault if another process changes or removes the fence, or if refused packets
can't be read or counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.ocsf import attack, finding_objects, finding_parts, finding_text
from ocsf_nft.ocsf.actors import actor_of_process, observables_of, unmapped_of
from ocsf_nft.ocsf.context import cloud_of, device_of, own_metadata
from ocsf_nft.ocsf.enums import Action, Confidence, Severity
from ocsf_nft.ocsf.events import DetectionFinding
from ocsf_nft.ocsf.identifiers import stable_uid
from ocsf_nft.ocsf.messages import counted
from ocsf_nft.ocsf.resources import resources_of
from ocsf_nft.ocsf.safe_text import visible

if TYPE_CHECKING:
    from ocsf_nft.ocsf.context import Context
    from ocsf_nft.ocsf.event_base import Event
    from ocsf_nft.ocsf.finding_parts import FindingKind, StageName
    from ocsf_nft.process import Process


#: Maximum number of processes that a finding names.
PROCESSES: Final = 8


class _Words(NamedTuple):
    """Texts of one kind of finding."""

    #: Beginning of the title, before the process and the sandbox.
    title: str
    #: Noun for one event.
    noun: str
    meaning: str
    #: Steps for the operator.
    steps: tuple[str, ...]


_VERIFY: Final = "Check the fence: ocsf-nft verify --sandbox {sandbox}"
_STOP: Final = "Stop the process that changes it. If it runs inside the sandbox, stop the sandbox."
_WORDS: Final = {
    finding_parts.TAMPERING: _Words(
        "Fence changed",
        "change",
        "The fence was changed, or can't be read. Only a process with CAP_NET_ADMIN over the "
        "sandbox's network namespace can change it.",
        (_STOP, "Take CAP_NET_ADMIN from the sandbox.", _VERIFY),
    ),
    finding_parts.FENCE_REMOVED: _Words(
        "Fence removed",
        "removal",
        "The fence was removed, and not by an operator. Packets may leave the sandbox until it is "
        "active again.",
        ("Stop the sandbox's workload.", _STOP, "Install the fence again.", _VERIFY),
    ),
    finding_parts.RESTORE_STOPPED: _Words(
        "Fence not restored",
        "pause",
        "Another process changed the fence again and again, so restoring it paused. Packets may "
        "leave the sandbox until it is active again.",
        ("Stop the sandbox's workload.", _STOP, _VERIFY),
    ),
    finding_parts.FENCE_BYPASSED: _Words(
        "Fence bypassed",
        "report",
        "The sandbox has sent frames that did not pass its fence, for example through an AF_XDP "
        "socket or a rule that redirects packets. What they contain is not known, unless a guard "
        "on the host has refused them.",
        (
            "Stop the sandbox's workload.",
            "Check what the guard refused: ocsf-nft events --sandbox {sandbox} --lines 0",
            "Take CAP_NET_ADMIN and CAP_NET_RAW from the sandbox.",
            _VERIFY,
        ),
    ),
    finding_parts.COLLECTION: _Words(
        "Refused packets not read",
        "gap",
        "Refused packets were not read or counted for a time. An active fence blocks them all the "
        "same, but their events may lack processes, or be missing.",
        (
            "Check if the service was stopped, and by whom.",
            "Check the load of the machine.",
            "Check the counts: ocsf-nft status --sandbox {sandbox}",
        ),
    ),
    finding_parts.LOG_GROUP_TAKEN: _Words(
        "Log group taken",
        "replacement",
        "Another program held the NFLOG group of the fence, and may have read its records. The "
        "fence logs to another group now. It blocked and counted packets all the time.",
        (
            "Stop the program. If it runs inside the sandbox, stop the sandbox.",
            "Take CAP_NET_ADMIN from the sandbox.",
            "Check why the service did not run: only then is the group free.",
            "Check the counts: ocsf-nft status --sandbox {sandbox}",
        ),
    ),
    finding_parts.RECORDS_NOT_COUNTED: _Words(
        "Forged log records",
        "report",
        "There are more log records than the fence has logged. A program with CAP_NET_ADMIN over "
        "the network namespace makes them, for example by a log rule with the fence's prefix. "
        "Events may be about packets that the fence did not block, and about wrong processes.",
        (
            "List all log rules: nft list ruleset in the network namespace of {sandbox}.",
            "Stop the program. If it runs inside the sandbox, stop the sandbox.",
            "Take CAP_NET_ADMIN from the sandbox.",
            "Do not rely on a single event of {sandbox} that has a Low confidence.",
        ),
    ),
    finding_parts.COUNTER_MISMATCH: _Words(
        "Counts do not match",
        "report",
        "The kernel's counters and the events differ. Another process may have changed the "
        "counters, or ocsf-nft has a bug.",
        (
            "Check the counts: ocsf-nft status --sandbox {sandbox}",
            (
                "Check for changes of the fence: ocsf-nft events --sandbox {sandbox} --class "
                "device_config_state_change"
            ),
            "Report a bug if no other process changed the counters.",
        ),
    ),
    finding_parts.SURROUNDINGS_CHANGED: _Words(
        "Surroundings of the fence changed",
        "change",
        "Settings of the sandbox's network namespace changed so that packets may pass its fence. "
        "Only a process with CAP_NET_ADMIN over the namespace can change them.",
        (
            "Check which changes are left: ocsf-nft verify --sandbox {sandbox}",
            _STOP,
            "Take CAP_NET_ADMIN from the sandbox.",
            "If an operator made the change, remove and install the fence to accept it.",
        ),
    ),
}
#: The kinds of these findings, by their codes.
KINDS: Final = {str(kind.code): kind for kind in _WORDS}
_KEEP: Final = "Keep the evidence: ocsf-nft events --sandbox {sandbox} --lines 0 --format jsonl"


class RelatedFact(NamedTuple):
    """Event that a finding refers to: its uid, and its type."""

    uid: str
    type_uid: int
    type_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ProtectionSeries:
    """Successive events about one fault of a sandbox's protection, which one finding reports."""

    kind: FindingKind
    #: None if it is about all sandboxes that share the host's log.
    sandbox: str | None
    #: ``metadata.uid`` of the first event.
    identity: str
    count: int
    start_ms: int
    end_ms: int
    #: The latest events, oldest first.
    latest: tuple[RelatedFact, ...]
    severity: Severity
    #: Processes that changed the fence, the latest last.
    processes: tuple[Process, ...] = ()
    #: Number of changes by unknown processes.
    unknown: int = 0
    #: Whether another process has changed something.
    is_tampering: bool = False
    #: Whether the fault lasts until an event reports its end.
    lasts: bool = False

    @property
    def words(self) -> _Words:
        """Return the texts of the finding."""
        return _WORDS[self.kind]

    @property
    def sole_process(self) -> Process | None:
        """Return the process that made all changes; None if there are several, or unknown ones."""
        return self.processes[0] if len(self.processes) == 1 and not self.unknown else None

    @property
    def uid(self) -> str:
        """Return the uid of the finding, and of the correlation of its events."""
        return stable_uid("protection", self.kind.code, self.sandbox, self.identity)


def protection_finding(  # noqa: PLR0913 - facts about the stage, named at the call
    context: Context,
    series: ProtectionSeries,
    *,
    stage: StageName,
    message: str,
    detail: str | None,
    processed_ns: int,
    end_reason: str | None = None,
) -> DetectionFinding:
    """Return the Detection Finding about a fault of a sandbox's protection.

    ``message`` and ``detail`` are those of the latest event. ``processed_ns`` is the current time
    (ns since the epoch, UTC). ``end_reason`` is the reason of the end.
    """
    kind, settings, words = series.kind, context.findings, series.words
    total = counted(series.count, words.noun)
    reached = finding_parts.stage_of(
        stage, settings, end_ms=series.end_ms, total=total, end_reason=end_reason
    )
    sandbox = None if series.sandbox is None else visible(series.sandbox)
    sole = series.sole_process
    actors = [actor_of_process(each) for each in series.processes]
    actor = None if sole is None else actors[0]
    # A fence does not end by itself: a process has removed it.
    is_tampering = series.is_tampering or kind is finding_parts.FENCE_REMOVED
    attacks = attack.TAMPERING if is_tampering else None
    device, observables = device_of(context)
    steps = (each.format(sandbox=sandbox or "NAME") for each in (*words.steps, _KEEP))
    return DetectionFinding(
        activity_id=reached.activity,
        time=series.end_ms,
        start_time=series.start_ms,
        end_time=series.end_ms,
        count=series.count,
        severity_id=series.severity,
        status_id=reached.status,
        status_detail=reached.detail,
        message=message,
        action_id=Action.OBSERVED,
        is_alert=series.severity >= settings.alert_severity,
        confidence_id=Confidence.HIGH,
        finding_info=finding_objects.FindingInfo(
            uid=series.uid,
            title=(
                f"{words.title}: {finding_text.changed_by(series.processes, series.unknown)}"
                f"{subject_text(series.sandbox)}"
            ),
            desc=finding_text.joined(
                words.meaning,
                message,
                "" if detail is None or visible(detail) in message else f"{visible(detail)}.",
                *finding_text.changed_by_sentences(series.processes, series.unknown),
                finding_text.labels_sentence(context),
            ),
            types=(kind.type,),
            analytic=kind.analytic,
            attacks=attacks,
            first_seen_time=series.start_ms,
            last_seen_time=series.end_ms,
            related_events=finding_parts.related(series.latest),
            src_url=finding_parts.runbook_link(kind, settings),
        ),
        remediation=finding_parts.remediation(kind, settings, finding_text.steps(*steps)),
        attacks=attacks,
        evidences=tuple(
            finding_objects.Evidences(actor=each, process=each.process) for each in actors
        )
        or None,
        resources=None if series.sandbox is None else resources_of(context, series.sandbox),
        actor=actor,
        device=device,
        cloud=cloud_of(context),
        observables=(*observables_of(actor), *observables) or None,
        unmapped=unmapped_of(sole) | ({} if sandbox is None else {"sandbox": sandbox}) or None,
        metadata=own_metadata(
            stable_uid("protection", series.uid, stage, series.count),
            processed_ns,
            series.uid,
            code=kind.code,
            context=context,
            sandbox=series.sandbox,
        ),
    )


def subject_text(sandbox: str | None) -> str:
    """Return the subject of a finding, such as "sandbox agent"."""
    return "several sandboxes" if sandbox is None else f"sandbox {visible(sandbox)}"


def related_fact(event: Event) -> RelatedFact:
    """Return a reference to an event."""
    values = event.__dict__
    return RelatedFact(values["metadata"].uid, values["type_uid"], values["type_name"])
