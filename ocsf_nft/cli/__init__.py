"""Command line of ocsf-nft.

Scripts read standard output. So it has only the requested data, for example events as JSON Lines.
All other text goes to standard error.
"""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

# For their effects, before typer is imported.
from ocsf_nft.cli import without_plugins, without_rich  # noqa: F401

# isort: split

import typer

from ocsf_nft.cli import output
from ocsf_nft.cli.change_sandboxes import add, change, release
from ocsf_nft.cli.check import check
from ocsf_nft.cli.config import config
from ocsf_nft.cli.convert import convert
from ocsf_nft.cli.demo import demo
from ocsf_nft.cli.events import events
from ocsf_nft.cli.explain import explain
from ocsf_nft.cli.fence import install, remove, verify
from ocsf_nft.cli.incident import incident
from ocsf_nft.cli.list_sandboxes import list_all, show
from ocsf_nft.cli.report import report
from ocsf_nft.cli.run import run
from ocsf_nft.cli.status import status
from ocsf_nft.cli.tail import tail
from ocsf_nft.cli.validate import validate
from ocsf_nft.cli.watch import watch
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable


def _print_version(is_requested: bool) -> None:
    if is_requested:
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
        "Fence a sandbox with nftables, and report every attempt to bypass its egress proxy as "
        "OCSF events.\n\n"
        "Exit codes: 0 success, 1 the answer is no, 2 not found or bad usage, "
        "3 the system can't do it (kernel, privilege, missing tool)."
    ),
    epilog="Try it: ocsf-nft demo (as root; leaves nothing behind).",
)


@app.callback()
def _options(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback has the effect
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", callback=_print_version, is_eager=True
        ),
    ] = False,
    log_format: Annotated[
        str | None,
        typer.Option(
            "--log-format",
            help="Form of the log records on standard error. Default: text on a terminal, JSON "
            "Lines elsewhere.",
            metavar="text|json",
            envvar="OCSF_NFT_LOG_FORMAT",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also write log records of level debug.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Write only log records of level warning or higher."),
    ] = False,
) -> None:
    """Set up the log on standard error from the options before the command's name."""
    from ocsf_nft.cli import logs  # noqa: PLC0415 - slow to import, and --help needs none

    context.obj = logs.log_settings(log_format, is_verbose=verbose, is_quiet=quiet)
    logs.to_stderr(context.obj)


_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "install": install,
    "verify": verify,
    "remove": remove,
    "run": run,
    "add": add,
    "set": change,
    "release": release,
    "list": list_all,
    "show": show,
    "watch": watch,
    "status": status,
    "events": events,
    "incident": incident,
    "report": report,
    "tail": tail,
    "convert": convert,
    "validate": validate,
    "explain": explain,
    "config": config,
    "check": check,
    "demo": demo,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)

_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells report it
_SYSTEM_FAILED: Final = 3
#: Time for ending threads to finish.
_THREAD_SECONDS: Final = 1.0
#: Errors that are reported in one sentence; all others are bugs in ocsf-nft.
_EXPECTED: Final = (OcsfNftError, OSError)


def main() -> None:
    """Run the command line, and exit with the code of the command or of its error.

    An OcsfNftError or OSError is printed as one sentence on standard error.
    """
    try:
        _main()
    except BaseException as ended:
        _leave_threads(ended)
        raise


def _leave_threads(ended: BaseException) -> None:
    """Exit the process if another thread is blocked, because Python would wait for it for ever.

    Other threads get one second to end first. ``ended`` is the exception that ended the command; it
    determines the exit code.
    """
    # A name server that does not answer, or a full pipe at standard output, may block a thread.
    until = time.monotonic() + _THREAD_SECONDS
    others = [each for each in threading.enumerate() if each is not threading.current_thread()]
    for each in others:
        if not each.daemon:
            each.join(max(0.0, until - time.monotonic()))
    if not any(each.is_alive() and not each.daemon for each in others):
        return
    if not isinstance(ended, SystemExit):  # a bug, which Python would print too late
        traceback.print_exception(ended)
        os._exit(1)
    os._exit(ended.code if isinstance(ended.code, int) else ended.code is not None)


def _main() -> None:
    output.prepare()
    try:
        app()
    except _EXPECTED as error:
        _fail(error)
    except ExceptionGroup as group:  # of tasks that failed together
        if group.split(_EXPECTED)[1] is not None:
            raise
        _fail(_first(group))
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    finally:
        # Only Python's own shutdown is left. It would print a traceback on Ctrl-C; from here on,
        # Ctrl-C ends the program silently.
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(error: Exception) -> NoReturn:
    output.show(f"ocsf-nft: {_sentence(error)}")
    raise SystemExit(error.exit_code if isinstance(error, OcsfNftError) else _SYSTEM_FAILED)


def _sentence(error: Exception) -> str:
    if not isinstance(error, OSError):
        return str(error)
    # The last resort: code that knows the purpose of the call raises an error of ours.
    file = "" if error.filename is None else f" ({quoted(os.fsdecode(error.filename))})"
    return f"the system failed: {error.strerror or error}{file}"
