"""Command ``convert``: convert kernel log text to events."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
import select
import stat
from functools import partial
from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedCommand
from ocsf_nft.errors import DeliveryError, SourceError, UnsupportedError, UsageError
from ocsf_nft.quoted import quoted
from ocsf_nft.time_text import time_us

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from io import BufferedReader
    from pathlib import Path

    from _typeshed import ReadableBuffer

    from ocsf_nft.conversion.converter import Converted
    from ocsf_nft.conversion.log_file import EventOutput, LineConverter
    from ocsf_nft.record import Reject

_CHUNK_BYTES: Final = 1 << 18
#: Pause of a pipe after which its lines are converted, although there may soon be more.
_PAUSE_SECONDS: Final = 0.05


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
    metavar="jsonl|shorthand|syslog|parquet",
    help="Form of an event: JSON, a short line for people, an RFC 5424 message, or Parquet files.",
)
@click.option(
    "--output",
    "directory",
    type=options.PATH,
    metavar="DIR",
    help="Directory of the Parquet files, which must be new or empty.",
)
@click.option(
    "--region",
    default="local",
    metavar="NAME",
    show_default=True,
    help="Region in the paths of the Parquet files.",
)
@options.ocsf_version
@click.option(
    "--detail",
    default="full",
    metavar="full|lean",
    help="Detail of an event: lean has no captions, raw data and repetitions.",
)
@options.mapping_config
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="Number of parallel processes; 1 starts none (default: one for each usable core).",
)
@click.option("--no-redact", is_flag=True, help="Leave secrets, such as tokens, in the texts.")
def convert(  # noqa: PLR0913 - each is an option
    *,
    paths: list[str],
    prefix: str | None,
    unparsed: Path | None,
    boot: str | None,
    form: str,
    directory: Path | None,
    region: str,
    ocsf_version: str,
    detail: str,
    config: Path | None,
    jobs: int | None,
    no_redact: bool,
) -> None:
    """Convert kernel log text to OCSF events, one event a line.

    Reads dmesg, /dev/kmsg, syslog, journalctl (short, -o json, -o export) and the NFLOG lines that
    ocsf-nft writes, also if compressed by gzip, xz or zstd. Timestamps relative to boot belong to
    the current boot unless --boot is given. Lines without a timestamp get the time of the file's
    last change. Needs no privilege.

    Example: dmesg | ocsf-nft convert > events.jsonl
    """
    from ocsf_nft import redaction
    from ocsf_nft.cli.conversion_progress import progress
    from ocsf_nft.conversion import log_file
    from ocsf_nft.conversion.converter import Converter
    from ocsf_nft.conversion.cores import usable_cores
    from ocsf_nft.ocsf.mapper import Mapper
    from ocsf_nft.ocsf.messages import counted
    from ocsf_nft.ocsf.redacted import redacted_reject
    from ocsf_nft.ocsf.versions import full_version
    from ocsf_nft.record import Reject
    from ocsf_nft.sources import replay

    paths = paths or ["-"]
    version = full_version(ocsf_version)
    events = _event_output(form, detail, version, directory, region)
    boot_ns = None if boot is None else time_us("--boot", boot) * 1000
    prefixes, context = options.prefixes_and_context(config)
    if no_redact:
        redaction.configure(redaction.Redactor(is_enabled=False))
    converter = Converter(
        mapper=Mapper(context), prefixes=prefixes, version=version, selected=prefix or ""
    )
    tally = replay.LineTally()
    with contextlib.ExitStack() as stack:
        on_read = stack.enter_context(progress(tally))
        reject = stack.enter_context(_unparsed_file(unparsed, paths))
        for path in paths:
            file = stack.enter_context(options.input_file(path))
            make_reader = partial(
                replay.Reader,
                boot_ns=boot_ns,
                unstamped_ns=replay.modification_ns(file.fileno()),
                tally=tally,
            )
            lines = log_file.line_converter(converter, make_reader)
            chunks = _chunks(file, path, on_read)
            for found in _converted(chunks, lines, events, jobs or usable_cores()):
                if isinstance(found, Reject):
                    reject(redacted_reject(found))
                else:
                    events.write(events.form(found))
        events.finish()
    output.show(
        f"{counted(tally.lines, 'line')}: {counted(tally.records, 'record')}, "
        f"{counted(tally.skipped, 'other')}{output.rejected(tally.rejected)}"
    )


def _converted(
    chunks: Iterator[bytes],
    lines: LineConverter,
    events: EventOutput,
    jobs: int,
) -> Iterator[Converted]:
    from ocsf_nft.conversion import log_file

    if jobs == 1:
        return log_file.convert(chunks, lines)
    from ocsf_nft.conversion import parallel

    return parallel.convert(chunks, lines, events, jobs)


def _chunks(
    file: BufferedReader, path: str, on_read: Callable[[BufferedReader], None]
) -> Iterator[bytes]:
    """Yield the content of a file; an empty chunk if no more data is there for now."""
    from ocsf_nft.conversion.compressed import decompressed

    content = decompressed(file, "standard input" if path == "-" else path)
    can_wait = content is file and not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
    try:
        while chunk := content.read1(_CHUNK_BYTES):
            yield chunk
            on_read(file)
            if can_wait and not select.select((file,), (), (), _PAUSE_SECONDS)[0]:
                yield b""
    except SourceError:  # the lines before the fault are converted
        yield b""
        raise


def _event_output(
    form: str, detail: str, version: str, directory: Path | None, region: str
) -> EventOutput:
    from ocsf_nft.conversion.log_file import EventOutput

    if form != "parquet":
        from ocsf_nft.cli.formats import writer

        if directory is not None:
            raise UsageError("--output is only for --format parquet: redirect standard output")
        write = writer(form)
        return EventOutput(_formatter(None if form == "jsonl" else write, detail), output.write)
    if directory is None:
        raise UsageError("--format parquet writes files: give their directory by --output")
    if detail != "full":
        raise UsageError("--format parquet has all columns of a class: leave --detail out")
    from importlib.util import find_spec

    if find_spec("pyarrow") is None:
        raise UnsupportedError("--format parquet needs pyarrow: install 'ocsf-nft[parquet]'")
    from ocsf_nft.conversion.parquet_output import ParquetOutput

    files = ParquetOutput(directory, version, region)
    return EventOutput(files.form, output.write, files.finish)


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


@contextlib.contextmanager
def _unparsed_file(path: Path | None, inputs: list[str]) -> Iterator[Callable[[Reject], None]]:
    if path is None:
        yield lambda _reject: None
        return
    import orjson

    for name in inputs:
        if options.is_same_file(path, name):
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
