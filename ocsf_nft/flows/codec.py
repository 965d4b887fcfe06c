"""Conversion of a sandbox's account to the parts that the state database stores, and back."""

from __future__ import annotations

import json
import struct
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import orjson

from ocsf_nft.attempt import FanOut, IncidentEnd
from ocsf_nft.flow import KINDS, Count, Key, flow
from ocsf_nft.flows.flow_counter import FlowCounter
from ocsf_nft.flows.incidents import OpenIncident
from ocsf_nft.flows.overflow import FlowAggregate
from ocsf_nft.record import DnsQuestion
from ocsf_nft.state.change import PartKey
from ocsf_nft.state.sealed import seal, unseal

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import TypeAdapter

    from ocsf_nft.flows.rule_account import RuleAccount
    from ocsf_nft.flows.sandbox_account import SandboxAccount
    from ocsf_nft.state.change import AccountChange

#: Errors of stored parts that are no valid account.
DAMAGE: Final = (KeyError, TypeError, ValueError, RecursionError, struct.error)
#: Age of the stored time of the last reading from which it is stored again, though nothing else has
#: changed: hundreds of idle sandboxes must not store a part after each reading.
READ_TIME_SECONDS: Final = 60
#: Counters processed before other tasks get a turn.
_SLICE: Final = 1000
#: The same for open incidents, which are larger.
_FEW: Final = 100
#: Kinds of parts beside those of flows, which are :data:`ocsf_nft.flow.KINDS`.
_TOTALS: Final = "totals"
_OPEN: Final = "open"
#: Attributes of a rule's account that are stored unchanged.
_PLAIN: Final = ("serial", "reported", "without_flow", "received", "late_records_until_ns")
#: The same, but absent (0) if an older version stored the state.
_LATER: Final = ("dropped_records", "forged_records")
#: Values of a flow's counter, see :meth:`FlowCounter.stored`.
_COUNTER: Final = struct.Struct("<6q")
_QUESTIONS: Final = tuple[DnsQuestion, ...]


def collect(
    account: SandboxAccount, change: AccountChange, *, is_final: bool = False
) -> Iterator[None]:
    """Add all changes of ``account`` since the last call to ``change``, in steps.

    The time of the last reading is added if something else has changed, if the stored time is older
    by :data:`READ_TIME_SECONDS`, or if ``is_final`` is true. The iterator yields between its steps,
    so that the caller can let other tasks run. Until the iterator ends, other tasks must not use
    ``account``.
    """
    for name, rule in account.rules.items():
        if rule.stored is None:
            change.renewed_rules.append(name)
        for number, key in enumerate(rule.counters.touched):
            if number and number % _SLICE == 0:
                yield
            counter = rule.counters.entry(key)
            value = None if counter is None else _COUNTER.pack(*counter.stored())
            _add(change, PartKey(name, *key), value)
            rule.counters.rest(key)
        rule.counters.clear_touched()
        for number, (identity, each) in enumerate(rule.opened.items()):
            if number and number % _FEW == 0:
                yield
            key_of = PartKey(name, _OPEN, identity.encode(errors="surrogatepass"))
            _add(change, key_of, None if each is None else _json_of(each))
        rule.opened.clear()
        state = _state(rule)
        if is_final or _is_news(state, rule.stored):
            rule.stored = state
            _add(change, PartKey(name, _TOTALS, b""), json.dumps(state).encode())


def restore(
    account: SandboxAccount, stored: Mapping[PartKey, bytes], *, with_open: bool = True
) -> None:
    """Restore the packet counts and the open incidents of the empty ``account``.

    Without ``with_open``, the incidents are left out. Raises one of the errors in :data:`DAMAGE` if
    a part is damaged; then ``account`` is empty.
    """
    try:
        found = {
            key: unseal(sealed, *_keys(account.sandbox, key))
            for key, sealed in stored.items()
            if with_open or key.kind != _OPEN
        }
        for (name, kind, _), value in found.items():
            if kind == _TOTALS:
                account.rules[name] = _restored(account, name, json.loads(value))
        for (name, kind, data), value in found.items():
            rule = account.rules[name]
            if kind == _OPEN:
                rule.resume(data.decode(errors="surrogatepass"), _opened(json.loads(value)))
            elif kind in KINDS:
                key = Key(cast("Any", kind), data)
                flow(key)
                rule.counters.restore(key, _counter(_COUNTER.unpack(value)))
    except DAMAGE:
        account.rules.clear()
        raise


