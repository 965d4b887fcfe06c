"""Options that several commands share."""

# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from ocsf_nft.control_request import SOCKET
from ocsf_nft.errors import AbsentError

if TYPE_CHECKING:
    from io import BufferedReader

    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.ocsf.context import Context

# Copies of defaults in other modules, because importing those is slow. A test compares them.
DEFAULT_GROUP: Final = 4001
DEFAULT_STATE_DIR: Final = Path("/var/lib/ocsf-nft")
#: Not systemd's STATE_DIRECTORY: a unit that starts a run may have one for another purpose, and
#: commands outside the unit would use another directory.
STATE_DIR_VARIABLE: Final = "OCSF_NFT_STATE_DIR"
DEFAULT_OCSF_VERSION: Final = "1.8.0"
DEFAULT_CONTROL: Final = Path(SOCKET)
CONTROL_VARIABLE: Final = "OCSF_NFT_CONTROL"


def config_option(text: str) -> Any:
    """Return the option ``--config`` with ``text`` as its help."""
    # Not checked by typer: reading the file raises an error with our own sentence.
    return typer.Option("--config", help=text, metavar="FILE", readable=False)


def _netns_option(default: str) -> Any:
    text = f"The network namespace: an `ip netns` name or a path. Default: {default}."
    return typer.Option("--netns", help=text, metavar="NAME|PATH")


SandboxName = Annotated[
    str, typer.Argument(help="The sandbox's name.", metavar="NAME", show_default=False)
]
Control = Annotated[
    Path,
    typer.Option(
        "--control",
        help="The control socket of the service.",
        metavar="PATH",
        envvar=CONTROL_VARIABLE,
        readable=False,
    ),
]
ServiceOrFiles = Annotated[
    Path | None,
    typer.Option(
        "--control",
        help="The control socket of a service. Default: control of --config, else the environment "
        f"variable {CONTROL_VARIABLE}, else {DEFAULT_CONTROL}. If none listens, the files are "
        "read.",
        metavar="PATH",
        readable=False,
        show_default=False,
    ),
]
AnswerAsJson = Annotated[
    bool, typer.Option("--json", help="Write the answer of the service to standard output.")
]
Sandbox = Annotated[str, typer.Option("--sandbox", help="The sandbox's name.", metavar="NAME")]
Netns = Annotated[str | None, _netns_option("the current one")]
ServiceNetns = Annotated[str | None, _netns_option("that of the service")]
RecordedNetns = Annotated[str | None, _netns_option("the one in which the fence was installed")]
Pid = Annotated[
    int | None, typer.Option("--pid", help="A process in the network namespace.", metavar="PID")
]
Proxies = Annotated[
    list[str],
    typer.Option(
        "--proxy",
        help="A proxy that the sandbox may reach; repeatable, IPv4 and IPv6. A service also "
        "resolves NAME:PORT.",
        metavar="ADDR:PORT",
    ),
]  # fmt: skip
Exceptions = Annotated[
    list[str],
    typer.Option(
        "--allow",
        help="Another destination that the sandbox may reach, also a network or a range of ports, "
        "such as tcp:10.0.0.0/8:8000-8100; repeatable. A service also resolves tcp:NAME:PORT.",
        metavar="tcp|udp:ADDR:PORT",
    ),
]
HostGuard = Annotated[
    str,
    typer.Option(
        "--host-guard",
        help="Also guard the host's end of the sandbox's veth pair: find it, or name it.",
        metavar="auto|off|DEV",
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="What to fence: a namespace; one that also has the proxy; a VM, on its host.",
        metavar="sandbox|sidecar|tap",
    ),
]
ProxyUids = Annotated[
    list[int],
    typer.Option(
        "--proxy-uid",
        help="sidecar: a user of the proxy; traffic of this user may leave; repeatable.",
        metavar="UID",
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", help="tap: the VM's TAP device.", metavar="DEV")
]
Subnets = Annotated[
    list[str],
    typer.Option(
        "--subnet",
        help="tap: the gateway's address in the VM's subnet; repeatable, IPv4 and IPv6.",
        metavar="CIDR",
    ),
]
GatewayPort = Annotated[
    int | None,
    typer.Option(
        "--gateway-port", help="tap: the proxy's port on the gateway's address.", metavar="PORT"
    ),
]
Mac = Annotated[
    str | None,
    typer.Option(
        "--mac",
        help="tap: the VM's link address. Default: the first one it sends from.",
        metavar="MAC",
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="tap: the VM reaches the gateway's port, the exceptions, and nothing else. Default: "
        "it also reaches the internet and the host's networks, without the proxy.",
    ),
]
Permissive = Annotated[
    bool, typer.Option("--permissive", help="Report packets that would be refused, and allow them.")
]
Exclusive = Annotated[
    bool,
    typer.Option("--exclusive", help="Let no other process change the tables while a run watches."),
]
Transport = Annotated[
    str,
    typer.Option(
        "--transport",
        help="Log transport of the fence; auto selects the best one that the kernel has.",
        metavar="auto|nflog|kmsg|none",
    ),
]
Group = Annotated[int, typer.Option("--group", help="The NFLOG group, 1 to 65535.", metavar="N")]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        help="Directory with the state of the installed fences. Default: state_dir of --config, "
        f"else the environment variable {STATE_DIR_VARIABLE}, else {DEFAULT_STATE_DIR}.",
        metavar="DIR",
        # A user who may not read the default one can still replay a file, which needs no state.
        readable=False,
    ),
]
StateConfig = Annotated[
    Path | None,
    config_option("The TOML file of a run: its state_dir is used. Other keys are not used here."),
]
SourceConfig = Annotated[
    Path | None,
    config_option(
        "The TOML file of a run: its control socket, or its state_dir, is used. Other keys are not "
        "used here."
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        help="Only events since this time (ISO 8601, local time by default), or since this "
        "long ago: 90s, 15m, 12h, 7d.",
        metavar="TIME",
    ),
]
Until = Annotated[
    str | None, typer.Option("--until", help="Only events before this time.", metavar="TIME")
]
EventFiles = Annotated[
    list[str],
    typer.Option(
        "--input",
        help="A file of events, one JSON object a line; - is standard input; repeatable. Default: "
        "the stored events.",
        metavar="PATH",
    ),
]
EventAsJson = Annotated[
    bool, typer.Option("--json", help="Write the event of the change to standard output, as JSON.")
]
OcsfVersion = Annotated[
    str, typer.Option("--ocsf-version", help="OCSF version of the events.", metavar="V")
]
MappingConfig = Annotated[
    Path | None,
    config_option(
        "A TOML file: its [[prefix]] tables define foreign log prefixes, its [[severity]] "
        "tables set severities, [redaction] is about secrets. Other keys are not used here."
    ),
]


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
    return config.parse({"sandbox": [given], **others}, where="options")
