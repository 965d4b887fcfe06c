"""Command ``config``: check a configuration file."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from ocsf_nft.cli import options, output
from ocsf_nft.cli.documented_command import DocumentedArgument, DocumentedCommand

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.config import Config
    from ocsf_nft.service.outlet import Outlet


@click.command("config", cls=DocumentedCommand)
@click.argument(
    "path",
    cls=DocumentedArgument,
    required=False,
    type=options.PATH,
    metavar="[FILE]",
    text="The file.",
)
@click.option(
    "--connect", is_flag=True, help="Also open each sink as a run would, and close it again."
)
@click.option(
    "--schema",
    is_flag=True,
    help="In place of FILE: write the JSON Schema of a file to standard output, for editors.",
)
def config(*, path: Path | None, connect: bool, schema: bool) -> None:
    """Check a configuration file, and show what a run would do.

    Checks each key, and that the libraries of its sinks are installed. With --connect, each sink is
    also opened: the command reads its secrets and certificates, and connects to its receiver. No
    event is sent.

    Exit 0: the file is correct. 2: the file has an error, which is shown. 3: the library of a sink
    is missing, or a sink can't be opened.

    Needs no privilege except to read the files that the configuration names.

    Example: ocsf-nft config /etc/ocsf-nft/ocsf-nft.toml --connect
    """
    from ocsf_nft.config import load
    from ocsf_nft.errors import UsageError
    from ocsf_nft.service.outlet import outlets

    if schema == (path is not None) or (schema and connect):
        raise UsageError("give a FILE to check, with --connect or without, or only --schema")
    if path is None:
        _write_schema()
        return
    found = load(path)
    sinks = outlets(found.sinks)
    _show(found)
    if connect and not asyncio.run(_connect(sinks)):
        raise SystemExit(3)


def _write_schema() -> None:
    import orjson

    from ocsf_nft.config.schema import json_schema

    output.write(orjson.dumps(json_schema(), option=orjson.OPT_INDENT_2) + b"\n")


def _show(found: Config) -> None:
    for sandbox in found.sandbox:
        mode = "to be fenced and watched" if sandbox.install else "to be watched"
        output.show(f"sandbox {sandbox.name}: {mode}, profile {sandbox.profile}")
    if found.host_log is not None:
        output.show(f"logs of other firewalls: read from {found.host_log}")
    for sink in found.sinks:
        output.show(f"sink {sink.called}: OCSF {sink.ocsf_version}")
    if found.listen is not None:
        output.show(f"metrics and health: http://{found.listen}/metrics, /healthz, /readyz")
    if found.control is not None:
        group = "" if found.control_group is None else f", group {found.control_group}"
        output.show(f"control API: {found.control}, mode {found.control_mode:04o}{group}")


async def _connect(sinks: tuple[Outlet, ...]) -> bool:
    from ocsf_nft.errors import DeliveryError

    is_well = True
    for outlet in sinks:
        try:
            async with asyncio.timeout(outlet.batch_settings.timeout_seconds), outlet.sink:
                output.show(f"sink {outlet.name}: can be opened")
        except (DeliveryError, OSError, TimeoutError) as error:
            is_well = False
            output.show(f"sink {outlet.name}: {error or 'does not answer in time'}")
    return is_well
