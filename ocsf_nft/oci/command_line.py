"""Command line of an OCI runtime (runc, crun), as container engines write it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Prefix of the wrapper's own options. The runtime does not get them.
_OWN: Final = "--ocsf-nft-"
#: Options with a value before the command: of runc, crun and youki.
_GLOBAL: Final = frozenset(
    ("log", "log-format", "log-level", "root", "criu", "rootless", "cgroup-manager")
)
#: Options with a value after the command: of create, run and restore. Not crun's ``--config``: a
#: hook finds only the config.json of the bundle.
_CREATING: Final = frozenset((
    "bundle", "b", "console-socket", "pidfd-socket", "pid-file", "preserve-fds", "image-path",
    "work-path", "parent-path", "manage-cgroups-mode", "network-lock", "empty-ns", "lsm-profile",
    "lsm-mount-context",
))  # fmt: skip
#: Commands that make a container.
CREATING: Final = frozenset(("create", "run", "restore"))
_OTHERS: Final = frozenset((
    "checkpoint", "delete", "events", "exec", "export", "features", "help", "info", "kill", "list",
    "mounts", "pause", "ps", "resume", "spec", "start", "state", "update", "h",
))  # fmt: skip


class CommandLine(NamedTuple):
    """Parts of a runtime's command line; a part that is not given is None.

    ``runtime`` has the arguments for the runtime. ``own`` has the values of the wrapper's own
    options, by name without the prefix ``--ocsf-nft-``. ``options`` has the other options that have
    a value, by name without dashes. ``container`` is the container's id.
    """

    runtime: tuple[str, ...]
    own: dict[str, str]
    command: str | None
    options: dict[str, str]
    container: str | None

    @property
    def global_arguments(self) -> tuple[str, ...]:
        """Return the runtime's arguments before the command."""
        _, _, at = _options(self.runtime, _GLOBAL)
        return self.runtime[:at]


def parse(arguments: Sequence[str]) -> CommandLine:
    """Return the parts of a runtime's command line; ``arguments`` has no program name.

    Raises UsageError for a command that this module does not know, if the command line could make a
    container all the same: such a container would start without a fence. Raises it too if an option
    of such a command could be one with a value, or follows the container: another bundle could be
    used than the one that is read.
    """
    _, _, at = _options(arguments, _GLOBAL)
    # Those after the command belong to it, such as the arguments of a program that `exec` starts.
    own = dict(_own_option(each) for each in arguments[:at] if each.startswith(_OWN))
    runtime = (*(each for each in arguments[:at] if not each.startswith(_OWN)), *arguments[at:])
    options, command, at = _options(runtime, _GLOBAL)
    if command is None:
        return CommandLine(runtime, own, None, options, None)
    rest = runtime[at + 1 :]
    if command not in CREATING | _OTHERS and CREATING & set(rest):
        raise UsageError(
            f"the runtime's command {quoted(command)} is unknown, and could start a container "
            "without a fence: update ocsf-nft, or use the runtime itself"
        )
    found, container, at = _options(rest, _CREATING if command in CREATING else frozenset())
    if command in CREATING and (unknown := [*(found.keys() - _CREATING), *rest[at + 1 :]]):
        raise UsageError(
            f"the argument {quoted(unknown[0])} of the runtime's command {command} is unknown, and "
            "could start a container without a fence: write known options before the container, "
            "or update ocsf-nft"
        )
    return CommandLine(runtime, own, command, options | found, container)


def _own_option(argument: str) -> tuple[str, str]:
    name, equals, value = argument.removeprefix(_OWN).partition("=")
    if not equals:
        raise UsageError(f"the option {argument} needs a value: write {argument}=VALUE")
    return name, value


def _options(
    arguments: Sequence[str], with_value: frozenset[str]
) -> tuple[dict[str, str], str | None, int]:
    """Return the options before the first positional argument, that argument, and its index.

    An option that is no word, such as crun's ``-bDIR``, has an empty value.
    """
    found: dict[str, str] = {}
    at = 0
    while at < len(arguments):
        each = arguments[at]
        if each == "--":  # all that follows is positional
            at += 1
            return found, arguments[at] if at < len(arguments) else None, at
        if not each.startswith("-") or each == "-":
            return found, each, at
        # Go's flags may have one dash or two.
        name, equals, value = each.lstrip("-").partition("=")
        if equals:
            found[name] = value
        elif name in with_value and at + 1 < len(arguments):
            at += 1
            found[name] = arguments[at]
        elif each[1] != "-" and len(name) > 1:
            found[name] = ""
        at += 1
    return found, None, at
