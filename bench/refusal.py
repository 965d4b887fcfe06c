"""Time from connect() to its refusal: our fence, and the usual ruleset."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bench import stage, usual
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft import lab
from ocsf_nft.fence import nft

if TYPE_CHECKING:
    from ocsf_nft.lab import Lab

TRIES: Final = 2_000
_USUAL_TRIES: Final = 3
_BOUND_NS: Final = 1_000_000
_PORT: Final = 443
_TARGETS: Final = {"v4": lab.INTERNET4, "v6": lab.INTERNET6}
_COUNTING: Final = "attempted"
#: Counts the packets of the attempts before any other rule, but not the kernel's own packets.
_COUNTER: Final = f"""
table inet {_COUNTING} {{
    counter {_COUNTING} {{ }}
    chain output {{
        type filter hook output priority -500;
        tcp dport {_PORT} tcp flags syn counter name {_COUNTING}
    }}
}}
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Measured:
    """Durations ``took_ns`` of the refused attempts of ``tries``; ``packets`` of all of them."""

    ruleset: str
    family: str
    tries: int
    took_ns: list[int]
    packets: int

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
            f"{self.packets / self.tries:.2f}",
        )

    def failures(self) -> tuple[str, ...]:
        where = f"TCP {self.family}"
        failed = []
        if len(self.took_ns) != self.tries:
            failed.append(f"{where}: {self.tries - len(self.took_ns)} attempts were not refused")
        if self.took_ns and percentile(self.took_ns, 99) >= _BOUND_NS:
            failed.append(f"{where}: the 99th percentile is not below 1 ms")
        if self.packets != self.tries:
            failed.append(f"{where}: {self.packets} packets of {self.tries} attempts")
        return tuple(failed)


def run() -> Subject:
    """Measure both; raise an OcsfNftError if the system does not permit it."""
    with stage.fenced("nflog") as fenced:
        ours = _measure("ocsf-nft", fenced.lab, senders=1, tries=TRIES)
    with lab.throwaway() as made:
        nft.load(made.sandbox_namespace, usual.ruleset(usual.AT_MOST_5))
        theirs = _measure("usual", made, senders=_USUAL_TRIES, tries=1)
    return Subject(
        title=f"connect() to refusal, blocking, in ms ({_nft_version()})",
        columns=("ruleset", "protocol", "refused", "p50", "p99", "max", "packets per attempt"),
        rows=tuple(measured.row() for measured in (*ours, *theirs)),
        notes=(
            "usual: reject with icmpx port-unreachable, limit 5/second on its log.",
            f"Only {_USUAL_TRIES} tries of it, at once: each takes a second or more.",
            "A plain drop is not measured: connect() then hangs for two minutes.",
        ),
        failures=tuple(failure for measured in ours for failure in measured.failures()),
    )


def _measure(ruleset: str, made: Lab, *, senders: int, tries: int) -> list[_Measured]:
    namespace = made.sandbox_namespace
    measured = []
    for family, target in _TARGETS.items():
        nft.load(namespace, f"table inet {_COUNTING}\ndelete table inet {_COUNTING}\n{_COUNTER}")
        started = [stage.send(namespace, "connect", target, _PORT, tries) for _ in range(senders)]
        took_ns = [took for sender in started for took in stage.sent(sender)]
        measured.append(
            _Measured(
                ruleset=ruleset,
                family=family,
                tries=senders * tries,
                took_ns=took_ns,
                packets=stage.counted(namespace, _COUNTING),
            )
        )
    return measured


def _nft_version() -> str:
    shown = subprocess.run([nft.find(), "--version"], capture_output=True, text=True, check=True)
    return shown.stdout.split(" (")[0].strip()
