"""Configuration of `ocsf-nft run`, from a TOML file or from command-line options."""

from __future__ import annotations

import ipaddress
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import ValidationError

from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.config.base_table import FileName, Table, checked
from ocsf_nft.config.control import DEFAULT_MODE, checked_group, socket_mode, socket_path
from ocsf_nft.config.events import (
    AttributionConfig,
    DnsTunnelConfig,
    EventsConfig,
    FindingConfig,
    PrefixConfig,
    SeverityConfig,
    StoreConfig,
)
from ocsf_nft.config.identity import IdentityConfig
from ocsf_nft.config.redaction import RedactionConfig
from ocsf_nft.config.sandbox import SandboxConfig
from ocsf_nft.config.sentence import sentence_of
from ocsf_nft.config.sinks import STDOUT, SinkConfig, SinkTable
from ocsf_nft.config.sinks.base import Version
from ocsf_nft.config.sinks.local import FileSink, StdoutSink
from ocsf_nft.errors import AbsentError, OcsfNftError, UsageError
from ocsf_nft.fence.state import DEFAULT_DIRECTORY
from ocsf_nft.fence.values import Endpoint
from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.ocsf.finding_settings import FindingSettings
    from ocsf_nft.ocsf.severity import SeverityRule

__all__ = ["Config", "SandboxConfig", "load", "parse", "read", "sink"]


def _listen_address(text: str) -> Endpoint:
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        found = Endpoint("tcp", address, int(port) if port.isdecimal() and len(port) <= 5 else 0)
    except ValueError:
        found = None
    if found is None or str(found) != text or not 0 < found.port < 1 << 16:
        raise UsageError(
            f"{quoted(text)} is no address to listen at: write 127.0.0.1:9464, [::1]:9464 or "
            "0.0.0.0:9464"
        )
    return found


class Config(Table):
    """Complete configuration.

    Without a ``[[sink]]`` table, the keys ``output``, ``ocsf_version`` and ``handshake`` configure
    the only sink. ``output`` is the path of a file, or ``-`` for standard output. ``handshake``
    (only for standard output) adds a first line, which reports that every fence is active.
    ``host_log`` is the source of the log records of this host's other firewalls. If it is None,
    these records are not read. ``listen`` is the address and port at which `ocsf-nft run` serves
    its metrics and its health. If it is None, they are not served. ``control`` is the path of the
    Unix socket at which it serves the control API. If it is None, that is not served. The first
    ``[[severity]]`` table that matches refused packets sets the severity of these packets.
    """

    sandbox: tuple[SandboxConfig, ...] = ()
    """Sandboxes to watch."""
    attach: tuple[AttachConfig, ...] = ()
    """Policies of containers; the first table that matches decides."""
    host_log: Literal["kmsg", "journal"] | None = None
    """Source of the log records of this host's other firewalls."""
    output: Annotated[str, FileName] | None = None
    """File for the events, or - for standard output; in place of [[sink]]."""
    handshake: bool = False
    """Write a first line to standard output when every fence is active."""
    ocsf_version: Version | None = None
    """OCSF version of the events of output, such as 1.8."""
    sink: tuple[SinkConfig, ...] = ()
    """Destinations of events."""
    store: StoreConfig = StoreConfig()
    """Store of the events and of the packet counts."""
    attribution: AttributionConfig = AttributionConfig()
    """Attribution of packets to processes."""
    redaction: RedactionConfig = RedactionConfig()
    """Replacement of secrets in command lines and log lines."""
    listen: Annotated[Endpoint, checked(_listen_address)] | None = None
    """Address of /metrics, /healthz and /readyz, such as 127.0.0.1:9464."""
    control: Annotated[Path, checked(socket_path)] | None = None
    """Path of the control API's Unix socket, such as /run/ocsf-nft/control.sock."""
    control_mode: Annotated[int, checked(socket_mode)] = DEFAULT_MODE
    """Mode of this socket, such as 0660: who may add, change and release sandboxes."""
    control_group: Annotated[str | int, checked_group] | None = None
    """Group of this socket, by name or number; by default the group of `ocsf-nft run`."""
    severity: tuple[SeverityConfig, ...] = ()
    """Severities of attempts; the first table that matches decides."""
    finding: FindingConfig = FindingConfig()
    """Condition for an attempt to be a finding."""
    identity: IdentityConfig = IdentityConfig()
    """Tenant, environment and cloud of the machine, for all events."""
    dns_tunnel: DnsTunnelConfig = DnsTunnelConfig()
    """Condition for the DNS queries of a flow to be a finding."""
    events: EventsConfig = EventsConfig()
    """Optional events."""
    prefix: tuple[PrefixConfig, ...] = ()
    """Meanings of foreign log prefixes; the longest match decides."""
    state_dir: Annotated[Path, FileName] = DEFAULT_DIRECTORY
    """Directory of the state."""

    @property
    def sinks(self) -> tuple[SinkTable, ...]:
        """Return the ``[[sink]]`` tables; if there are none, return a table for the key ``output``.

        Without ``output``, the sink is standard output. Raises UsageError if ``output`` can't be
        the path of a file, or if ``handshake`` is set for a file.
        """
        if self.sink:
            return self.sink
        given = {} if self.ocsf_version is None else {"ocsf_version": self.ocsf_version}
        if self.output in {None, STDOUT}:
            return (StdoutSink(handshake=self.handshake, **given),)
        if self.handshake:
            raise UsageError("a handshake needs a pipe or a socket: leave out handshake, or output")
        try:
            return (FileSink(path=self.output, **given),)
        except ValidationError as error:
            raise UsageError("output: must be a file, or - for standard output") from error

    @property
    def severities(self) -> tuple[SeverityRule, ...]:
        """Return the rules that set the severity of refused packets (``[[severity]]`` tables)."""
        return tuple(each.as_rule() for each in self.severity)

    @property
    def finding_settings(self) -> FindingSettings:
        """Return the condition for Detection Findings (``[finding]`` and ``[dns_tunnel]``)."""
        return replace(self.finding.as_settings(), tunnel=self.dns_tunnel.as_threshold())

    @property
    def prefixes(self) -> Prefixes:
        """Return the decoder of other firewalls' log prefixes, such as ``[UFW BLOCK]``.

        The decoder has built-in prefixes, and those of the ``[[prefix]]`` tables. Raises UsageError
        if two ``[[prefix]]`` tables have the same ``begins``.
        """
        return Prefixes([Configured(**row.model_dump()) for row in self.prefix])


