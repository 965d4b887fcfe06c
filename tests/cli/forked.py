"""Run the command line in a fork of the test process, which has imported it already."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn

# Commands import some of these modules only on demand.
from ocsf_nft import config, metrics, validation  # noqa: F401
from ocsf_nft.check import findings  # noqa: F401
from ocsf_nft.cli import formats, logs, main  # noqa: F401
from ocsf_nft.ocsf import mapper  # noqa: F401
from ocsf_nft.service import run as service_run  # noqa: F401
from ocsf_nft.service import status  # noqa: F401
from ocsf_nft.sources import replay  # noqa: F401

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

#: A fork closes no descriptor above this number: the tests open fewer.
_DESCRIPTORS: Final = 4096


def run(
    *arguments: str | Path,
    env: Mapping[str, str] | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """Run a command, wait until it exits, and return the result as `subprocess.run` does.

    ``options`` are those of ``subprocess.run``. A fork starts in a tenth of the time.
    """
    work = partial(become, [str(each) for each in arguments], env)
    defaults = {"text": True, "timeout": 60, "capture_output": "stdout" not in options}
    # The fork waits for no lock that another thread of the tests holds.
    return subprocess.run([sys.executable], check=check, preexec_fn=work, **(defaults | options))


def popen(
    *arguments: str | Path, env: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[Any]:
    """Start a command as `subprocess.Popen` does, which also has the ``options``."""
    work = partial(become, [str(each) for each in arguments], env)
    return subprocess.Popen([sys.executable], preexec_fn=work, **options)  # noqa: PLW1509


def become(arguments: Sequence[str], env: Mapping[str, str] | None = None) -> NoReturn:
    """Run a command in this process, a new fork of the test process, and exit with its code.

    Pass it to ``subprocess`` as ``preexec_fn``.
    """
    # A finalizer of the test process would close a descriptor that the command has reused by then.
    gc.freeze()
    os.closerange(3, _DESCRIPTORS)  # also the one that subprocess waits on until exec
    # As Python does at its start; subprocess and asyncio have undone it.
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code: object = 1
    try:
        warnings.resetwarnings()
        sys.argv = ["ocsf-nft", *arguments]
        sys.stdin, sys.stdout, sys.stderr = (
            open(number, mode, closefd=False)  # noqa: SIM115 - stays open until the process exits
            for number, mode in enumerate(("r", "w", "w"))
        )
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
            time.tzset()
        main()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001 - the fork must not go on as a test
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code if isinstance(code, int) else 1)
