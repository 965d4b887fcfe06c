"""Benchmarks as a command: their tables, and the exit status."""

from __future__ import annotations

import logging
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import structlog

from bench.subject import machine, show
from ocsf_nft.errors import OcsfNftError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bench.subject import Subject


def run(subjects: Iterable[Callable[[], Subject]]) -> NoReturn:
    """Measure and show each subject; exit with 1 if a check fails, or with an error's status."""
    exit_with(lambda: _measure(subjects))


def exit_with(work: Callable[[], int]) -> NoReturn:
    """Exit with the result of ``work``; print an error as a sentence, and exit with its status."""
    try:
        sys.exit(work())
    except OcsfNftError as error:
        print(f"bench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def _quiet() -> None:
    """Show only warnings of the measured package, not each program that it runs."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))


def _measure(subjects: Iterable[Callable[[], Subject]]) -> int:
    begun = time.monotonic()
    _quiet()
    print(machine())
    failed = False
    for subject in subjects:
        measured = subject()
        show(measured)
        failed = failed or bool(measured.failures)
    verdict = "a check failed" if failed else "no check failed"
    print(f"\n{time.monotonic() - begun:.0f} s; {verdict}")
    return int(failed)
