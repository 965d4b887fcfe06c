"""ulogd2 (netfilter.org) as the peer in a flood: NFLOG to a file of JSON lines."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench import stage

if TYPE_CHECKING:
    from ocsf_nft.netns import Namespace

#: Settings of its manual against drops: a buffer as large as ours, and batched records. The unit of
#: the kernel's timer is a hundredth of a second.
_CONFIG: Final = """
[global]
logfile="{folder}/ulogd.log"
loglevel=5
{plugins}
stack=log1:NFLOG,base1:BASE,ifi1:IFINDEX,ip2str1:IP2STR,mac2str1:HWHDR,json1:JSON

[log1]
group={group}
netlink_socket_buffer_size=16777216
netlink_socket_buffer_maxsize=16777216
netlink_qthreshold=64
netlink_qtimeout=1

[json1]
sync=0
file="{output}"
"""
_PLUGINS: Final = (
    "inppkt_NFLOG",
    "raw2packet_BASE",
    "filter_IFINDEX",
    "filter_IP2STR",
    "filter_HWHDR",
    "output_JSON",
)
_FOLDERS: Final = ("/usr/lib/*/ulogd", "/usr/lib64/ulogd", "/usr/lib/ulogd")


def binary() -> str | None:
    """Return its path if it has every needed plugin; None if it is not installed."""
    found = shutil.which("ulogd", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    return found if len(_plugins()) == len(_PLUGINS) else None


def version(path: str) -> str:
    """Return the name and version that it prints."""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return shown.stdout.splitlines()[0].replace("ulogd Version", "ulogd2")


def start(path: str, namespace: Namespace, folder: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start it inside a namespace, in the foreground."""
    config = folder / "ulogd.conf"
    config.write_text(
        _CONFIG.format(
            folder=folder,
            output=output,
            group=stage.GROUP,
            plugins="\n".join(f'plugin="{plugin}"' for plugin in _plugins()),
        ),
        "ascii",
    )
    return namespace.call(
        lambda: subprocess.Popen([path, "--configfile", str(config)], stdin=subprocess.DEVNULL)
    )


def _plugins() -> list[Path]:
    root = Path("/")
    return [
        found[0]
        for plugin in _PLUGINS
        if (
            found := [
                path for folder in _FOLDERS for path in root.glob(f"{folder[1:]}/ulogd_{plugin}.so")
            ]
        )
    ]
