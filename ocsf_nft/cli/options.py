"""Options that several commands share."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import click

from ocsf_nft.cli.documented_command import DocumentedArgument
from ocsf_nft.errors import AbsentError

if TYPE_CHECKING:
    from collections.abc import Callable
    from io import BufferedReader

    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.ocsf.context import Context

#: Function of a command, or the command that was made of it.
_Command = TypeVar("_Command", bound="Callable[..., Any] | click.Command")


class Decorator(Protocol):
    """Decorator that adds an option or an argument to a command."""

    def __call__(self, command: _Command, /) -> _Command:
        """Return the command with the option."""


# Copies of defaults in other modules, because importing those is slow. A test compares them.
DEFAULT_GROUP: Final = 4001
DEFAULT_STATE_DIR: Final = Path("/var/lib/ocsf-nft")
#: Not systemd's STATE_DIRECTORY: a unit that starts a run may have one for another purpose, and
#: commands outside the unit would use another directory.
STATE_DIR_VARIABLE: Final = "OCSF_NFT_STATE_DIR"
DEFAULT_OCSF_VERSION: Final = "1.8.0"
DEFAULT_CONTROL: Final = Path("/run/ocsf-nft/control.sock")
CONTROL_VARIABLE: Final = "OCSF_NFT_CONTROL"

#: Type of an option that names a file or directory. click does not check if the path is readable:
#: reading it raises an error with our own sentence. A user who may not read the default state
#: directory can still replay a file, which needs no state.
PATH: Final = click.Path(path_type=Path, readable=False)
#: Type of an argument or option that names an input; ``-`` is standard input.
INPUT: Final = click.Path(readable=False)


def config(text: str) -> Decorator:
    """Return the option ``--config`` with ``text`` as its help."""
    return click.option("--config", type=PATH, metavar="FILE", help=text)


def input_paths(text: str) -> Decorator:
    """Return an argument ``paths``, a list of input files; without one, it is empty.

    The command reads standard input then. ``text`` is the help of the argument.
    """
    return click.argument(
        "paths",
        cls=DocumentedArgument,
        nargs=-1,
        type=INPUT,
        metavar="[PATH… | -]",
        callback=lambda _context, _parameter, paths: list(paths),
        text=f"{text}; - is standard input, the default.",
    )


def _netns(default: str) -> Decorator:
    text = f"The network namespace: an `ip netns` name or a path. Default: {default}."
    return click.option("--netns", metavar="NAME|PATH", help=text)


sandbox_name = click.argument(
    "name", cls=DocumentedArgument, metavar="NAME", text="The sandbox's name."
)
control = click.option(
    "--control",
    type=PATH,
    default=DEFAULT_CONTROL,
    metavar="PATH",
    envvar=CONTROL_VARIABLE,
    show_envvar=True,
    help="The control socket of the service.",
)
service_or_files = click.option(
    "--control",
    type=PATH,
    metavar="PATH",
    help="The control socket of a service. Default: control of --config, else the environment "
    f"variable {CONTROL_VARIABLE}, else {DEFAULT_CONTROL}. If none listens, the files are "
    "read.",
)
answer_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write the answer of the service to standard output.",
)
sandbox = click.option("--sandbox", required=True, metavar="NAME", help="The sandbox's name.")
netns = _netns("the current one")
service_netns = _netns("that of the service")
recorded_netns = _netns("the one in which the fence was installed")
pid = click.option("--pid", type=int, metavar="PID", help="A process in the network namespace.")
proxies = click.option(
    "--proxy",
    multiple=True,
    metavar="ADDR:PORT",
    help="A proxy that the sandbox may reach; repeatable, IPv4 and IPv6. A service also "
    "resolves NAME:PORT.",
)
exceptions = click.option(
    "--allow",
    multiple=True,
    metavar="tcp|udp:ADDR:PORT",
    help="Another destination that the sandbox may reach, also a network or a range of ports, "
    "such as tcp:10.0.0.0/8:8000-8100; repeatable. A service also resolves tcp:NAME:PORT.",
)
device = click.option("--device", metavar="DEV", help="tap: the VM's TAP device.")
state_dir = click.option(
    "--state-dir",
    type=PATH,
    metavar="DIR",
    help="Directory with the state of the installed fences. Default: state_dir of --config, "
    f"else the environment variable {STATE_DIR_VARIABLE}, else {DEFAULT_STATE_DIR}.",
)
state_config = config(
    "The TOML file of a run: its state_dir is used. Other keys are not used here."
)
source_config = config(
    "The TOML file of a run: its control socket, or its state_dir, is used. Other keys are not "
    "used here."
)
mapping_config = config(
    "A TOML file: its [[prefix]] tables define foreign log prefixes, its [[severity]] "
    "tables set severities, [redaction] is about secrets. Other keys are not used here."
)
events_of = click.option("--sandbox", metavar="NAME", help="Only events of this sandbox.")
since = click.option(
    "--since",
    metavar="TIME",
    help="Only events since this time (ISO 8601, local time by default), or since this "
    "long ago: 90s, 15m, 12h, 7d.",
)
until = click.option("--until", metavar="TIME", help="Only events before this time.")
event_files = click.option(
    "--input",
    "paths",
    multiple=True,
    type=INPUT,
    metavar="PATH",
    help="A file of events, one JSON object a line; - is standard input; repeatable. Default: "
    "the stored events.",
)
event_as_json = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Write the event of the change to standard output, as JSON.",
)
ocsf_version = click.option(
    "--ocsf-version",
    default=DEFAULT_OCSF_VERSION,
    metavar="V",
    help="OCSF version of the events.",
)


def input_file(path: str) -> BufferedReader:
    """Open the file that an argument names; ``-`` is standard input.

    Raises AbsentError if the file can't be read.
    """
    if path == "-":
        return open(sys.stdin.fileno(), "rb", closefd=False)
    try:
        return Path(path).open("rb")
    except OSError as error:
        raise AbsentError(f"{path} can't be read: {error.strerror}") from error


def is_same_file(path: Path, name: str) -> bool:
    """Return True if a path is the regular file of an argument; ``-`` is standard input."""
    try:
        mine = path.stat()
        other = os.fstat(sys.stdin.fileno()) if name == "-" else Path(name).stat()
    except OSError:  # one file is missing: opening it reports that
        return False
    return stat.S_ISREG(mine.st_mode) and os.path.samestat(mine, other)


def prefixes_and_context(config: Path | None) -> tuple[Prefixes, Context]:
    """Read log prefixes of other firewalls, and severities of events, from a configuration file.

    Its table ``[redaction]`` is used from now on.
    The returned Context has the severities. If ``config`` is None, the defaults are returned.
    Raises AbsentError or UsageError if the file can't be used.
    """
    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.ocsf.context import Context

    if config is None:
        return Prefixes(), Context()
    from ocsf_nft import redaction
    from ocsf_nft.config import read

    found = read(config)
    redaction.configure(found.redaction.redactor())
    return found.prefixes, Context(severities=found.severities)


def state_directory(option: Path | None, config: Path | None = None) -> Path:
    """Return the state directory: ``option``, or else the one that the file ``config`` sets.

    If neither sets a directory, return the value of the environment variable
    ``OCSF_NFT_STATE_DIR``, or else the default. Raises AbsentError or UsageError if the file can't
    be used.
    """
    if option is not None:
        return option
    if config is None:
        return _default_state_directory()
    from ocsf_nft.config import read

    return _with_state_directory(read(config)).state_dir


def configuration(path: Path) -> Config:
    """Read the configuration file of the command `run`.

    If the file does not set the state directory, the environment variable ``OCSF_NFT_STATE_DIR``
    sets it. Without this variable, the default is used. Raises AbsentError or UsageError if the
    file can't be used.
    """
    from ocsf_nft.config import load

    return _with_state_directory(load(path))


def _with_state_directory(config: Config) -> Config:
    if "state_dir" in config.model_fields_set:
        return config
    return config.model_copy(update={"state_dir": _default_state_directory()})


def _default_state_directory() -> Path:
    return Path(os.environ.get(STATE_DIR_VARIABLE) or DEFAULT_STATE_DIR)


def one_sandbox(**values: Any) -> SandboxConfig:
    """Build a sandbox's configuration from command-line options.

    Each argument is a key of a ``[[sandbox]]`` table with its value; an argument that is None is
    ignored. Raises UsageError if a value is invalid.
    """
    return one(values).sandbox[0]


def one(sandbox: dict[str, Any], **others: Any) -> Config:
    """Build a configuration with one sandbox from command-line options.

    ``sandbox`` has keys of a ``[[sandbox]]`` table; a key whose value is None is ignored.
    ``others`` are keys outside this table, for example ``output``. Raises UsageError if a value is
    invalid.
    """
    from ocsf_nft import config

    given = {key: value for key, value in sandbox.items() if value is not None}
    return config.parse_options({"sandbox": [given], **others})
