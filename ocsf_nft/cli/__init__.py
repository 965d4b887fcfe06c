"""Command line of ocsf-nft.

Scripts read standard output. So it has only the requested data, for example events as JSON Lines.
All other text goes to standard error.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Final, NoReturn

# Without plugins, for its effect: before a command imports pydantic.
from ocsf_nft.cli import output, without_plugins  # noqa: F401
from ocsf_nft.cli.program import app
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.quoted import quoted

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
        import traceback  # noqa: PLC0415 - slow, and needed only for a bug

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
