"""``python -m bench``: all of it, one table per subject.

Run as root; takes five minutes. Exit 1 when a check fails: a TCP connect() refused in 1 ms
or more at the 99th percentile, more or less than one packet of an attempt, a flood on one flow that
takes the program 3% of a core or more, a refused packet that no event tells of or that two do, an
event that is missing, a flow that is not read, a fence that doesn't stand again within 50 ms at the
99th percentile. Exit 3 when the system can't.
"""

from __future__ import annotations

import sys
import time

from bench import cost, counting, flooding, healing, latency, reading, refusal
from bench.subject import machine, show
from ocsf_nft.errors import OcsfNftError


def main() -> int:
    """Run every benchmark."""
    begun = time.monotonic()
    print(machine())
    failed = False
    for subject in (refusal, cost, counting, flooding, healing, latency, reading):
        measured = subject.run()
        show(measured)
        failed = failed or bool(measured.failures)
    verdict = "a check failed" if failed else "no check failed"
    print(f"\n{time.monotonic() - begun:.0f} s; {verdict}")
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except OcsfNftError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
