"""The program ocsf-nft: its options, and the list of its commands."""

# ruff: noqa: PLC0415 - what an option needs is imported when it is given, so that --help is quick

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Final

import click

from ocsf_nft.cli import output
from ocsf_nft.cli.lazy_command import LazyCommand
from ocsf_nft.version import VERSION

if TYPE_CHECKING:
    from collections.abc import Callable

NAME: Final = "ocsf-nft"
#: A shell sets it to ask for the completion script, or for the words that complete a command.
COMPLETION_VARIABLE: Final = "_OCSF_NFT_COMPLETE"

# Each summary is also the first sentence of the command's docstring. A test compares them.
_COMMANDS: Final = (
    LazyCommand("install", "fence", "Fence a sandbox, or replace its fence, in one transaction."),
    LazyCommand("verify", "fence", "Compare a sandbox's fence with what was installed."),
    LazyCommand("remove", "fence", "Remove a sandbox's fence."),
    LazyCommand("run", "run", "Watch fenced sandboxes and report each bypass attempt."),
    LazyCommand("add", "change_sandboxes", "Add a sandbox to a running service, which fences it."),
    LazyCommand(
        "set",
        "change_sandboxes",
        "Change the policy of a sandbox that a running service watches.",
        attribute="change",
    ),
    LazyCommand(
        "release",
        "change_sandboxes",
        "Release a sandbox of a running service: remove its fence.",
    ),
    LazyCommand(
        "list",
        "list_sandboxes",
        "List the sandboxes of a running service.",
        attribute="list_all",
    ),
    LazyCommand(
        "show", "list_sandboxes", "Show a sandbox: its state, its policy and its packet counts."
    ),
    LazyCommand(
        "watch", "watch", "Watch a sandbox live: its attempts, processes, counts and fence."
    ),
    LazyCommand("status", "status", "Show whether every refused packet is accounted for."),
    LazyCommand("events", "events", "List stored events: the last 20 that match the filters."),
    LazyCommand(
        "incident", "incident", "Show all facts about an incident, or list the open findings."
    ),
    LazyCommand("report", "report", "Write a report about an incident or a time span as HTML."),
    LazyCommand("tail", "tail", "Show the last events of a file, or the last stored ones."),
    LazyCommand("convert", "convert", "Convert kernel log text to OCSF events, one event a line."),
    LazyCommand(
        "validate", "validate", "Check events of any product against the published OCSF schema."
    ),
    LazyCommand("explain", "explain", "Show each field of a log line or of an event."),
    LazyCommand("config", "config", "Check a configuration file, and show what a run would do."),
    LazyCommand("check", "check", "Check whether a fence works here, and what would block it."),
    LazyCommand("demo", "demo", "Fence a throw-away sandbox, try to get out, show the events."),
)


class _Program(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(self.commands)  # in our order, where click sorts them


def _flag(act: Callable[[], None]) -> Callable[[click.Context, click.Parameter, bool], None]:
    """Return the callback of a flag that makes the program call ``act`` and exit."""

    def called(context: click.Context, _: click.Parameter, is_given: bool) -> None:
        if is_given and not context.resilient_parsing:
            act()
            context.exit()

    return called


def _print_version() -> None:
    output.write(f"{NAME} {VERSION}\n".encode())


def _install_completion() -> None:
    from ocsf_nft.cli import completion

    shell = completion.shell()
    text = completion.script(program, NAME, COMPLETION_VARIABLE, shell)
    path = completion.install(shell, text)
    output.show(f"{shell} completion installed in {path}: it works in new terminals")


def _show_completion() -> None:
    from ocsf_nft.cli import completion

    text = completion.script(program, NAME, COMPLETION_VARIABLE, completion.shell())
    output.write(text.encode())


@click.group(
    name=NAME,
    cls=_Program,
    commands=_COMMANDS,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True},
    help=(
        "Fence a sandbox with nftables, and report every attempt to bypass its egress proxy as "
        "OCSF events.\n\n"
        "Exit codes: 0 success, 1 the answer is no, 2 not found or bad usage, "
        "3 the system can't do it (kernel, privilege, missing tool)."
    ),
    epilog="Try it: ocsf-nft demo (as root; leaves nothing behind).",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_flag(_print_version),
    help="Show the version and exit.",
)
@click.option(
    "--log-format",
    metavar="text|json",
    envvar="OCSF_NFT_LOG_FORMAT",
    show_envvar=True,
    help="Form of the log records on standard error. Default: text on a terminal, JSON "
    "Lines elsewhere.",
)
@click.option("--verbose", "-v", is_flag=True, help="Also write log records of level debug.")
@click.option(
    "--quiet", "-q", is_flag=True, help="Write only log records of level warning or higher."
)
@click.option(
    "--install-completion",
    is_flag=True,
    expose_value=False,
    callback=_flag(_install_completion),
    help="Install completion for the current shell.",
)
@click.option(
    "--show-completion",
    is_flag=True,
    expose_value=False,
    callback=_flag(_show_completion),
    help="Show completion for the current shell, to copy it or customize the installation.",
)
@click.pass_context
def program(context: click.Context, *, log_format: str | None, verbose: bool, quiet: bool) -> None:
    """Set up the log on standard error from the options before the command's name."""
    from ocsf_nft.cli import logs

    context.obj = logs.log_settings(log_format, is_verbose=verbose, is_quiet=quiet)
    logs.to_stderr(context.obj)


def app() -> None:
    """Run the command that the arguments of this process name.

    If a shell asks for completion, print the answer instead. Raises SystemExit if the command
    fails, or if its arguments are wrong.
    """
    if request := os.environ.get(COMPLETION_VARIABLE):
        from ocsf_nft.cli import completion

        raise SystemExit(completion.answer(program, NAME, COMPLETION_VARIABLE, request))
    # click's own main() would end with 1 on Ctrl-C.
    try:
        with program.make_context(NAME, sys.argv[1:]) as context:
            program.invoke(context)
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
