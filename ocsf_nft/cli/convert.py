"""Command ``convert``: convert kernel log text to events."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import stat
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand
from ocsf_nft.errors import DeliveryError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.time_text import time_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import BufferedReader

    from _typeshed import ReadableBuffer

    from ocsf_nft.record import Reject

_CHUNK_BYTES = 1 << 18


@click.command("convert", cls=DocumentedCommand)
@options.input_paths("Files of kernel log text")
@click.option("--prefix", metavar="P", help="Only records whose log prefix begins with P.")
@click.option(
    "--rejects",
    "unparsed",
    type=options.PATH,
    metavar="PATH",
    help="Write the lines that could not be parsed, with the reasons, to this file.",
)
@click.option(
    "--boot",
    metavar="TIME",
    help="Boot time of the machine that wrote the log (ISO 8601, local time by default).",
)
@click.option(
    "--format",
    "form",
    default="jsonl",
    metavar="jsonl|shorthand|syslog",
    help="Form of an event: JSON, a short line for people, or an RFC 5424 message.",
)
@options.ocsf_version
@click.option(
    "--detail",
    default="full",
    metavar="full|lean",
    help="Detail of an event: lean has no captions, raw data and repetitions.",
)
@options.mapping_config
@click.option("--no-redact", is_flag=True, help="Leave secrets, such as tokens, in the texts.")
def convert(  # noqa: PLR0913 - each is an option
    *,
    paths: list[str],
    prefix: str | None,
    unparsed: Path | None,
    boot: str | None,
    form: str,
    ocsf_version: str,
    detail: str,
    config: Path | None,
    no_redact: bool,
) -> None:
    """Convert kernel log text to OCSF events, one event a line.

    Reads dmesg, /dev/kmsg, syslog, journalctl (short, -o json, -o export) and the NFLOG lines that
    ocsf-nft writes. Timestamps relative to boot belong to the current boot unless --boot is given.
    Lines without a timestamp get the time of the file's last change. Needs no privilege.

    Example: dmesg | ocsf-nft convert > events.jsonl
    """
    from ocsf_nft import redaction
    from ocsf_nft.cli.formats import writer
    from ocsf_nft.conversion import log_file
    from ocsf_nft.conversion.converter import Converter
    from ocsf_nft.ocsf.mapper import Mapper
    from ocsf_nft.ocsf.redacted import redacted_reject
    from ocsf_nft.ocsf.versions import full_version
    from ocsf_nft.record import Reject
    from ocsf_nft.sources import replay

    paths = paths or ["-"]
    write = writer(form)
    formatted = _formatter(None if form == "jsonl" else write, detail)
    version = full_version(ocsf_version)
    boot_ns = None if boot is None else time_us("--boot", boot) * 1000
    prefixes, context = options.prefixes_and_context(config)
    if no_redact:
        redaction.configure(redaction.Redactor(is_enabled=False))
    converter = Converter(
        mapper=Mapper(context), prefixes=prefixes, version=version, selected=prefix or ""
    )
    tally = replay.LineTally()
    with contextlib.ExitStack() as stack:
        reject = stack.enter_context(_unparsed_file(unparsed, paths))
        for path in paths:
            file = stack.enter_context(options.input_file(path))
            make_reader = partial(
                replay.Reader,
                boot_ns=boot_ns,
                unstamped_ns=replay.modification_ns(file.fileno()),
                tally=tally,
            )
            for found in log_file.convert(_chunks(file), converter, make_reader):
                if isinstance(found, Reject):
                    reject(redacted_reject(found))
                else:
                    output.write(formatted(found))
    output.show(
        f"{tally.lines} lines: {tally.records} records, {tally.skipped} others"
        f"{output.rejected(tally.rejected)}"
    )


def _chunks(file: BufferedReader) -> Iterator[bytes]:
    while chunk := file.read1(_CHUNK_BYTES):
        yield chunk


def _formatter(
    write: Callable[[Iterable[bytes]], Iterator[bytes]] | None, detail: str
) -> Callable[[ReadableBuffer], ReadableBuffer]:
    """Return the function that formats events, which are lines of JSON.

    ``write`` is None for JSON. Raises UsageError if there is no such detail.
    """
    from ocsf_nft.ocsf.lean import lean_line

    if detail not in {"full", "lean"}:
        raise UsageError(f"{quoted(detail)} is no detail of events: give full or lean")
    if write is None and detail == "full":
        return lambda events: events

    def formatted(events: ReadableBuffer) -> bytes:
        lines: Iterable[bytes] = bytes(events).splitlines()
        if detail == "lean":
            lines = map(lean_line, lines)
        return (
            b"".join(b"%b\n" % line for line in lines) if write is None else b"".join(write(lines))
        )

    return formatted


def _is_same_file(path: Path, name: str) -> bool:
    try:
        mine = path.stat()
        other = os.fstat(sys.stdin.fileno()) if name == "-" else Path(name).stat()
    except OSError:  # one file is missing: opening it reports that
        return False
    return stat.S_ISREG(mine.st_mode) and os.path.samestat(mine, other)


@contextlib.contextmanager
def _unparsed_file(path: Path | None, inputs: list[str]) -> Iterator[Callable[[Reject], None]]:
    if path is None:
        yield lambda _reject: None
        return
    import orjson

    for name in inputs:
        if _is_same_file(path, name):
            raise UsageError(f"--rejects {path} would empty an input of that name: give another")
    try:
        file = path.open("wb", buffering=0)
    except OSError as error:
        raise DeliveryError(f"{path} can't be written: {error.strerror}") from error

    def write(reject: Reject) -> None:
        found = {"kind": reject.kind, "reason": reject.reason, "line": reject.line}
        try:
            file.write(orjson.dumps(found) + b"\n")
        except OSError as error:
            raise DeliveryError(f"{path} can't be written: {error.strerror}") from error

    with file:
        yield write
