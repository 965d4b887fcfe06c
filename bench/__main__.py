"""``python -m bench``: all of it, one table per subject.

Run as root; takes seven or eight minutes. Exit 1 when a check fails: a TCP connect() refused in 1
ms or more at the 99th percentile, more or less than one packet of an attempt, a flood on one flow
that takes the program 3% of a core or more, a refused packet that no event tells of or that two do,
an event that is missing, or on the disk 2 ms or more after its packet at 300 packets/s (at the 99th
percentile, and at 1,000/s, some more), a flow that is not read, a fence that doesn't stand again
within 50 ms at the 99th percentile, a call that takes 2 µs longer because processes are looked for,
an attempt that is said to be somebody else's, a run that takes 60 MB or more while calm, or more
and more under load. Exit 3 when the system can't.
"""

from __future__ import annotations

from typing import Final

from bench import (
    attributing,
    command,
    cost,
    counting,
    delivering,
    flooding,
    healing,
    latency,
    reading,
    refusal,
    resident,
    storing,
)

_SUBJECTS: Final = (
    refusal.run, cost.run, counting.run, flooding.run, healing.run, *attributing.SUBJECTS,
    latency.run, storing.run, delivering.run, resident.run, reading.run,
)  # fmt: skip


if __name__ == "__main__":
    command.run(_SUBJECTS)
