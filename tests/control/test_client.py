"""Clients of the control API: the Python class for asyncio, and the function for commands."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import inspect
import ipaddress
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ocsf_nft
from ocsf_nft.control import answers, http_call
from ocsf_nft.control.http_call import call, sandbox_target
from ocsf_nft.errors import (
    AbsentError,
    ConflictError,
    DeliveryError,
    FenceError,
    OcsfNftError,
    SourceError,
    UnsupportedError,
    UsageError,
)
from ocsf_nft.state.state_db import FILE
from tests.control.engine import serving, wait_until
from tests.control.test_event_stream import events, lines
from tests.delivery.stores import Store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.control.engine import Served


@pytest.fixture
async def client(served: Served) -> AsyncIterator[ocsf_nft.Client]:
    async with ocsf_nft.Client(served.path) as made:
        yield made


async def test_client_adds_changes_shows_and_releases_sandboxes(
    client: ocsf_nft.Client, served: Served
) -> None:
    proxy = [f"{ipaddress.ip_address('10.0.0.1')}:3128"]
    added = await client.put("a", netns=Path("/run/netns/a"), proxy=proxy, labels={"k": "v"})
    assert added["sandbox"]["policy"] == {
        "netns": "/run/netns/a", "proxy": proxy, "labels": {"k": "v"},
    }  # fmt: skip
    assert added["changes"] == []
    assert (await client.put("a", proxy=proxy))["changes"] == ["policy: changed"]
    assert [each["name"] for each in await client.sandboxes()] == ["a"]
    assert (await client.sandbox("a"))["counts"][0]["rule"] == "egress"
    assert (await client.release("a"))["counts"][0]["reported"] == 7
    assert await client.sandboxes() == []
    assert (await client.status())["sandboxes"] == 0
    await client.reload()
    assert served.reloads == 1


async def test_client_works_for_different_sandboxes_in_parallel(
    client: ocsf_nft.Client, served: Served
) -> None:
    served.sandboxes.may_end.clear()
    async with asyncio.TaskGroup() as group:
        for number in range(20):
            group.create_task(client.put(f"s{number}", proxy=["10.0.0.1:1"]))
        await wait_until(lambda: len(served.sandboxes.calls) == 20)
        served.sandboxes.may_end.set()
    assert len(await client.sandboxes()) == 20


_ERRORS: list[OcsfNftError] = [
    AbsentError("there is no network namespace at /x"),
    ConflictError("netns can't change: release it first"),
    UsageError("a value is wrong: correct it"),
    FenceError("nft failed"),
    UnsupportedError("no nftables"),
    SourceError("no NFLOG"),
    DeliveryError("no room"),
]


@pytest.mark.parametrize("error", _ERRORS, ids=lambda error: type(error).__name__)
async def test_error_of_the_service_has_the_same_class_and_sentence(
    client: ocsf_nft.Client, served: Served, error: OcsfNftError
) -> None:
    served.sandboxes.error = error
    with pytest.raises(OcsfNftError) as raised:
        await client.put("a", proxy=["10.0.0.1:1"])
    assert (type(raised.value), str(raised.value)) == (type(error), str(error))
    with pytest.raises(OcsfNftError) as raised:
        await asyncio.to_thread(
            call, served.path, "PUT", sandbox_target("a"), {"proxy": ["10.0.0.1:1"]}
        )
    assert (type(raised.value), str(raised.value)) == (type(error), str(error))


@pytest.mark.parametrize(
    "name", ["", "a/b", "..", "a b", "é", "a\n", "%2e", "a?x=1", "#", "\udcff"]
)
async def test_wrong_name_is_an_error_and_no_other_path(
    client: ocsf_nft.Client, served: Served, name: str
) -> None:
    with pytest.raises(UsageError, match=r"is no sandbox name|there is nothing at this path"):
        await client.put(name, proxy=["10.0.0.1:1"])
    with pytest.raises(UsageError, match=r"is no sandbox name|there is nothing at this path"):
        await asyncio.to_thread(call, served.path, "DELETE", sandbox_target(name))
    assert served.sandboxes.calls == []


@pytest.mark.parametrize(
    "given",
    [
        {"netns": "/run/\udcff"},
        {"netns": Path("/run/\udcff")},
        {"group": 1 << 64},
        {"labels": {1: "x"}},
        {"if_match": '"0a"\r\nX-Other: 1'},
    ],
    ids=str,
)
async def test_value_that_can_not_be_sent_is_an_error(
    client: ocsf_nft.Client, served: Served, given: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=r"can't be sent as JSON|is no entity tag"):
        await client.put("a", **given)
    assert served.sandboxes.calls == []


async def test_unknown_key_and_unknown_sandbox_are_errors(client: ocsf_nft.Client) -> None:
    with pytest.raises(UsageError, match="there is no key prxy: did you mean proxy"):
        await client.put("a", prxy=[])
    with pytest.raises(AbsentError, match="there is no sandbox a"):
        await client.release("a")


async def test_client_without_a_service_is_one_sentence(folder: Path) -> None:
    path = folder / "none"
    async with ocsf_nft.Client(path) as client:
        for _ in range(2):
            with pytest.raises(AbsentError, match=f"no service listens at {path}"):
                await client.status()
            path.touch(exist_ok=True)
    with pytest.raises(AbsentError, match=f"no service listens at {path}"):
        call(path, "GET", "/v1/status")
    path.unlink()
    with pytest.raises(AbsentError, match=f"no service listens at {path}"):
        call(path, "GET", "/v1/status")
    with pytest.raises(UsageError, match="the client is not open: use it in `async with`"):
        await ocsf_nft.Client(path).status()


_AS_OTHER_USER = """
import os, sys, asyncio, pathlib
import ocsf_nft
from ocsf_nft.control.http_call import call
async def main():
    async with ocsf_nft.Client(sys.argv[1]) as client:
        await client.status()
