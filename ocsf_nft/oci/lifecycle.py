"""Commands of the OCI runtime that the wrapper changes: create, run, restore and delete."""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from ocsf_nft.errors import AbsentError, FenceError, OcsfNftError, UnsupportedError
from ocsf_nft.oci.attach import add
from ocsf_nft.oci.hooks import with_hooks
from ocsf_nft.oci.runtime_log import report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ocsf_nft.oci.command_line import CommandLine
    from ocsf_nft.oci.settings import Settings


def create(given: CommandLine, container: str, settings: Settings) -> int:
    """Create a container, and fence it before ``start`` can start its first process.

    Return the exit code. A container that can't be fenced is deleted. Raises FenceError then.
    """
    code = _run(settings.runtime, *given.runtime)
    if code != 0:
        return code
    try:
        pid = _first_process(given, container, settings)
        add(
            settings.service,
            container,
            pid=pid,
            bundle=_bundle(given),
            root=given.options.get("root", ""),
        )
    except BaseException:
        _run(settings.runtime, *given.global_arguments, "delete", "--force", "--", container)
        raise
    return 0


def run(given: CommandLine, settings: Settings) -> NoReturn:
    """Replace this process by the runtime, which runs a container with our hooks.

    It is for the commands ``run`` and ``restore``, which create and start a container at once.
    Raises FenceError if the hooks can't be added, or if the runtime would not run them.
    """
    try:
        name = os.path.basename(os.path.realpath(settings.runtime))
        if given.command == "restore" and name != "runc":  # crun, for example, runs no hook then
            raise UnsupportedError(f"{name} is not known to run hooks at a restore: use runc")
        program = [os.path.abspath(sys.argv[0]), *settings.as_options()]
        root = given.options.get("root", "")
        with_hooks(_bundle(given), program, settings.service.seconds, root)
    except OcsfNftError as error:
        raise FenceError(
            f"ocsf-nft: container {given.container} does not start: {error}"
        ) from error
    become(settings.runtime, given.runtime)


def delete(given: CommandLine, container: str, settings: Settings) -> int:
    """Delete a container, then end its sandbox; return the exit code of the runtime.

    A container that the runtime does not delete may still run, so its sandbox continues. The
    service also notices the end of a namespace by itself, so its errors are only logged.
    """
    code = _run(settings.runtime, *given.runtime)
    if code == 0:
        try:
            settings.service.release_container(container, given.options.get("root", ""))
        except OcsfNftError as error:
            report(
                f"ocsf-nft: the sandbox of container {container} was not released: {error}",
                given.options,
                level="warning",
            )
    return code


def become(runtime: str, arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the runtime with these arguments."""
    os.execv(runtime, [runtime, *arguments])  # noqa: S606


def _bundle(given: CommandLine) -> str:
    options = given.options
    return options.get("bundle") or options.get("b") or os.getcwd()


def _first_process(given: CommandLine, container: str, settings: Settings) -> int:
    """Return the id of a container's first process, from the file that the engine asked for."""
    path = given.options.get("pid-file")
    try:
        if path is None:
            return int(_state(given, container, settings)["pid"])
        with open(path, encoding="ascii") as file:
            return int(file.read())
    except (OSError, ValueError, LookupError, RecursionError) as error:
        raise AbsentError(
            f"ocsf-nft: container {container} does not start: {settings.runtime} did not report "
            f"its process: {error}"
        ) from error


def _state(given: CommandLine, container: str, settings: Settings) -> dict[str, Any]:
    import subprocess  # noqa: PLC0415 - slow to import, and engines ask for a file

    command = [settings.runtime, *given.global_arguments, "state", "--", container]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    found = json.loads(done.stdout)
    return found if isinstance(found, dict) else {}


def _run(runtime: str, *arguments: str) -> int:
    """Run the runtime with our streams and descriptors; return its exit code.

    The container's first process becomes a child of the engine, as without the wrapper: the runtime
    exits, and the wrapper adopts no processes.
    """
    code = os.spawnv(os.P_WAIT, runtime, [runtime, *arguments])  # noqa: S606
    return code if code >= 0 else 128 - code
