"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

if TYPE_CHECKING:
    from ocsf_nft.config import Config, SandboxConfig
    from ocsf_nft.log_prefixes import Prefixes
    from ocsf_nft.ocsf.context import Context

# The others' own defaults again: importing those is slow. A test holds them equal.
DEFAULT_GROUP: Final = 4001
DEFAULT_STATE_DIR: Final = Path("/var/lib/ocsf-nft")
DEFAULT_OCSF_VERSION: Final = "1.8.0"

Sandbox = Annotated[str, typer.Option("--sandbox", help="The sandbox's name.", metavar="NAME")]
Netns = Annotated[
    str | None,
    typer.Option(
        "--netns",
        help="Its network namespace: a name of `ip netns`, or a path. Default: this one.",
        metavar="NAME|PATH",
    ),
]
Pid = Annotated[
    int | None,
    typer.Option("--pid", help="A process that lives in its network namespace.", metavar="PID"),
]
Proxies = Annotated[
    list[str],
    typer.Option(
        "--proxy", help="A proxy that may be reached; repeatable, IPv4 and IPv6.",
        metavar="ADDR:PORT",
    ),
]  # fmt: skip
Exceptions = Annotated[
    list[str],
    typer.Option(
        "--allow", help="An exception that may be reached; repeatable.", metavar="tcp|udp:ADDR:PORT"
    ),
]
HostGuard = Annotated[
    str | None,
    typer.Option(
        "--host-guard",
        help="The host's end of the sandbox's veth pair: guard it too, against AF_XDP.",
        metavar="DEV",
    ),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="What is fenced: a namespace; one that the proxy lives in too; a VM, on its host.",
        metavar="sandbox|sidecar|tap",
    ),
]
ProxyUids = Annotated[
    list[int],
    typer.Option(
        "--proxy-uid", help="sidecar: a user that gets out, the proxy's; repeatable.", metavar="UID"
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
        "--mac", help="tap: the VM's link address. Default: the first it sends from.", metavar="MAC"
    ),
]
Permissive = Annotated[
    bool, typer.Option("--permissive", help="Report what would be refused, and let it pass.")
]
Exclusive = Annotated[
    bool,
    typer.Option("--exclusive", help="Let no other process change the tables while a run watches."),
]
Transport = Annotated[
    str,
    typer.Option(
        "--transport",
        help="How the fence logs; auto takes the best that the kernel has.",
        metavar="auto|nflog|kmsg|none",
    ),
]
Group = Annotated[int, typer.Option("--group", help="The NFLOG group, 1 to 65535.", metavar="N")]
StateDir = Annotated[
    Path,
    typer.Option(
        "--state-dir",
        help="Where it is put on record what was installed.",
        metavar="DIR",
        # Who may not read the default one may still do what needs none, such as replay a file.
        readable=False,
    ),
]
OcsfVersion = Annotated[
    str,
    typer.Option(
        "--ocsf-version", help="The version of OCSF that events are told in.", metavar="V"
    ),
]


TellingConfig = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="A TOML file whose [[prefix]] tables tell what prefixes mean, and whose [[severity]] "
        "tables what matters; the rest of it is not used here.",
        metavar="FILE",
        readable=False,  # reading it tells, in our own sentence
    ),
]


def ocsf_version(text: str) -> str:
    """The version of OCSF that somebody named, maybe in short, as 1.1; raises UsageError."""
    from ocsf_nft.ocsf.versions import named  # noqa: PLC0415 - the same

    return named(text)


def told(config: Path | None) -> tuple[Prefixes, Context]:
    """What foreign prefixes mean, and what matters; raises AbsentError or UsageError."""
    from ocsf_nft.log_prefixes import Prefixes  # noqa: PLC0415 - the same
    from ocsf_nft.ocsf.context import Context  # noqa: PLC0415 - slow to import, as above

    if config is None:
        return Prefixes(), Context()
    from ocsf_nft.config import read  # noqa: PLC0415

    found = read(config)
    return found.prefixes, Context(severities=found.severities)


def one_sandbox(**values: Any) -> SandboxConfig:
    """A sandbox from options, checked as a file's would be; raises UsageError."""
    return one(values).sandbox[0]


def one(sandbox: dict[str, Any], **others: Any) -> Config:
    """A configuration with one sandbox, from options; raises UsageError."""
    from ocsf_nft import config  # noqa: PLC0415 - pydantic is slow to import, and --help needs none

    given = {key: value for key, value in sandbox.items() if value is not None}
    return config.parse({"sandbox": [given], **others}, where="options")
