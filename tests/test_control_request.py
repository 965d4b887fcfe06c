"""Requests to the control API with the standard library."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft.control_request import ControlSocket, ProblemError, ServiceError, container_path
from tests.engines import stub

if TYPE_CHECKING:
    from collections.abc import Iterator

_PROGRAMS = ("ocsf_nft.oci.main", "ocsf_nft.cni.main")
#: Modules that are slow to import, with their own imports.
_SLOW = ("asyncio", "dataclasses", "http", "logging", "pathlib", "pydantic", "shutil", "tomllib")
_IMPORTED = """
import sys
before = set(sys.modules)
import {}
print(*sorted(set(sys.modules) - before))
"""


@pytest.mark.parametrize("program", _PROGRAMS)
def test_program_imports_little(program: str) -> None:
    done = subprocess.run(
        # Without the finder of an editable installation, which imports much.
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(_root())!r})"
         + _IMPORTED.format(program)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    imported = done.stdout.split()
    assert [name for name in imported if name.partition(".")[0] in _SLOW] == []
    assert len([name for name in imported if name.startswith("ocsf_nft")]) <= 20


def _root() -> Path:
    return Path(__file__).parents[1]


def test_request_returns_the_answer(tmp_path: Path) -> None:
    with stub.serving(tmp_path / "s") as service:
        service.answer = lambda _request: (201, {"sandbox": {"name": "ü"}})
        found = ControlSocket(str(tmp_path / "s")).request("PUT", "/v1/x%2Fy", {"a": [1, "ü"]})
        assert found == {"sandbox": {"name": "ü"}}
        service.answer = lambda _request: (204, {})
        assert ControlSocket(str(tmp_path / "s")).request("DELETE", "/v1/x") == {}
    first, second = service.requests
    assert (first.method, first.path, first.body) == ("PUT", "/v1/x%2Fy", {"a": [1, "ü"]})
    assert (second.method, second.path, second.body) == ("DELETE", "/v1/x", {})


@pytest.mark.parametrize(
    ("problem", "sentence"),
    [
        ({"detail": "it is full", "title": "x"}, "it is full"),
        ({"title": "Conflict"}, "Conflict"),
        ({"detail": 1}, "the service answered with status 409 and no reason"),
        ({"detail": "a\nb"}, '"a\\nb"'),
    ],
)
def test_problem_is_an_error_with_its_sentence(
    tmp_path: Path, problem: dict[str, object], sentence: str
) -> None:
    with stub.serving(tmp_path / "s") as service:
        service.answer = lambda _request: (409, problem)
        with pytest.raises(ProblemError) as raised:
            ControlSocket(str(tmp_path / "s")).request("PUT", "/v1/x", {})
    assert (raised.value.status, str(raised.value)) == (409, sentence)


@contextlib.contextmanager
def _answering(path: Path, *parts: bytes, pause: float = 0.0) -> Iterator[None]:
    """Answer one connection with bytes, with a pause after each part, and close it."""
    ended = threading.Event()

    def answer() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            for part in parts:
                connection.sendall(part)
                ended.wait(pause)

    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10000000\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
    ],
)
def test_answer_of_another_program_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with (
        _answering(tmp_path / "s", answer),
        pytest.raises(ServiceError, match="is no control socket of ocsf-nft"),
    ):
        ControlSocket(str(tmp_path / "s")).request("GET", "/v1/status")


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}",
        b"HTTP/1.1 201 Created\r\nContent-Length: 9\r\n\r\n",
    ],
)
def test_service_that_ends_before_its_answer_is_an_error(tmp_path: Path, answer: bytes) -> None:
    with (
        _answering(tmp_path / "s", answer),
        pytest.raises(ServiceError, match="has ended before it answered"),
    ):
        ControlSocket(str(tmp_path / "s")).request("GET", "/v1/status")


def test_time_limit_is_for_the_whole_answer(tmp_path: Path) -> None:
    parts = [b"HTTP/1.1 200 OK\r\n", *[b"X: y\r\n"] * 50]
    with (
        _answering(tmp_path / "s", *parts, pause=0.1),
        pytest.raises(ServiceError, match=r"did not answer within 0\.3 s"),
    ):
        ControlSocket(str(tmp_path / "s"), 0.3).request("GET", "/v1/status")


_BLOCKED = """
import signal, sys
from ocsf_nft.control_request import ControlSocket
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
ControlSocket(sys.argv[1], 0.1).request("GET", "/v1/status")
"""


def test_time_limit_holds_although_the_engine_has_blocked_its_signal(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen()
        done = subprocess.run(
            [sys.executable, "-c", _BLOCKED, tmp_path / "s"],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    assert "did not answer within 0.1 s" in done.stderr


def test_service_that_is_down_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"does not answer at .* \(No such file"):
        ControlSocket(str(tmp_path / "s")).request("GET", "/v1/status")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "s"))
    with pytest.raises(ServiceError, match=r"\(Connection refused\)"):
        ControlSocket(str(tmp_path / "s")).request("GET", "/v1/status")
    with pytest.raises(ServiceError, match="does not answer"):
        ControlSocket("x" * 200).request("GET", "/v1/status")


def test_path_of_a_container_is_quoted_and_unique_in_its_scope() -> None:
    assert container_path("3f" * 32, "/a") == f"/v1/containers/{'3f' * 32}"
    assert container_path("web", "/a") != container_path("web", "/b")
    assert container_path("a+b/c", "").startswith("/v1/containers/a%2Bb%2Fc-")
    # From bytes that are no UTF-8.
    assert container_path("web", "/\udcff") != container_path("web", "/\udcfe")
    assert container_path("\udcff", "").isascii()