os.setgroups([]), os.setgid(65534), os.setuid(65534)
for work in (lambda: asyncio.run(main()), lambda: call(pathlib.Path(sys.argv[1]), "GET", "/")):
    try:
        work()
    except ocsf_nft.UnsupportedError as error:
        print(error)
"""


async def test_client_without_permission_is_one_sentence(folder: Path, served: Served) -> None:
    folder.chmod(0o755)  # noqa: ASYNC240 - quick
    other = subprocess.Popen(  # noqa: ASYNC220 - quick
        [sys.executable, "-c", _AS_OTHER_USER, served.path], stdout=subprocess.PIPE, text=True
    )
    printed, _ = await asyncio.to_thread(other.communicate)
    sentence = (
        f"connecting to {served.path} is not permitted: run as root, or as a member of the "
        "socket's group\n"
    )
    assert printed == 2 * sentence


class _Fake:
    """Server that answers each connection with fixed bytes."""

    def __init__(self, path: Path, data: bytes, *, is_open: bool) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self._data = data
        self._is_open = is_open
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                client.recv(1 << 16)
                client.sendall(self._data)
                if self._is_open:
                    self._held.append(client)
                else:
                    client.close()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for each in self._held:
            each.close()


@pytest.fixture
def fake(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    data, is_open = request.param
    made = _Fake(folder / "c", data, is_open=is_open)
    yield folder / "c"
    made.close()


_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n"


@pytest.mark.parametrize(
    ("fake", "sentence"),
    [
        ((b"", False), "did not answer completely"),
        ((b"SSH-2.0-OpenSSH\r\n", False), "did not answer completely"),
        ((_OK + b"{}", False), "did not answer completely"),
        ((_OK + b"no JSON at", False), "did not answer completely"),
        ((_OK, True), "did not answer completely .no answer within 0 s."),
        ((b"HTTP/1.1 500 X\r\nContent-Length: 2\r\n\r\n{}", False), "HTTP status 500"),
        ((b"HTTP/1.1 404 X\r\nContent-Length: 4\r\n\r\n\xff\xff{}", False), "HTTP status 404"),
    ],
    indirect=["fake"],
    ids=str,
)
async def test_wrong_answer_is_an_error_in_one_sentence(
    fake: Path, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "ANSWER_SECONDS", 0.3)
    async with ocsf_nft.Client(fake) as client:
        with pytest.raises(DeliveryError, match=sentence):
            await client.status()
    with pytest.raises(DeliveryError, match=sentence):
        await asyncio.to_thread(call, fake, "GET", "/v1/status")


async def test_hundred_calls_at_once_are_answered(client: ocsf_nft.Client, served: Served) -> None:
    served.sandboxes.may_end.clear()
    calls = [asyncio.create_task(client.put(f"a{i}", proxy=["10.0.0.1:1"])) for i in range(100)]
    await wait_until(lambda: len(served.sandboxes.calls) == 100)
    served.sandboxes.may_end.set()
    await asyncio.gather(*calls)
    assert len(served.sandboxes.found) == 100


@pytest.mark.parametrize("fake", [(_OK + b"[1, 2, 34]", False)], indirect=True)
async def test_answer_that_is_no_object_is_an_error(fake: Path) -> None:
    async with ocsf_nft.Client(fake) as client:
        with pytest.raises(DeliveryError, match="no JSON object"):
            await client.sandboxes()


@pytest.mark.parametrize("fake", [(_OK + b'{"a": bad\n', False)], indirect=True)
async def test_event_that_is_no_json_is_an_error(fake: Path) -> None:
    async with ocsf_nft.Client(fake) as client:
        with pytest.raises(DeliveryError, match="did not answer completely"):
            async for _ in client.events():
                pass


async def test_events_are_yielded_and_followed(folder: Path) -> None:
    async with Store(folder / FILE) as store:
        end = lambda: store.state.database.end  # noqa: E731
        async with (
            serving(folder / "c", store=folder / FILE, end=end) as served,
            ocsf_nft.Client(served.path) as client,
        ):
            # One is larger than a part of the stream.
            old, new = [*events(5), *events(1, padding=300_000)], events(2)
            await store.put(lines(old))
            assert [event async for event in client.events()] == old
            since = dt.datetime.now() - dt.timedelta(minutes=1)  # noqa: DTZ005 - the local time
            assert [event async for event in client.events(since=since)] == old
            assert [event async for event in client.events(since="0s", sandbox="x")] == []
            high = [event for event in old if event["severity_id"] >= 4]
            assert [event async for event in client.events(severity="high")] == high
            with pytest.raises(UsageError, match='severity "odd" is unknown'):
                await anext(aiter(client.events(severity="odd")))
            received: list[dict[str, Any]] = []
            async with asyncio.timeout(20):
                async for event in client.events(follow=True):
                    received.append(event)
                    if len(received) == len(old):
                        await store.put(lines(new))
                    if len(received) == len(old) + len(new):
                        break
            assert received == old + new


async def test_stop_of_the_service_ends_followed_events(folder: Path) -> None:
    async with (
        Store(folder / FILE) as store,
        ocsf_nft.Client(folder / "c") as client,
        contextlib.AsyncExitStack() as stack,
    ):
        end = lambda: store.state.database.end  # noqa: E731
        await stack.enter_async_context(serving(folder / "c", store=folder / FILE, end=end))
        stored = events(3)
        await store.put(lines(stored))
        received = []
        async with asyncio.timeout(20):
            async for event in client.events(follow=True):
                received.append(event)
                await stack.aclose()
        assert received == stored


async def test_interrupted_events_are_an_error(folder: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n{}\n\r\n"
    fake = _Fake(folder / "c", head, is_open=False)
    received = []
    try:
        async with ocsf_nft.Client(folder / "c") as client:
            stream = aiter(client.events())
            received.append(await anext(stream))
            with pytest.raises(DeliveryError, match="did not answer completely"):
                await anext(stream)
    finally:
        fake.close()
    assert received == [{}]


_STREAM = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (_STREAM + b"3\r\n{}\n\r\n", "did not answer completely"),
        (_STREAM + b"3\r\n{}\n\r\n9\r\n{", "did not answer completely"),
        (_STREAM + b"3\r\n{}\n\r\n60\r\n" + 96 * b"x" + b"\r\n0\r\n\r\n", "more than 64 bytes"),
    ],
    ids=["no end", "half a part", "long line"],
)
def test_interrupted_events_are_an_error_of_the_function_too(
    folder: Path, answer: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_call, "_LINE_BYTES", 64)
    fake = _Fake(folder / "c", answer, is_open=False)
    received: list[bytes] = []
    try:
        with pytest.raises(answers.IncompleteError, match=sentence):
            received.extend(http_call.json_lines(folder / "c", "/v1/events"))
    finally:
        fake.close()
    assert received == [b"{}"]


def test_lines_in_any_parts_are_joined(folder: Path) -> None:
    parts = (b'{"a":1}\n{"b', b'":', b"2}\n\n", b'{"c":3}\n')
    body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    fake = _Fake(folder / "c", _STREAM + body, is_open=False)
    try:
        found = list(http_call.json_lines(folder / "c", "/v1/events"))
    finally:
        fake.close()
    assert found == [b'{"a":1}', b'{"b":2}', b"", b'{"c":3}']


async def test_sandbox_of_the_configuration_file_is_a_conflict(
    client: ocsf_nft.Client, served: Served
) -> None:
    await client.put("a", proxy=["10.0.0.1:1"])
    found = served.sandboxes.found["a"]
    served.sandboxes.found["a"] = replace(found, origin="file")
    with pytest.raises(ConflictError, match="sandbox a is in the configuration file"):
        await client.put("a", proxy=["10.0.0.1:2"])


def test_methods_of_the_client_have_types() -> None:
    public = [
        method
        for name, method in inspect.getmembers(ocsf_nft.Client, inspect.isfunction)
        if not name.startswith("_")
    ]
    assert len(public) == 7
    for method in public:
        assert "return" in inspect.get_annotations(method), method


def test_calls_of_commands_import_nothing_heavy() -> None:
    code = "import sys, ocsf_nft.control.http_call; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pydantic", "aiohttp", "asyncio", "orjson"} & set(done.stdout.split())


def test_client_without_the_extra_is_one_sentence(folder: Path) -> None:
    code = (
        "import sys, asyncio, ocsf_nft\n"
        "sys.modules['aiohttp'] = None\n"
        "async def main():\n"
        "    async with ocsf_nft.Client('x'): pass\n"
        "try: asyncio.run(main())\n"
        "except ocsf_nft.UnsupportedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "ocsf_nft.Client needs the extra ocsf-nft[http]: install it\n"
    assert folder.exists()
