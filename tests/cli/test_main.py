"""Exit codes and last messages of the command line."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, NoReturn

import pytest

from ocsf_nft import check, cli
from ocsf_nft.errors import SourceError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.mark.kernel  # for /proc/self/mem
def test_unexpected_failure_of_the_system_is_one_sentence() -> None:
    # /proc/self/mem can be opened, and reading its first byte fails.
    done = subprocess.run(
        [sys.executable, "-m", "ocsf_nft", "convert", "/proc/self/mem"],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (3, "")
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("ocsf-nft: ")
    assert "Input/output error" in sentence


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    """Restore the handler of Ctrl-C, which ``main`` resets at its end."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_interrupt_during_the_exit_shows_no_traceback() -> None:
    program = (
        "import atexit, os, signal, sys; from ocsf_nft.cli import main; "
        "atexit.register(os.kill, os.getpid(), signal.SIGINT); sys.argv[1:] = ['--help']; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_programming_error_is_a_traceback_and_threads_do_not_delay_the_exit() -> None:
    program = (
        "import threading, time; from ocsf_nft import cli\n"
        "def app():\n"
        "    threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "    raise RuntimeError('a mistake')\n"
        "cli.app = app\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: a mistake\n")


def test_end_waits_for_a_thread_that_is_about_to_end() -> None:
    program = (
        "import threading, time; from ocsf_nft import cli\n"
        "def app():\n"
        "    threading.Thread(target=lambda: (time.sleep(0.2), print('ended'))).start()\n"
        "    raise SystemExit(4)\n"
        "cli.app = app\n"
        "cli.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (4, "ended\n", "")


def _os_error(number: int, *names: str) -> OSError:
    return OSError(number, os.strerror(number), *names)


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [
        (UsageError("a mend"), "a mend", 2),
        (_os_error(errno.EMFILE), "the system failed: Too many open files", 3),
        (_os_error(errno.EACCES, "/a\nb"), r'the system failed: Permission denied ("/a\nb")', 3),
        (OSError("no number"), "the system failed: no number", 3),
        (
            ExceptionGroup("", [ExceptionGroup("", [_os_error(errno.EIO)]), SourceError("x")]),
            "the system failed: Input/output error",
            3,
        ),
        (ExceptionGroup("", [UsageError("a mend"), _os_error(errno.EIO)]), "a mend", 2),
    ],
)
def test_error_has_its_sentence_and_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    sentence: str,
    code: int,
) -> None:
    _make_app_raise(monkeypatch, error)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == code
    assert capsys.readouterr().err == f"ocsf-nft: {sentence}\n"


@pytest.mark.parametrize("scope", ["a command", "around it"])
def test_ctrl_c_exits_quietly_with_the_code_of_shells(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], scope: str
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["ocsf-nft", "check"])
    monkeypatch.setattr(check, "findings", interrupted)
    monkeypatch.setattr(cli.output, "prepare", lambda: None)
    if scope == "around it":
        monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 128 + signal.SIGINT
    assert capsys.readouterr() == ("", "")


def test_programming_error_is_not_hidden_by_a_failure_of_the_system(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _make_app_raise(monkeypatch, ExceptionGroup("", [_os_error(errno.EIO), KeyError("a")]))
    with pytest.raises(ExceptionGroup):
        cli.main()


def _make_app_raise(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def app() -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    monkeypatch.setattr(cli.output, "prepare", lambda: None)
