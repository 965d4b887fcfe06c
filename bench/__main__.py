"""``python -m bench``: all benchmarks, one table per subject.

Run as root; takes about twenty minutes. Exits with 3 if the system can't, and with 1 if a check
fails. These are failures:
- a TCP connect() that is refused in 1 ms or more at the 99th percentile;
- an allowed packet that takes 2.5 µs more to the proxy, or 1.5 µs more from it;
- more or less than one packet of an attempt;
- a flood on one flow that takes the program 3% of a core or more;
- a refused packet that no event reports, or that two events report;
- an event that is missing;
- an event that is on the disk 2 ms or more after its packet, at the median and 300 packets/s (the
  limits for the 99th percentile and for 1,000 packets/s are higher);
- a flow that is not read;
- a fence that is not active again within 50 ms at the 99th percentile;
- a call that takes 2 µs longer because of the capture;
- an attempt that is attributed to another process;
- a run with two processes that take 70 MB or more while calm, or that keeps growing under load;
- a sandbox more in a service that takes 0.05% of a core, 4 descriptors, 0.25 MB or 0.05 s more;
- a program for a container engine that takes more than 80 ms without the work of others;
- a --help or --version that takes 3 times the CPU time of Python's own start, or a conversion of
  one line that takes 6 times that time;
- a conversion of log files that is slower than mawk; that is less than 1.7 times as fast with two
  jobs as with one, or less than 0.9 times as fast for 64 sandboxes as for one; or whose events
  depend on the library or on the number of jobs.
"""

from __future__ import annotations

from typing import Final

from bench import (
    allowed,
    attributing,
    coming_and_going,
    command,
    command_start,
    converting,
    cost,
    counting,
    delivering,
    flooding,
    healing,
    latency,
    many,
    reading,
    refusal,
    resident,
    starting,
    storing,
)

_SUBJECTS: Final = (
    refusal.run, allowed.packets, allowed.rates, cost.run, counting.run, flooding.run,
    healing.run, *attributing.SUBJECTS, latency.run, storing.run, delivering.run, resident.run,
    many.run, coming_and_going.run, starting.run, command_start.run, reading.run,
    converting.run,
)  # fmt: skip


if __name__ == "__main__":
    command.run(_SUBJECTS)
