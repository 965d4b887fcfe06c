"""Targets: configuration, event files and stored state, which a disk may have damaged."""

from __future__ import annotations

import io
import json
from functools import cache
from pathlib import Path
from typing import Final

from ocsf_nft import config
from ocsf_nft.errors import FenceError, OcsfNftError
from ocsf_nft.fence import ip_forwarding
from ocsf_nft.fence.spec import FenceSpec, Surroundings
from ocsf_nft.fence.state import InstalledFence, StateDirectory
from ocsf_nft.fence.values import endpoint, exception
from ocsf_nft.flows import codec
from ocsf_nft.flows.sandbox_account import SandboxAccount
from ocsf_nft.netns import Namespace
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.enums import Severity
from ocsf_nft.ocsf.finding_parts import TAMPERING
from ocsf_nft.ocsf.protection_findings import ProtectionSeries, RelatedFact
from ocsf_nft.process import Process
from ocsf_nft.service import finding_codec
from ocsf_nft.service.protection_findings import ProtectionFindings
from ocsf_nft.state.change import PartKey
from ocsf_nft.state.sealed import seal, unseal
from ocsf_nft.validation.event_files import validate_events
from ocsf_nft.validation.validate_event import EventValidator
from tests.fuzz import memory_folder, parts
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require

_EVENTS: Final = Path(__file__).parents[2] / "golden" / "events"
_NOW_NS: Final = 1_764_000_000_000_000_000
_RULE: Final = "egress"
_CONFIG: Final = b"""listen = "127.0.0.1:9464"
control = "/run/ocsf-nft/control.sock"
control_mode = "0660"
[store]
[[sandbox]]
name = "agent"
netns = "agent"
proxy = ["10.0.0.1:3128", "[fd00::1]:3128"]
allow = ["tcp:10.0.0.0/8:443"]
install = true
[[sink]]
type = "file"
path = "/var/log/ocsf.jsonl"
ocsf_version = "1.8"
[[severity]]
severity = "high"
[[prefix]]
begins = "fw:"
verdict = "drop"
[finding]
threshold = 3
[identity]
tenant_uid = "a"
"""
_TOTALS: Final = {
    "epoch": "1:2:3",
    "serial": 2,
    "reported": 5,
    "without_flow": 0,
    "received": 4,
    "dropped_records": -1,
    "forged_records": 1,
    "late_records_until_ns": 0,
    "refused": [9, 900],
    "in_sets": [9, 900],
    "read_ns": _NOW_NS,
    "inherited": [["flows4", "00" * 16]],
    "overflow": [0, 0, 0, 0, 0, 0],
    "evicted": [0, 0, 0, 0, 0, 0],
    "by_user": [[1000, 2, [1, 2, 3, 4, 5, 6]]],
}
_OPEN: Final[tuple[object, ...]] = (
    {"scan": {}},
    {"key": ["flows4", "00" * 16], "end": {}, "questions": [{"name": "a", "type": 1}]},
)


@cache
def _folder() -> Path:
    folder = memory_folder.folder() / "state"
    (folder / "agent").mkdir(parents=True)
    return folder


@cache
def _validator() -> EventValidator:
    return EventValidator()


def _config(data: bytes) -> None:
    path = _folder() / "config.toml"
    path.write_bytes(data)
    config.load(path)


def _events(data: bytes) -> None:
    for each in validate_events(io.BytesIO(data), _validator()):
        for fault in each.faults:
            require(str(fault).isprintable(), "a fault is not printable")


def _account(data: bytes) -> None:
    # The first byte selects the kind of the part that is damaged. Its checksum is right.
    kind, value = {b"o": "open", b"f": "flows4"}.get(data[:1], "totals"), data[1:]
    totals = json.dumps(_TOTALS).encode()
    stored = {PartKey(_RULE, "totals", b""): totals}
    stored[PartKey(_RULE, kind, b"" if kind == "totals" else bytes(16))] = value
    sealed = {key: seal(value, *codec._keys("agent", key)) for key, value in stored.items()}
    account = SandboxAccount("agent", begun_ns=_NOW_NS)
    try:
        codec.restore(account, sealed)
    except codec.DAMAGE:
        require(not account.rules, "an account that can't be restored is not empty")


