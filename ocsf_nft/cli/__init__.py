"""The command line: thin, and a contract that scripts depend on.

Standard output carries what was asked for and nothing else: events as JSON Lines (``tail``, and
``convert --format``: as lines to read, or in syslog's form), ``install --dry-run``: the ruleset.
All else that is for people goes to standard error.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from typing import Annotated, Final, NoReturn

import typer

from ocsf_nft.cli import output, plain_structlog  # noqa: F401 - for its effect, first
from ocsf_nft.cli.check import check
from ocsf_nft.cli.config import config
from ocsf_nft.cli.convert import convert
from ocsf_nft.cli.demo import demo
from ocsf_nft.cli.events import events
from ocsf_nft.cli.explain import explain
from ocsf_nft.cli.fence import install, remove, verify
from ocsf_nft.cli.run import run
from ocsf_nft.cli.status import status
from ocsf_nft.cli.tail import tail
from ocsf_nft.cli.validate import validate
from ocsf_nft.errors import OcsfNftError


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - slow to import

        output.write(f"ocsf-nft {version('ocsf-nft')}\n".encode())
        raise typer.Exit


app = typer.Typer(
    name="ocsf-nft",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Fence a sandbox with nftables, and report every attempt to get round its egress proxy "
        "as OCSF events.\n\n"
        "Exit codes: 0 fine, 1 the answer is no, 2 absent or bad usage, "
        "3 the system can't (kernel, privilege, missing tool)."
    ),
    epilog="Try it: ocsf-nft demo (as root; leaves nothing behind).",
)


@app.callback()
def _options(
    *,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Show the version and exit.",
            callback=_print_version,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Accept the options that stand before a command."""


for command in (
    install,
    verify,
    remove,
    run,
    status,
    events,
    tail,
    convert,
    validate,
    explain,
    config,
    check,
    demo,
):
    app.command()(command)

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
_SYSTEM_FAILED: Final = 3
#: What threads that are at their end may take.
_THREAD_SECONDS: Final = 1.0
#: What is told in a sentence; anything else is a mistake in ocsf-nft.
_TOLD: Final = (OcsfNftError, OSError)


def main() -> None:
    """Run the command line; every expected failure is one sentence and its exit code."""
    try:
        _main()
    except BaseException as ended:
        _leave_threads(ended)
        raise


def _leave_threads(ended: BaseException) -> None:
    """End at once where a thread waits for what never comes: Python would wait for it for ever.

    Such as a reader of standard output that does not read, or an answer of a name server.
    """
    until = time.monotonic() + _THREAD_SECONDS
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for each in others:
        if not each.daemon:
            each.join(max(0.0, until - time.monotonic()))
    if not any(each.is_alive() and not each.daemon for each in others):
        return
    if not isinstance(ended, SystemExit):  # a mistake of ours, which Python would tell too late
        traceback.print_exception(ended)
        os._exit(1)
    os._exit(ended.code if isinstance(ended.code, int) else ended.code is not None)


def _main() -> None:
    output.prepare()
    try:
        app()
    except _TOLD as error:
        _fail(error)
    except ExceptionGroup as group:  # of tasks that failed together
        if group.split(_TOLD)[1] is not None:
            raise
        _fail(_first(group))
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    finally:
        # Only Python's own shutdown is left, which would answer an impatient Ctrl-C with a
        # traceback: from here it ends the program without a word.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(error: Exception) -> NoReturn:
    output.say(f"ocsf-nft: {_sentence(error)}")
    raise SystemExit(error.exit_code if isinstance(error, OcsfNftError) else _SYSTEM_FAILED)


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    # The net below the places that know what it was for.
    place = "" if error.filename is None else f" ({error.filename!r})"
    return f"the system failed: {error.strerror or error}{place}"
