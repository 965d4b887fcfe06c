"""Decision from where a command reads events and counts: a running service, or its files.

Both have the same content. A user who may not read the files may be permitted to use the service.
"""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.cli import options, output
from ocsf_nft.errors import DeliveryError, OcsfNftError, UnsupportedError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Time for the first answer of a service. Without it, the files are read.
_ANSWER_SECONDS: Final = 5.0


class RunningService(NamedTuple):
    """Service that runs: the path of its control socket, and of its files."""

    control: Path
    state_dir: Path
    store: Path


class Files(NamedTuple):
    """State directory and state database of a service, by the options of a command."""

    state_dir: Path
    #: None if it is any in the state directory.
    store: Path | None
    #: Whether an option, or the environment, names the state directory.
    is_named: bool


class Access(NamedTuple):
    """Ways in which a command can read the events and counts."""

    #: None if the files are read.
    service: RunningService | None
    files: Files
    #: Reason why the service is not used, if this user may not.
    refusal: UnsupportedError | None = None

    @contextlib.contextmanager
    def reading_files(self) -> Iterator[None]:
        """Raise the reason why the service is not used if this user may not read the files either.

        Other errors are raised unchanged.
        """
        try:
            yield
        except (OcsfNftError, OSError) as error:
            if self.refusal is None or os.access(self.files.state_dir, os.R_OK | os.X_OK):
                raise
            raise self.refusal from error


def access(control: Path | None, state_dir: Path | None, config: Path | None) -> Access:
    """Decide from where to read, by the options of a command.

    The service is used if it runs and has the state directory that the options name. If they name
    none, any service at the control socket is used. Raises AbsentError or UsageError if the
    configuration file can't be used, AbsentError if no service listens at an explicit ``control``,
    UsageError if that is the socket of a service with another state directory.
    """
    found = files(state_dir, config)
    is_required = control is not None and not found.is_named
    path = control or _control(config)
    try:
        service = _service(path)
    except OcsfNftError as error:
        if is_required:
            raise
        if isinstance(error, DeliveryError):
            output.show(f"ocsf-nft: {error}; its files are read meanwhile")
        return Access(None, found, error if isinstance(error, UnsupportedError) else None)
    if _is_of(service, found):
        return Access(service, found)
    if control is not None:
        raise UsageError(
            f"the service at {control} has the state directory {service.state_dir}: leave out "
            "--control, or the option that names another one"
        )
    return Access(None, found)


def files(state_dir: Path | None, config: Path | None) -> Files:
    """Return the files of a service, by the options of a command.

    Raises AbsentError or UsageError if the configuration file can't be used.
    """
    store = None
    if state_dir is None and config is not None:
        from ocsf_nft.config import read

        store = read(config).store.path
    is_named = bool(state_dir or config or os.environ.get(options.STATE_DIR_VARIABLE))
    return Files(options.state_directory(state_dir, config), store, is_named)


def _control(config: Path | None) -> Path:
    found = None
    if config is not None:
        from ocsf_nft.config import read

        found = read(config).control
    return found or Path(os.environ.get(options.CONTROL_VARIABLE) or options.DEFAULT_CONTROL)


def _service(control: Path) -> RunningService:
    """Return the service at a control socket; raises AbsentError if none listens there."""
    from ocsf_nft.control import answers

    try:
        control.stat()
    except OSError as error:  # the usual case: it saves an import that is slow
        raise answers.unreachable(control, error) from error
    from ocsf_nft.control.http_call import call

    found = call(control, "GET", "/v1/status", seconds=_ANSWER_SECONDS)
    try:
        return RunningService(control, Path(found["state_dir"]), Path(found["store"]))
    except (KeyError, TypeError) as error:
        raise DeliveryError(f"the service at {control} has another version: restart it") from error


def _is_of(service: RunningService, files: Files) -> bool:
    if not files.is_named:
        return True
    return _is_same(service.state_dir, files.state_dir) and (
        files.store is None or _is_same(service.store, files.store)
    )


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)
