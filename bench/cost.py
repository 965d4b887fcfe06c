"""Cost of counting a refused packet in its flow, with a log budget per flow."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from bench import stage
from bench.subject import Subject, percentile
from ocsf_nft import lab
from ocsf_nft.fence import nft
from ocsf_nft.fence.spec import TABLE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.stage import Fenced

_SECONDS: Final = 1
#: The fences are measured in turn, so that other load affects all equally.
_ROUNDS: Final = 3
_PORT: Final = 443
_CORE: Final = 1
#: The same rules, but with one counter in place of the sets.
_PLAIN: Final = f"""
flush chain inet {TABLE} account_egress
add rule inet {TABLE} account_egress counter name refused_egress
"""
_WORKS: Final = ("flood", "scatter")


def run() -> Subject:
    """Measure each fence; raise an OcsfNftError if the system does not permit it."""
    with contextlib.ExitStack() as stack:
        fences = {
            "counter and reject": stack.enter_context(stage.fenced("none", ipv6=False)),
            "counted by flow": stack.enter_context(stage.fenced("none", ipv6=False)),
            "counted by flow, logged within budget": stack.enter_context(
                stage.fenced("nflog", ipv6=False)
            ),
        }
        nft.load(fences["counter and reject"].namespace, _PLAIN)
        rates: dict[tuple[str, str], list[float]] = {}
        for _ in range(_ROUNDS):
            for name, fence in fences.items():
                for work in _WORKS:
                    rates.setdefault((name, work), []).append(_rate(fence, work))
    rows = {name: _row(name, rates, next(iter(fences))) for name in fences}
    return Subject(
        title="What counting costs a refused packet (UDP, one process, one core, no reader)",
        columns=("fence", "one flow/s", "µs more", "many flows/s", "µs more"),
        rows=tuple(rows.values()),
        notes=(
            f"Medians of {_ROUNDS} floods of {_SECONDS} s, in turn.",
            "Many flows: one packet per flow; the first 4,096 are within the quota of a user.",
        ),
    )


def _rate(fence: Fenced, work: str) -> float:
    with stage.on_core(_CORE):
        sender = stage.send(fence.namespace, work, lab.INTERNET4, _PORT, _SECONDS)
    (sent,) = stage.sent(sender)
    return sent / _SECONDS


def _row(name: str, rates: dict[tuple[str, str], list[float]], plain: str) -> tuple[str, ...]:
    cells: list[str] = [name]
    for work in _WORKS:
        rate, usual = _median(rates[name, work]), _median(rates[plain, work])
        cells += [f"{rate:,.0f}", "-" if name == plain else f"{1e6 / rate - 1e6 / usual:.2f}"]
    return tuple(cells)


def _median(values: Sequence[float]) -> float:
    return percentile(values, 50)