def _finding(data: bytes) -> None:
    # Its checksum is right.
    uid = _series().uid
    findings = ProtectionFindings(lambda _: Context(), lambda *_: None)
    if not findings.resume({uid: seal(data, uid.encode())}, now_ns=_NOW_NS):
        (ended,) = findings.end_quiet(1 << 80)
        json.loads(ended)


def _series() -> ProtectionSeries:
    return ProtectionSeries(
        kind=TAMPERING,
        sandbox="agent",
        identity="1",
        count=2,
        start_ms=1_764_000_000_000,
        end_ms=1_764_000_000_500,
        latest=(RelatedFact("1", 501_901, "Device Config State Change: Log"),),
        severity=Severity.HIGH,
        processes=(Process(pid=7, name="nft", ancestors=(Process(pid=1),)),),
        lasts=True,
    )


def _finding_seeds() -> tuple[bytes, ...]:
    series = _series()
    return (unseal(finding_codec.to_bytes(series), series.uid.encode()),)


def _fence(data: bytes) -> None:
    (_folder() / "agent" / "fence.json").write_bytes(data)
    StateDirectory(_folder()).read("agent")


def _sysctls(data: bytes) -> None:
    state = StateDirectory(_folder())
    (_folder() / "forwarding-4.before").write_bytes(data)
    ip_forwarding._stored(state, "4", "boot 7")


def _fence_seeds() -> tuple[bytes, ...]:
    spec = FenceSpec(
        sandbox="agent",
        proxies=(endpoint("10.0.0.1:3128"),),
        exceptions=(exception("tcp:10.0.0.0/8:443"),),
    )
    installed = InstalledFence(
        spec=spec,
        around=Surroundings(links=("eth0",), uplinks=("eth0",)),
        namespace=Namespace(Path("/run/netns/agent")),
        identity="4:4026531840",
        transport="nflog",
        policy="0",
        listings={"inet ocsf_nft": "table inet ocsf_nft {\n}\n"},
    )
    state = StateDirectory(_folder())
    state.write(installed)
    return ((_folder() / "agent" / "fence.json").read_bytes(),)


def _event_seeds() -> list[bytes]:
    found = [path.read_bytes() for path in sorted(_EVENTS.glob("*.json"))[:10]]
    return [*found, *(json.dumps(json.loads(each)).encode() + b"\n" for each in found[:4])]


def _account_seeds() -> list[bytes]:
    return [
        b"t" + json.dumps(_TOTALS).encode(),
        b"f" + bytes(48),
        *(b"o" + json.dumps(each).encode() for each in _OPEN),
    ]


TARGETS: Final = (
    Target(
        name="config",
        parse=_config,
        seeds=lambda: (_CONFIG,),
        parts=parts.lines,
        documented=(OcsfNftError,),
        hostile=(*HOSTILE_TEXT, *HOSTILE_JSON),
        limit=16_384,
        share=1,
    ),
    Target(
        name="event-file",
        parse=_events,
        seeds=_event_seeds,
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=1,
    ),
    Target(
        name="stored-account",
        parse=_account,
        seeds=_account_seeds,
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=3,
    ),
    Target(
        name="stored-finding",
        parse=_finding,
        seeds=_finding_seeds,
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=1,
    ),
    Target(
        name="stored-fence",
        parse=_fence,
        seeds=_fence_seeds,
        parts=parts.json_values,
        documented=(FenceError,),
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=1,
    ),
    Target(
        name="stored-sysctls",
        parse=_sysctls,
        seeds=lambda: (b'["boot 7", {"ipv4/conf/all/forwarding": "0"}]',),
        parts=parts.json_values,
        documented=(FenceError,),
        hostile=HOSTILE_JSON,
        limit=16_384,
        share=1,
    ),
)
