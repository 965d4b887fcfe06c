"""What to run, from a TOML file or quick-start options; checked whole before anything runs."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ocsf_nft.errors import AbsentError, OcsfNftError, UsageError
from ocsf_nft.fence import values
from ocsf_nft.fence.spec import DEFAULT_GROUP, FenceSpec, LogTransport
from ocsf_nft.fence.state import DEFAULT_DIRECTORY
from ocsf_nft.fence.values import Endpoint
from ocsf_nft.netns import Namespace, named, of_process

if TYPE_CHECKING:
    from collections.abc import Callable

SourceName: TypeAlias = Literal["auto", "nflog", "kmsg", "journal"]
#: The transport that a fence must log by, for its records to be where a source reads.
_WRITTEN_BY: Final[dict[SourceName, LogTransport]] = {
    "nflog": "nflog",
    "kmsg": "kmsg",
    "journal": "kmsg",
}
#: Standard output, in place of a path.
STDOUT: Final = "-"


def _checked(check: Callable[[str], Any]) -> BeforeValidator:
    """A value's check from the fence, its UsageError as pydantic's ValueError."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {value!r}")  # noqa: TRY004 - pydantic wants ValueError
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(validate)


def _file_name(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty: leave the key out for its default")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"must not hold a NUL character, which {value!r} does")
    return value


_FileName = BeforeValidator(_file_name)


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SandboxConfig(_Table):
    """One sandbox to watch, ``[[sandbox]]`` in the file.

    ``netns`` is a name of ``ip netns`` or a path, ``pid`` a process that lives in the namespace;
    with neither it is the one that this process lives in. ``transport`` is how the fence logs,
    ``source`` where its records are read from; ``auto`` takes the best that there is.
    """

    name: Annotated[str, _checked(values.sandbox_name)]
    netns: Annotated[str, _FileName] | None = None
    pid: Annotated[int, Field(gt=0)] | None = None
    proxy: tuple[Annotated[Endpoint, _checked(values.endpoint)], ...] = ()
    allow: tuple[Annotated[Endpoint, _checked(values.exception)], ...] = ()
    host_guard: Annotated[str, _checked(values.device_name)] | None = None
    group: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_GROUP
    transport: Literal["auto", "nflog", "kmsg", "none"] = "auto"
    source: SourceName = "auto"
    install: bool = False

    @property
    def namespace(self) -> Namespace | None:
        """The namespace that is named, None when none is."""
        if self.netns is not None:
            return named(self.netns)
        return None if self.pid is None else of_process(self.pid)

    @property
    def log_transport(self) -> LogTransport | None:
        """The transport that is asked for, None for the best."""
        return None if self.transport == "auto" else self.transport

    def spec(self) -> FenceSpec:
        """The fence that is asked for; raises UsageError when no proxy is named."""
        return FenceSpec(
            sandbox=self.name,
            proxies=self.proxy,
            exceptions=self.allow,
            group=self.group,
            guard_device=self.host_guard,
        )


class Config(_Table):
    """All of it. ``output`` is a file's path, or ``-`` for standard output."""

    sandbox: Annotated[tuple[SandboxConfig, ...], Field(min_length=1)]
    output: Annotated[str, _FileName] = STDOUT
    state_dir: Annotated[Path, _FileName] = DEFAULT_DIRECTORY

    @property
    def output_path(self) -> Path | None:
        """Where events go, None for standard output."""
        return None if self.output == STDOUT else Path(self.output)


def load(path: Path) -> Config:
    """Read a configuration file; raises AbsentError or UsageError with one sentence."""
    try:
        with path.open("rb") as file:
            found = tomllib.load(file)
    except OSError as error:
        raise AbsentError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not TOML: {error}") from error
    return parse(found, where=str(path))


def parse(found: dict[str, Any], *, where: str) -> Config:
    """Check a configuration; raises UsageError that names ``where``, the key and the fault."""
    try:
        config = Config.model_validate(found)
        for sandbox in config.sandbox:
            _check(sandbox)
    except ValidationError as error:
        raise UsageError(f"{where}: {_sentence(error)}") from error
    except OcsfNftError as error:
        raise UsageError(f"{where}: {error}") from error
    names = [sandbox.name for sandbox in config.sandbox]
    if len(set(names)) != len(names):
        raise UsageError(f"{where}: two sandboxes have the same name")
    return config


def _check(sandbox: SandboxConfig) -> None:
    if sandbox.netns is not None and sandbox.pid is not None:
        raise UsageError(f"sandbox {sandbox.name} has both netns and pid: give one")
    if sandbox.install:
        sandbox.spec()
    written = _WRITTEN_BY.get(sandbox.source)
    if written is not None and sandbox.log_transport not in {None, written}:
        raise UsageError(
            f"sandbox {sandbox.name} has source {sandbox.source}, where a fence with transport "
            f"{sandbox.transport} logs nothing: give transport {written}, or leave it out"
        )


def _sentence(error: ValidationError) -> str:
    """The first fault, as a person would say it."""
    # An unknown key first: it is often the misspelt name of one that is missing.
    fault = min(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    *table, key = fault["loc"] or ("",)
    place = ".".join(map(str, fault["loc"]))
    if fault["type"] == "extra_forbidden":
        model = SandboxConfig if "sandbox" in table else Config
        near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.0)
        return f"there is no key {place}: did you mean {near[0]}?"
    if fault["type"] == "tuple_type":
        return f"{place}: must be a list: put it in [ ]"
    message = fault["msg"].removeprefix("Value error, ")
    return f"{place}: {message[:1].lower()}{message[1:]}"
