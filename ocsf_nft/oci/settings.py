"""Settings of the OCI runtime wrapper: its own options, then a file, then defaults."""

from __future__ import annotations

import math
import os
import sys
from typing import Any, Final, NamedTuple

from ocsf_nft.control_request import SECONDS, SOCKET, ControlSocket
from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.quoted import quoted

#: Default settings file. containerd and Podman can't give options to a runtime, so it is for them.
FILE: Final = "/etc/ocsf-nft/oci.toml"
#: Folders of the runtime. PATH is not used: an engine may pass another one to each command.
_FOLDERS: Final = (
    "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
)  # fmt: skip
_KEYS: Final = frozenset(("runtime", "control", "timeout"))
#: Maximum time limit, in seconds. Engines limit the start of a container too.
_MOST_SECONDS: Final = 600.0


class Settings(NamedTuple):
    """Settings: the path of the real runtime, and the service."""

    runtime: str
    service: ControlSocket

    def as_options(self) -> list[str]:
        """Return the wrapper's own options for these settings."""
        return [
            f"--ocsf-nft-runtime={self.runtime}",
            f"--ocsf-nft-control={self.service.path}",
            f"--ocsf-nft-timeout={self.service.seconds:g}",
        ]


def settings(options: dict[str, str]) -> Settings:
    """Return the settings from the wrapper's own options, by name: ``--ocsf-nft-NAME=VALUE``.

    The option ``config`` is another settings file. The others override its keys: ``runtime`` (a
    name or a path, default runc), ``control`` (the control socket) and ``timeout`` (in seconds).
    Raises UsageError for a bad value, AbsentError for a missing runtime or file.
    """
    given: dict[str, Any] = {**options}
    path = given.pop("config", None)
    found = _read(FILE if path is None else path, is_required=path is not None) | given
    for name in found.keys() - _KEYS:
        raise UsageError(
            f"there is no setting {quoted(name)} of the OCI runtime wrapper: use runtime, control "
            "or timeout"
        )
    return Settings(
        _runtime(_text(found, "runtime", "runc")),
        ControlSocket(_text(found, "control", SOCKET), _seconds(found.get("timeout", SECONDS))),
    )


def _read(path: str, *, is_required: bool) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError as error:
        if is_required:
            raise AbsentError(f"the settings file {path} does not exist") from error
        return {}
    except OSError as error:
        raise AbsentError(f"the settings file {path} can't be read: {error.strerror}") from error
    import tomllib  # noqa: PLC0415 - slow to import, and most hosts have no such file

    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the settings file {path} is not TOML: {error}") from error


def _text(found: dict[str, Any], name: str, default: str) -> str:
    value = found.get(name, default)
    if not isinstance(value, str) or not value or "\0" in value:
        raise UsageError(f"the setting {name} of the OCI runtime wrapper must be a text")
    return value


def _seconds(value: object) -> float:
    try:
        seconds = float(value) if isinstance(value, str | int | float) else math.nan
    except (ValueError, OverflowError):
        seconds = math.nan
    if not 0 < seconds <= _MOST_SECONDS:
        raise UsageError(
            "the setting timeout of the OCI runtime wrapper must be a number of seconds, at most "
            f"{_MOST_SECONDS:g}"
        )
    return seconds


def _runtime(name: str) -> str:
    candidates = [name] if "/" in name else [f"{folder}/{name}" for folder in _FOLDERS]
    ours = os.path.realpath(sys.argv[0])  # maybe as a link named runc
    for path in candidates:
        is_program = os.path.isfile(path) and os.access(path, os.X_OK)
        if is_program and os.path.realpath(path) != ours:
            return path
    raise AbsentError(
        f"the OCI runtime {quoted(name)} is not installed: install it, or set runtime in {FILE}"
    )
