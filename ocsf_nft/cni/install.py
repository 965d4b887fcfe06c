"""Installation of the CNI plugin on a node of Kubernetes: `python -m ocsf_nft.cni.install`."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ocsf_nft.cni import node_files
from ocsf_nft.cni.errors import CniError
from ocsf_nft.cni.network_file import add_plugin, network_file, remove_plugin
from ocsf_nft.cni.request import Request
from ocsf_nft.control_request import SECONDS, SOCKET
from ocsf_nft.errors import DeliveryError, OcsfNftError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Time between two checks of the network configuration, which other programs may write again.
_CHECK_SECONDS: Final = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Install or remove the plugin; return the exit code."""
    given = _parser().parse_args(arguments)
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda _number, _frame: ended.set())
    try:
        if given.remove:
            _remove(given)
            return 0
        plugin = _plugin(given)
        _install(given)
        if given.watch:
            _watch(given, plugin, ended)
        else:
            _add(given, plugin, is_required=True)
    except OcsfNftError as error:
        _report(str(error))
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ocsf_nft.cni.install", description=main.__doc__)
    parser.add_argument(
        "--host", type=Path, default=Path("/"), help="mount point of the node's file system"
    )
    parser.add_argument(
        "--folder",
        type=_absolute,
        default=Path("/opt/ocsf-nft-cni"),
        help="folder of the plugin's files",
    )
    parser.add_argument(
        "--programs", type=_absolute, default=Path("/opt/cni/bin"), help="folder of CNI plugins"
    )
    parser.add_argument(
        "--networks", type=_absolute, default=Path("/etc/cni/net.d"), help="network configurations"
    )
    parser.add_argument("--control", default=SOCKET, help="control socket of the service")
    parser.add_argument("--timeout", type=float, default=SECONDS, help="time limit, in seconds")
    parser.add_argument("--policy", help="[[attach]] table for all pods")
    parser.add_argument(
        "--watch", action="store_true", help="add the plugin again when it is missing; do not end"
    )
    parser.add_argument("--remove", action="store_true", help="remove the plugin and its files")
    return parser


def _absolute(text: str) -> Path:
    if not text.startswith("/"):
        raise argparse.ArgumentTypeError(f"{text} is no absolute path on the node")
    return Path(text)


def _plugin(given: argparse.Namespace) -> dict[str, Any]:
    """Return the settings of the plugin; raises UsageError if it would refuse them."""
    plugin = {"control": given.control, "timeout": given.timeout}
    if given.policy is not None:
        plugin["policy"] = given.policy
    request = Request("ADD", "", plugin, None, None, {})
    try:
        _ = request.service, request.policy
    except CniError as error:
        raise UsageError(str(error)) from error
    return plugin


def _install(given: argparse.Namespace) -> None:
    try:
        node_files.install(given.host, given.folder, given.programs)
    except OSError as error:
        raise DeliveryError(f"the plugin's files can't be written: {error}") from error
    _report(f"installed {given.programs}/ocsf-nft-cni")


def _watch(given: argparse.Namespace, plugin: dict[str, Any], ended: threading.Event) -> None:
    """Add the plugin whenever it is missing, until ``ended`` is set; report each error once.

    For example, another program has written only a part of the network configuration yet.
    """
    reported = None
    while True:
        try:
            _add(given, plugin, is_required=False)
            reported = None
        except OcsfNftError as error:
            if str(error) != reported:
                reported = str(error)
                _report(reported)
        if ended.wait(_CHECK_SECONDS):
            return


def _add(given: argparse.Namespace, plugin: dict[str, Any], *, is_required: bool) -> None:
    """Add the plugin to the network configuration; a missing one is an error if required."""
    path = network_file(_networks(given))
    if path is None:
        if is_required:
            raise OcsfNftError(f"{given.networks} has no network configuration yet: use --watch")
        return
    if add_plugin(path, plugin):
        _report(f"added the plugin to {given.networks}/{path.name}")


def _remove(given: argparse.Namespace) -> None:
    """Remove the plugin from all lists first: a list with a missing program starts no pod."""
    folder = _networks(given)
    for path in sorted(folder.glob("*.conflist")):
        if remove_plugin(path):
            _report(f"removed the plugin from {given.networks}/{path.name}")
    node_files.remove(given.host, given.folder, given.programs)


def _networks(given: argparse.Namespace) -> Path:
    folder: Path = given.host / given.networks.relative_to("/")
    return folder


def _report(sentence: str) -> None:
    sys.stderr.write(f"ocsf-nft: {sentence}\n")


if __name__ == "__main__":
    sys.exit(main())
