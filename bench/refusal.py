"""From connect() to its refusal: our fence, and the ruleset that is usual."""

from __future__ import annotations

import asyncio
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import stage
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft import lab
from ocsf_nft.fence import nft
from ocsf_nft.sources.nflog import Nflog

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace
    from ocsf_nft.record import Record

TRIES: Final = 2_000
_USUAL_TRIES: Final = 3
_BOUND_NS: Final = 1_000_000
_PORT: Final = 443
_QUIET_S: Final = 0.3
_TARGETS: Final = {"v4": lab.INTERNET4, "v6": lab.INTERNET6}

#: What a sandbox runtime usually loads. It logs to NFLOG here, so that its records can be counted.
_USUAL: Final = f"""
table inet usual {{
    chain output {{
        type filter hook output priority filter; policy accept;
        ct state established,related accept
        oifname "lo" accept
        ip daddr {lab.GATEWAY4} tcp dport {lab.PROXY_PORT} accept
        limit rate 5/second burst 10 packets log prefix "usual:" group {stage.GROUP}
        meta l4proto {{ tcp, udp }} reject with icmpx port-unreachable
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """``took_ns``: how long each refused attempt took, of ``tries``."""

    ruleset: str
    family: str
    tries: int
    took_ns: list[int]
    records: int

    def row(self) -> tuple[str, ...]:
        if not self.took_ns:
            return self.ruleset, f"TCP {self.family}", f"0 of {self.tries:,}", "-", "-", "-", "-"
        return (
            self.ruleset,
            f"TCP {self.family}",
            f"{len(self.took_ns):,} of {self.tries:,}",
            milliseconds(percentile(self.took_ns, 50)),
            milliseconds(percentile(self.took_ns, 99)),
            milliseconds(max(self.took_ns)),
            f"{self.records / self.tries:.2f}",
        )

    def failures(self) -> tuple[str, ...]:
        where = f"TCP {self.family}"
        failed = []
        if len(self.took_ns) != self.tries:
            failed.append(f"{where}: {self.tries - len(self.took_ns)} attempts were not refused")
        if self.took_ns and percentile(self.took_ns, 99) >= _BOUND_NS:
            failed.append(f"{where}: the 99th percentile is not below 1 ms")
        if self.records != self.tries:
            failed.append(f"{where}: {self.records} records of {self.tries} attempts")
        return tuple(failed)


def run() -> Subject:
    """Measure both; raises an OcsfNftError when the system doesn't let us."""
    ours = asyncio.run(_ours())
    usual = asyncio.run(_usual())
    return Subject(
        title=f"connect() to refusal, blocking, in ms ({_nft_version()})",
        columns=("ruleset", "protocol", "refused", "p50", "p99", "max", "records per attempt"),
        rows=tuple(measured.row() for measured in (*ours, *usual)),
        notes=(
            "usual: reject with icmpx port-unreachable, limit 5/second on its log.",
            f"Only {_USUAL_TRIES} tries of it, at once: each takes a second or more.",
            "A plain drop is not measured: connect() then hangs for two minutes.",
        ),
        failures=tuple(failure for measured in ours for failure in measured.failures()),
    )


async def _ours() -> list[_Measured]:
    with stage.fenced("nflog") as fenced:
        return await _measure("ocsf-nft", fenced.namespace, senders=1, tries=TRIES)


async def _usual() -> list[_Measured]:
    with lab.throwaway() as made:
        nft.load(made.sandbox_namespace, _USUAL)
        return await _measure("usual", made.sandbox_namespace, senders=_USUAL_TRIES, tries=1)


async def _measure(
    ruleset: str, namespace: Namespace, *, senders: int, tries: int
) -> list[_Measured]:
    measured = []
    records: list[Record] = []
    async with Nflog(namespace, stage.GROUP) as source:
        collecting = asyncio.create_task(_collect(source, records))
        for family, target in _TARGETS.items():
            attempts = await asyncio.gather(
                *(asyncio.to_thread(_connect, namespace, target, tries) for _ in range(senders))
            )
            await _quiet(records)
            measured.append(
                _Measured(
                    ruleset=ruleset,
                    family=family,
                    tries=senders * tries,
                    took_ns=[took for times in attempts for took in times],
                    records=sum(_is_attempt(record, target) for record in records),
                )
            )
        collecting.cancel()
        with suppress(asyncio.CancelledError):
            await collecting
    return measured


def _connect(namespace: Namespace, target: str, tries: int) -> list[int]:
    return stage.sent(stage.send(namespace, "connect", target, _PORT, tries))


async def _collect(source: Nflog, records: list[Record]) -> None:
    async for batch in source.batches():
        records += batch.records


async def _quiet(records: list[Record]) -> None:
    """Wait until no more records come."""
    before = -1
    while before != len(records):
        before = len(records)
        await asyncio.sleep(_QUIET_S)


def _is_attempt(record: Record, target: str) -> bool:
    # The kernel's own multicast reports are refused and logged too.
    return (record.destination, record.destination_port) == (target, _PORT)


def _nft_version() -> str:
    shown = subprocess.run([nft.find(), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.split(" (")[0].strip()
