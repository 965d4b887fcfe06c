"""Program ``ocsf-nft-oci``: an OCI runtime that fences containers, and an OCI hook."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import OcsfNftError
from ocsf_nft.oci import command_line, lifecycle
from ocsf_nft.oci.hooks import hook
from ocsf_nft.oci.runtime_log import report
from ocsf_nft.oci.settings import Settings, settings

if TYPE_CHECKING:
    from ocsf_nft.oci.command_line import CommandLine

#: First argument of the program as a hook.
_HOOK: Final = "hook"


def main() -> None:
    """Run the program, and exit with the runtime's code, or with the code of an error.

    It accepts the command line of the real runtime, which gets it unchanged. An error is one
    sentence on standard error and in the runtime's log.
    """
    options: dict[str, str] = {}
    try:
        given = command_line.parse(sys.argv[1:])
        options = given.options
        sys.exit(_dispatch(given, settings(given.own)))
    except OcsfNftError as error:
        sentence = str(error)
        report(sentence if sentence.startswith("ocsf-nft") else f"ocsf-nft: {sentence}", options)
        sys.exit(error.exit_code)


def _dispatch(given: CommandLine, found: Settings) -> int:
    if given.command == _HOOK:
        stage, root, *_ = *given.runtime[given.runtime.index(_HOOK) + 1 :], "", ""
        hook(stage, sys.stdin, found.service, root)
        return 0
    if given.container is not None:
        if given.command == "create":
            return lifecycle.create(given, given.container, found)
        if given.command == "delete":
            return lifecycle.delete(given, given.container, found)
        if given.command in command_line.CREATING:
            return lifecycle.run(given, found)
    return lifecycle.become(found.runtime, given.runtime)