def sink(output: str, ocsf_version: str) -> SinkTable:
    """Return the sink for the values of the options ``--output`` and ``--ocsf-version``.

    ``output`` is the path of a file, or ``-`` for standard output. Raises UsageError if a value is
    invalid.
    """
    return parse_options({"output": output, "ocsf_version": ocsf_version}).sinks[0]


def load(path: Path) -> Config:
    """Read a configuration file, check its content, and return the configuration.

    Raises AbsentError if the file can't be read. Raises UsageError if the content is wrong, or if
    it has neither a ``[[sandbox]]`` nor ``host_log`` nor ``control``.
    """
    return _require_watched(read(path), where=str(path))


def read(path: Path) -> Config:
    """Read a configuration file, check its content, and return the configuration.

    Unlike :func:`load`, this function also accepts a file with nothing to watch. Raises
    AbsentError if the file can't be read, UsageError if the content is wrong.
    """
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise AbsentError(f"{path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError is one
        raise UsageError(f"{path} is not TOML: {error}") from error
    return _parsed(found, where=str(path))


def parse(found: dict[str, Any], *, where: str) -> Config:
    """Return the configuration from the content of a TOML file.

    ``found`` is the content as Python objects. ``where`` is the file's name in error messages.
    Raises UsageError if the content is wrong, or if it has neither a ``[[sandbox]]`` nor
    ``host_log`` nor ``control``.
    """
    return _require_watched(_parsed(found, where=where), where=where)


def parse_options(found: dict[str, Any]) -> Config:
    """Return the configuration from options of the command line, given as keys of a file.

    Messages of errors name the options. Raises UsageError if a value is wrong.
    """
    return _parsed(found, where=None)


def _require_watched(config: Config, *, where: str) -> Config:
    if not config.sandbox and config.host_log is None and config.control is None:
        raise UsageError(
            f"{where}: there is nothing to watch: give a [[sandbox]], host_log, or control"
        )
    return config


def _parsed(found: dict[str, Any], *, where: str | None) -> Config:
    """Return the configuration from ``found``: from the file ``where``, or from options if None."""
    prefix = "" if where is None else f"{where}: "
    try:
        config = Config.model_validate(found)
        for sandbox in (*config.sandbox, *config.attach):
            sandbox.check()
        _ = config.prefixes  # raises if two rows begin with the same text
        sinks = config.sinks
    except ValidationError as error:
        sentence = sentence_of(error, Config, are_options=where is None)
        raise UsageError(f"{prefix}{sentence}") from error
    except OcsfNftError as error:
        raise UsageError(f"{prefix}{error}") from error
    single = (config.output, config.ocsf_version, config.handshake)
    if config.sink and single != (None, None, False):
        raise UsageError(
            f"{prefix}output, ocsf_version and handshake replace a single [[sink]]: "
            "put them into the sinks"
        )
    if config.control is None and config.model_fields_set & {"control_mode", "control_group"}:
        raise UsageError(f"{prefix}control_mode and control_group need control: give its path")
    _require_unique(
        [sandbox.name for sandbox in config.sandbox], prefix, "two sandboxes have the same name"
    )
    _require_unique(
        [table.name for table in config.attach], prefix, "two [[attach]] tables have the same name"
    )
    _require_unique(
        [sink.called for sink in sinks], prefix, "two sinks are the same: give each a name"
    )
    _require_unique(
        [each for sink in sinks for each in sink.locations],
        prefix,
        "two parquet sinks write events of one class to the same location, where each would be "
        "twice: give each its own classes, source or directory",
    )
    return config


def _require_unique(values: Sequence[str], prefix: str, sentence: str) -> None:
    if len(set(values)) != len(values):
        raise UsageError(f"{prefix}{sentence}")