def _add(change: AccountChange, key: PartKey, value: bytes | None) -> None:
    sealed = None if value is None else seal(value, *_keys(change.sandbox, key))
    change.parts[key] = sealed


def _keys(sandbox: str, key: PartKey) -> tuple[bytes, bytes]:
    return f"{sandbox} {key.rule} {key.kind} ".encode(), key.data


def _state(rule: RuleAccount) -> dict[str, Any]:
    counters = rule.counters
    return {
        "epoch": rule.counter_id.epoch,
        **{name: getattr(rule, name) for name in (*_PLAIN, *_LATER)},
        "refused": counters.refused,
        "in_sets": counters.in_sets,
        "read_ns": counters.read_ns,
        "inherited": sorted((kind, data.hex()) for kind, data in counters.inherited),
        "overflow": counters.overflow.stored(),
        "evicted": counters.evicted.stored(),
        "by_user": [
            (uid, aggregate.flows, aggregate.counter.stored())
            for uid, aggregate in rule.by_user.items()
            if aggregate.counter.unreported_packets
        ],
    }


def _is_news(state: Mapping[str, Any], stored: Mapping[str, Any] | None) -> bool:
    """Return True if ``state`` must replace the stored state of a rule."""
    if stored is None:
        return True
    age_ns = state["read_ns"] - stored["read_ns"]
    return not 0 <= age_ns < READ_TIME_SECONDS * 1_000_000_000 or any(
        state[name] != stored[name] for name in state if name != "read_ns"
    )


def _restored(account: SandboxAccount, name: str, state: Mapping[str, Any]) -> RuleAccount:
    rule = account.new_rule_account(name, state["epoch"], begun_ns=state["read_ns"])
    for name_of in _PLAIN:
        setattr(rule, name_of, state[name_of])
    for name_of in _LATER:
        setattr(rule, name_of, state.get(name_of, 0))
    rule.counters.refused = Count(*state["refused"])
    rule.counters.in_sets = Count(*state["in_sets"])
    rule.counters.overflow = _counter(state["overflow"])
    rule.counters.evicted = _counter(state["evicted"])
    for kind, data in state.get("inherited", ()):  # absent if an older version stored the state
        rule.counters.inherited.add(Key(kind, bytes.fromhex(data)))
    for uid, flows, columns in state["by_user"]:
        rule.by_user[uid] = FlowAggregate(_counter(columns), flows)
    rule.stored = _state(rule)
    return rule


def _counter(columns: Sequence[int]) -> FlowCounter:
    since_ns, last_ns, seen_packets, seen_bytes, unreported_packets, unreported_bytes = columns
    return FlowCounter(
        since_ns, last_ns, seen_packets, seen_bytes, unreported_packets, unreported_bytes
    )


def _json_of(opened: OpenIncident | FanOut) -> bytes:
    if isinstance(opened, FanOut):
        state: dict[str, Any] = {"scan": opened}
    else:
        state = {"key": (opened.key.kind, opened.key.data.hex()), "end": opened.end}
        if opened.questions:
            state["questions"] = opened.questions
    try:
        return orjson.dumps(state)
    except orjson.JSONEncodeError:
        # orjson supports neither halves of surrogate pairs nor integers of more than 64 bits.
        return json.dumps(state, default=_fields).encode()


def _fields(found: Any) -> dict[str, Any]:
    return {name: getattr(found, name) for name in found.__slots__}


def _opened(state: Mapping[str, Any]) -> OpenIncident | FanOut:
    if "scan" in state:
        scan: FanOut = _adapter(FanOut).validate_python(state["scan"])
        return scan
    kind, data = state["key"]
    end: IncidentEnd = _adapter(IncidentEnd).validate_python(state["end"])
    # Absent without questions, and if an older version stored the state.
    questions = _adapter(_QUESTIONS).validate_python(state.get("questions", ()))
    return OpenIncident(Key(kind, bytes.fromhex(data)), end, questions)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # noqa: PLC0415 - only a restored incident needs it

    return TypeAdapter(kind)
