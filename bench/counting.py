"""Reading the counters of a fence with as many flows as an attacker can make."""

from __future__ import annotations

import subprocess
import time
from typing import TYPE_CHECKING, Final

from bench import stage
from bench.subject import Subject, milliseconds, percentile
from ocsf_nft.fence import nft
from ocsf_nft.fence.counters import Counters
from ocsf_nft.fence.spec import TABLE
from ocsf_nft.fence.state import StateDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

_FLOWS: Final = 16_250
_RULES: Final = (("inet", "egress"), ("inet", "forward"), ("inet", "ingress"), ("netdev", "link"))
_TIMES: Final = 15
_TIMES_BY_NFT: Final = 3


def run() -> Subject:
    """Measure both; raise an OcsfNftError if the system does not permit it."""
    with stage.fenced("none", ipv6=False) as fenced:
        nft.load(fenced.namespace, _elements())
        installed = StateDirectory(fenced.state).read(stage.SANDBOX)
        if installed is None:
            raise stage.BenchError("the fence is not on record")
        with Counters(installed) as counters:
            reading = counters.read()
            number = sum(
                len(elements)
                for rule in reading.rules.values()
                for elements in (rule.elements or {}).values()
            )
            ours = _median_ns(_TIMES, counters.read)
        usual = _median_ns(
            _TIMES_BY_NFT, lambda: fenced.namespace.call(lambda: _listed(str(nft.find())))
        )
    expected = _FLOWS * len(_RULES)
    return Subject(
        title=f"all counters of a fence, {number:,} flows",
        columns=("by", "ms", "µs per flow"),
        rows=tuple(
            (name, milliseconds(took), f"{took / number / 1e3:.2f}")
            for name, took in (("ocsf-nft", ours), ("nft -j list set", usual))
        ),
        notes=(
            f"Medians of {_TIMES} and of {_TIMES_BY_NFT} times.",
            "nft lists four sets, unread; ocsf-nft reads all sets and counters into Python.",
        ),
        failures=() if number >= expected else (f"{expected - number:,} flows were not read",),
    )


def _elements() -> str:
    """Return the commands for ``nft -f`` that add the flows of each rule."""
    return "".join(
        f"add element {family} {TABLE} flows4_{rule} {{ "
        + ", ".join(
            f"{number % 7} . {17 if number % 2 else 6} . 203.{number % 5}.{number >> 8}."
            f"{number & 255} . {number % 60_000 + 1} counter packets {number} bytes {number * 60}"
            for number in range(_FLOWS)
        )
        + " }\n"
        for family, rule in _RULES
    )


def _listed(binary: str) -> None:
    for family, rule in _RULES:
        subprocess.run(
            [binary, "-j", "list", "set", family, TABLE, f"flows4_{rule}"],
            stdout=subprocess.DEVNULL,
            check=True,
        )


def _median_ns(times: int, work: Callable[[], object]) -> float:
    took = []
    for _ in range(times):
        before = time.perf_counter_ns()
        work()
        took.append(time.perf_counter_ns() - before)
    return percentile(took, 50)
