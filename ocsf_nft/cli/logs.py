"""Our own log: structured, on standard error."""

from __future__ import annotations

import sys

import structlog


def to_stderr() -> None:
    """Write log entries to standard error, one line each, values quoted: they may be hostile."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.KeyValueRenderer(
                key_order=["timestamp", "level", "event"], repr_native_str=True
            ),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
