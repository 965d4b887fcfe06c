"""NATS sink against nats-server of Debian."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import itertools
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

import nkeys  # type: ignore[import-untyped]  # it ships no types
import orjson
import pytest
from nats.aio.client import Client
from nats.js.api import DiscardPolicy, StreamConfig

from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks import nats_link
from ocsf_nft.delivery.sinks.base import DELIVERED
from ocsf_nft.delivery.sinks.nats import Login, Nats
from ocsf_nft.delivery.sinks.nats_link import NatsConnection
from ocsf_nft.errors import DeliveryError
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.operational_events import lifecycle
from tests.conformance.attributed import ATTRIBUTED
from tests.conformance.corpus import CONTEXT, NOW_NS, TIME_NS
from tests.delivery.sinks.batches import messages
from tests.delivery.sinks.brokers import Certificates, NatsServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext

_REFUSED = Mapper(CONTEXT).network_activity(ATTRIBUTED["all of it, tcp4"], processed_ns=NOW_NS)
_STARTED = lifecycle(CONTEXT, activity="start", time_ns=TIME_NS)
#: Maximum duration of an immediate report, for a busy machine. Timeouts of the client take longer.
_IMMEDIATE_SECONDS = 60
_TIMEOUT_SECONDS = 120


@pytest.fixture(autouse=True)
def _patient_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nats_link, "_CONNECT_SECONDS", _TIMEOUT_SECONDS)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with NatsServer(tmp_path, "max_payload: 64KB") as server:
        yield server


@contextlib.asynccontextmanager
async def _stream(url: str, **given: Any) -> AsyncIterator[JetStreamContext]:
    """Connect another client to a stream ``ocsf``; create the stream if it does not exist."""
    options = {key: given.pop(key) for key in ("user", "password", "tls") if key in given}
    client = Client()
    await client.connect(url, connect_timeout=_TIMEOUT_SECONDS, **options)
    try:
        stream = client.jetstream(timeout=_TIMEOUT_SECONDS)
        await stream.add_stream(StreamConfig(name="ocsf", subjects=["ocsf", "ocsf.>"], **given))
        yield stream
    finally:
        await client.close()


async def _stored(stream: JetStreamContext) -> list[Any]:
    state = (await stream.stream_info("ocsf")).state
    return [
        await stream.get_msg("ocsf", number)
        for number in range(state.first_seq, state.last_seq + 1)
        if state.messages
    ]


async def test_stream_has_each_event_unchanged_once_and_in_order(server: NatsServer) -> None:
    lines = [_REFUSED.to_json(), _STARTED.to_json(), *(b'{"n":%d}' % n for n in range(600))]
    batch = messages(*lines)
    async with _stream(server.url) as stream:
        async with Nats(servers=[server.url], subject="ocsf", stream="ocsf") as sink:
            assert await sink.deliver(batch) == DELIVERED
            assert await sink.deliver(batch[:3]) == DELIVERED
        async with sink:
            assert await sink.deliver(batch[1:]) == DELIVERED
        stored = await _stored(stream)
    assert [each.data for each in stored] == lines
    assert [each.headers["Nats-Msg-Id"] for each in stored] == [each.uid for each in batch]
    assert {each.subject for each in stored} == {"ocsf"}


async def test_class_is_a_token_of_the_subject_if_configured(
    server: NatsServer,
) -> None:
    lines = [_REFUSED.to_json(), _STARTED.to_json(), b"{}", b'{"class_name":"a.> *b\\r\\n"}']
    async with _stream(server.url) as stream:
        async with Nats(servers=[server.url], subject="ocsf", has_class=True) as sink:
            await sink.deliver(messages(*lines))
        subjects = [each.subject for each in await _stored(stream)]
    assert subjects == [
        "ocsf.network_activity",
        "ocsf.application_lifecycle",
        "ocsf.none",
        "ocsf.a_b_",
    ]


async def test_nats_sink_refuses_events_that_are_too_large_and_delivers_the_others(
    server: NatsServer,
) -> None:
    def sized(size: int) -> bytes:
        return b"x" * (size - len(b"NATS/1.0\r\nNats-Msg-Id: uid-0\r\n\r\n"))

    batch = messages(b"{}", sized(65_537), sized(65_536), sized(50_000), b"[]")
    async with _stream(server.url, max_msg_size=60_000) as stream:
        async with Nats(servers=[server.url], subject="ocsf") as sink:
            outcome = await sink.deliver(batch)
        assert [each.data for each in await _stored(stream)] == [b"{}", batch[3].line, b"[]"]
    assert [each.message for each in outcome.refused] == batch[1:3]
    assert "65536 bytes" in outcome.refused[0].reason
    assert "message size exceeds maximum allowed" in outcome.refused[1].reason
    assert outcome.again == ()


async def test_events_that_a_full_stream_refuses_are_sent_again(server: NatsServer) -> None:
    batch = messages(b"1", b"2", b"3", b"4")
    full = {"max_msgs": 2, "discard": DiscardPolicy.NEW}
    async with _stream(server.url, **full) as stream:
        async with Nats(servers=[server.url], subject="ocsf") as sink:
            outcome = await sink.deliver(batch)
            assert outcome.again == tuple(batch[2:])
            assert "maximum messages exceeded" in outcome.reason
            await stream.purge_stream("ocsf")
            assert await sink.deliver(outcome.again) == DELIVERED
        assert [each.data for each in await _stored(stream)] == [b"3", b"4"]


async def test_nats_sink_publishes_only_to_the_named_stream(server: NatsServer) -> None:
    async with _stream(server.url) as stream:
        async with Nats(servers=[server.url], subject="ocsf", stream="other") as sink:
            outcome = await sink.deliver(messages(b"{}"))
        assert "expected stream does not match" in outcome.reason
        assert len(outcome.again) == 1
        assert await _stored(stream) == []


@pytest.mark.parametrize("has_jetstream", [True, False])
async def test_error_for_a_missing_stream_has_the_command_that_creates_it(
    tmp_path: Path, has_jetstream: bool
) -> None:
    with NatsServer(tmp_path, has_jetstream=has_jetstream) as server:
        async with Nats(servers=[server.url], subject="ocsf", has_class=True) as sink:
            with pytest.raises(DeliveryError, match=r"no stream has .*--subjects 'ocsf\.\*'"):
                await sink.deliver(messages(b"{}"))


async def test_nats_sink_refuses_an_answer_that_is_no_acknowledgement(server: NatsServer) -> None:
    other = Client()
    await other.connect(server.url, connect_timeout=_TIMEOUT_SECONDS)
    try:
        for answer in (b"OK", b"[]", b'{"stream":1}', b'{"stream":"ocsf","seq":"1"}'):

            async def respond(message: Msg, answer: bytes = answer) -> None:
                await message.respond(answer)

            responder = await other.subscribe("ocsf", cb=respond)
            await other.flush(_TIMEOUT_SECONDS)
            async with Nats(servers=[server.url], subject="ocsf") as sink:
                with pytest.raises(DeliveryError, match="is not from a stream"):
                    await sink.deliver(messages(b"{}"))
            await responder.unsubscribe()
    finally:
        await other.close()


async def test_error_for_a_server_that_is_down_is_immediate_and_one_sentence(
    server: NatsServer,
) -> None:
    server.kill()
    sink = Nats(servers=[server.url, "nats://[::1]:1"], subject="ocsf")
    async with asyncio.timeout(_IMMEDIATE_SECONDS):
        with pytest.raises(DeliveryError, match="can't be used") as caught:
            await sink.open()
    assert f"{server.host} can't be used: Connection refused" in str(caught.value)
    assert "[::1]:1" in str(caught.value)
    await _wait_for_thread_exit()


async def test_nats_sink_needs_one_reachable_server(server: NatsServer) -> None:
    async with _stream(server.url) as stream:
        for _ in range(8):
            async with Nats(servers=["nats://127.0.0.1:1", server.url], subject="ocsf") as sink:
                await sink.deliver(messages(b"{}"))
        assert len(await _stored(stream)) == 1


async def test_server_that_dies_in_a_delivery_gets_the_batch_after_its_restart(
    server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = messages(*(b'{"n":%d,"x":"%s"}' % (n, b"y" * 4000) for n in range(2000)))
    sink = Nats(servers=[server.url], subject="ocsf")
    publish, numbers = NatsConnection.publish, itertools.count()
    is_held, is_frozen = threading.Event(), threading.Event()

    async def publish_until_held(*given: Any) -> Any:
        # The first messages have their answers, and most have not been sent.
        if next(numbers) == 500:
            is_held.set()
            assert is_frozen.wait(_TIMEOUT_SECONDS)
        return await publish(*given)

    monkeypatch.setattr(NatsConnection, "publish", publish_until_held)
    async with _stream(server.url), sink:
        delivery = asyncio.create_task(sink.deliver(batch))
        assert await asyncio.to_thread(is_held.wait, _TIMEOUT_SECONDS)
        server.freeze()
        is_frozen.set()
        await asyncio.sleep(0.1)
        assert not delivery.done()
        server.kill()
        with pytest.raises(DeliveryError, match="can't be used"):
            await asyncio.wait_for(delivery, _IMMEDIATE_SECONDS)
    with pytest.raises(DeliveryError, match="can't be used"):
        await sink.open()
    server.start()
    async with _stream(server.url) as stream:
        assert 0 < len(await _stored(stream)) < len(batch)
        async with sink:
            assert await sink.deliver(batch) == DELIVERED
        assert [each.data for each in await _stored(stream)] == [each.line for each in batch]


async def test_nats_sink_reports_a_server_that_dies_before_its_answer_at_once(
    server: NatsServer,
) -> None:
    async with _stream(server.url), Nats(servers=[server.url], subject="ocsf") as sink:
        server.freeze()
        delivery = asyncio.create_task(sink.deliver(messages(b"{}")))
        await asyncio.sleep(0.1)
        server.kill()
        with pytest.raises(DeliveryError, match="can't be used"):
            await asyncio.wait_for(delivery, _IMMEDIATE_SECONDS)


async def test_nats_sink_reports_a_broken_connection_and_does_not_reconnect(
    server: NatsServer,
) -> None:
    sink = Nats(servers=[server.url], subject="ocsf")
    async with sink:
        server.kill()
        server.start()
        for _ in range(2):
            with pytest.raises(DeliveryError, match="can't be used"):
                await asyncio.wait_for(sink.deliver(messages(b"{}")), _IMMEDIATE_SECONDS)
    async with _stream(server.url), sink:
        assert await sink.deliver(messages(b"{}")) == DELIVERED


async def test_cancelled_delivery_does_not_wait_for_a_silent_server(
    server: NatsServer,
) -> None:
    batch = messages(*(b"x" * 60_000 for _ in range(500)))  # more than any socket takes
    sink = Nats(servers=[server.url], subject="ocsf")
    async with _stream(server.url), asyncio.timeout(5 * _TIMEOUT_SECONDS):
        await sink.open()
        server.freeze()
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await sink.deliver(batch)
            async with asyncio.timeout(_IMMEDIATE_SECONDS):
                await sink.close()
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await sink.open()
            await _wait_for_thread_exit()
        finally:
            server.thaw()
        async with sink:
            await sink.deliver(messages(b"{}"))


async def test_sink_that_is_not_connected_delivers_nothing() -> None:
    with pytest.raises(DeliveryError, match="no NATS server is connected"):
        await Nats(servers=["nats://127.0.0.1:1"], subject="ocsf").deliver(messages(b"{}"))


async def test_nats_sink_reports_a_missing_permission_at_once(tmp_path: Path) -> None:
    users = (
        "authorization: {timeout: 60, "
        "users: [{user: a, password: right, permissions: {publish: {deny: ocsf}}}]}"
    )
    login = Login(user="a", password=_secret(tmp_path, "right"))
    with NatsServer(tmp_path, users) as server:
        async with Nats(servers=[server.url], subject="ocsf", login=login) as sink:
            with pytest.raises(DeliveryError, match="permissions violation for publish"):
                await asyncio.wait_for(sink.deliver(messages(b"{}")), _IMMEDIATE_SECONDS)


async def _wait_for_thread_exit() -> None:
    for thread in threading.enumerate():
        if thread.name == "nats":
            await asyncio.to_thread(thread.join, _IMMEDIATE_SECONDS)
            assert not thread.is_alive()


def _secret(tmp_path: Path, text: str) -> Secret:
    path = tmp_path / f"secret-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    path.write_text(f"{text}\n")
    return Secret("file", str(path))


def _seed(prefix: int) -> bytes:
    seed: bytes = nkeys.encode_seed(os.urandom(32), prefix)
    return seed


def _jwt(issuer: bytes, subject: bytes, kind: str, **claims: object) -> str:
    """Return a JWT of NATS, signed with an nkey."""
    keys = nkeys.from_seed(bytearray(issuer))
    body: dict[str, object] = {
        "iat": 1_767_225_600,
        "iss": keys.public_key.decode(),
        "name": kind,
        "sub": nkeys.from_seed(bytearray(subject)).public_key.decode(),
        "nats": {"type": kind, "version": 2, **claims},
    }
    body["jti"] = base64.b32encode(hashlib.sha256(orjson.dumps(body)).digest()).decode().rstrip("=")
    head = {"typ": "JWT", "alg": "ed25519-nkey"}
    signed = b".".join(_base64(orjson.dumps(each)) for each in (head, body))
    return (signed + b"." + _base64(keys.sign(signed))).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _credentials(tmp_path: Path) -> tuple[str, Path]:
    """Return a server configuration that trusts an operator, and a user's credentials file."""
    operator = _seed(nkeys.PREFIX_BYTE_OPERATOR)
    account = _seed(nkeys.PREFIX_BYTE_ACCOUNT)
    user = _seed(nkeys.PREFIX_BYTE_USER)
    unlimited = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
         "disk_storage", "streams", "consumer"), -1,
    )  # fmt: skip
    account_jwt = _jwt(operator, account, "account", limits={**unlimited, "wildcards": True})
    user_jwt = _jwt(account, user, "user", subs=-1, data=-1, payload=-1)
    path = tmp_path / "user.creds"
    path.write_text(
        f"-----BEGIN NATS USER JWT-----\n{user_jwt}\n------END NATS USER JWT------\n\n"
        "************************* IMPORTANT *************************\n"
        "NKEY Seed printed below can be used to sign and prove identity.\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.decode()}\n------END USER NKEY SEED------\n"
    )
    public = nkeys.from_seed(bytearray(account)).public_key.decode()
    return (
        f"operator: {_jwt(operator, operator, 'operator')}\nresolver: MEMORY\n"
        "authorization: {timeout: 60}\n"
        f"resolver_preload: {{ {public}: {account_jwt} }}"
    ), path


def _tls(certificates: Certificates, name: str = "127.0.0.1", extra: str = "") -> str:
    """Return a server configuration with TLS for a host name."""
    certificate, key = certificates.issue(name)
    return f'tls: {{timeout: 60, cert_file: "{certificate}", key_file: "{key}", {extra}}}'


async def _accepts_login(server: NatsServer, login: Login, **given: Any) -> bool:
    """Return true if a server accepts a login; a missing stream is the next error then."""
    sink = Nats(servers=[server.url], subject="ocsf", login=login, **given)
    with pytest.raises(DeliveryError) as caught:
        async with sink:
            await sink.deliver(messages(b"{}"))
    if "give credentials that it accepts" in str(caught.value):
        return False
    assert "no stream has the subject ocsf" in str(caught.value)
    return True


async def test_nats_sink_logs_in_with_a_token(tmp_path: Path) -> None:
    with NatsServer(tmp_path, "authorization: {timeout: 60, token: right}") as server:
        assert await _accepts_login(server, Login(token=_secret(tmp_path, "right")))
        assert not await _accepts_login(server, Login(token=_secret(tmp_path, "wrong")))
        assert not await _accepts_login(server, Login())


async def test_nats_sink_logs_in_with_a_password(tmp_path: Path) -> None:
    with NatsServer(tmp_path, "authorization: {timeout: 60, user: me, password: right}") as server:
        right, wrong = _secret(tmp_path, "right"), _secret(tmp_path, "wrong")
        assert await _accepts_login(server, Login(user="me", password=right))
        assert not await _accepts_login(server, Login(user="me", password=wrong))
        assert not await _accepts_login(server, Login(user="you", password=right))


async def test_nats_sink_logs_in_with_an_nkey(tmp_path: Path) -> None:
    right, wrong = (_seed(nkeys.PREFIX_BYTE_USER) for _ in range(2))
    public = nkeys.from_seed(bytearray(right)).public_key.decode()
    with NatsServer(
        tmp_path, f"authorization: {{timeout: 60, users: [{{nkey: {public}}}]}}"
    ) as server:
        assert await _accepts_login(server, Login(nkey=_secret(tmp_path, right.decode())))
        assert not await _accepts_login(server, Login(nkey=_secret(tmp_path, wrong.decode())))


async def test_nats_sink_logs_in_with_a_credentials_file(tmp_path: Path) -> None:
    trusted, path = _credentials(tmp_path)
    (tmp_path / "other").mkdir()
    _, other = _credentials(tmp_path / "other")
    with NatsServer(tmp_path, trusted, has_jetstream=False) as server:
        assert await _accepts_login(server, Login(credentials=path))
        assert not await _accepts_login(server, Login(credentials=other))


@pytest.mark.parametrize("kind", ["nkey", "credentials"])
@pytest.mark.parametrize(
    "held", ["", "SUAHUNTER2", "-----BEGIN NATS USER JWT-----\n" * 3, "hunter2\n" * 10_000]
)
async def test_error_for_an_invalid_key_is_one_sentence_without_the_key(
    server: NatsServer, tmp_path: Path, kind: str, held: str
) -> None:
    path = tmp_path / "key"
    path.write_text(held)
    login = Login(nkey=Secret("file", str(path))) if kind == "nkey" else Login(credentials=path)
    with pytest.raises(DeliveryError, match="key") as caught:
        await Nats(servers=[server.url], subject="ocsf", login=login).open()
    assert "hunter2" not in str(caught.value).lower()


async def test_error_names_an_invalid_seed_in_a_credentials_file(
    server: NatsServer, tmp_path: Path
) -> None:
    _, path = _credentials(tmp_path)
    text = path.read_text()
    path.write_text(text.replace("\nSU", "\nSUA"))
    login = Login(credentials=path)
    with pytest.raises(DeliveryError, match="no seed of an nkey"):
        await Nats(servers=[server.url], subject="ocsf", login=login).open()


async def test_error_for_a_missing_credentials_file_is_one_sentence(
    server: NatsServer, tmp_path: Path
) -> None:
    login = Login(credentials=tmp_path / "none")
    with pytest.raises(DeliveryError, match="can't be read: No such file"):
        await Nats(servers=[server.url], subject="ocsf", login=login).open()


async def test_secret_is_read_again_when_the_sink_is_opened_again(tmp_path: Path) -> None:
    secret = _secret(tmp_path, "right")
    sink = Nats(servers=[], subject="ocsf", login=Login(token=secret))
    for token in ("one", "two"):
        with NatsServer(tmp_path, f"authorization: {{timeout: 60, token: {token}}}") as server:
            sink.servers = (server.url,)
            with pytest.raises(DeliveryError):
                await sink.open()
            (tmp_path / secret.location).write_text(token)
            async with sink:
                pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("scheme", ["tls", "nats"])
@pytest.mark.parametrize("is_first", [False, True])
async def test_tls_with_the_right_authority_delivers(
    tmp_path: Path, certificates: Certificates, scheme: str, is_first: bool
) -> None:
    extra = "handshake_first: true" if is_first else ""
    with NatsServer(tmp_path, _tls(certificates, extra=extra)) as server:
        sink = Nats(
            servers=[f"{scheme}://{server.host}"],
            subject="ocsf",
            tls=Tls(ca=certificates.ca),
            is_tls_first=is_first,
        )
        async with sink:
            with pytest.raises(DeliveryError, match="no stream has"):
                await sink.deliver(messages(b"{}"))


@pytest.mark.parametrize(
    ("name", "trusted"), [("127.0.0.1", "other_ca"), ("127.0.0.2", "ca"), ("127.0.0.1", None)]
)
async def test_error_names_a_wrong_certificate(
    tmp_path: Path, certificates: Certificates, name: str, trusted: str | None
) -> None:
    tls = Tls(ca=getattr(certificates, trusted)) if trusted else None
    with NatsServer(tmp_path, _tls(certificates, name)) as server:
        with pytest.raises(DeliveryError, match="its certificate is not trusted"):
            await Nats(servers=[f"tls://{server.host}"], subject="ocsf", tls=tls).open()
        # The URL does not require TLS, but the server announces it.
        with pytest.raises(DeliveryError, match="its certificate is not trusted"):
            await Nats(servers=[server.url], subject="ocsf", tls=tls).open()


async def test_server_that_requires_a_certificate_accepts_ours(
    tmp_path: Path, certificates: Certificates
) -> None:
    mutual = _tls(certificates, extra=f'verify: true, ca_file: "{certificates.ca}"')
    shown = Tls(ca=certificates.ca, certificate=certificates.certificate, key=certificates.key)
    with NatsServer(tmp_path, mutual) as server:
        assert await _accepts_login(server, Login(), tls=shown)
        bare = Nats(servers=[server.url], subject="ocsf", tls=Tls(ca=certificates.ca))
        with pytest.raises(DeliveryError, match="can't be used"):
            await bare.open()


class Impostor:
    """Hostile server that sends arbitrary texts and stores the received bytes.

    It sends ``info`` to each new connection, ``answer`` after a PING, and ``then`` after each
    published message.
    """

    def __init__(self, info: str, answer: bytes = b"", then: bytes = b"") -> None:
        self.received = b""
        self.connections = 0
        self._info = info
        self._answer = answer
        self._then = then

    async def __aenter__(self) -> str:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.write(f"INFO {self._info}\r\n".encode())
        while data := await reader.read(1 << 16):
            self.received += data
            if b"PING\r\n" in data:
                writer.write(self._answer)
            if b"PUB " in data:
                writer.write(self._then)
        writer.close()


@pytest.mark.parametrize("kind", ["token", "password", "none"])
@pytest.mark.parametrize("scheme", ["tls", "nats"])
async def test_nats_sink_sends_no_secret_without_the_required_tls(
    tmp_path: Path, certificates: Certificates, kind: str, scheme: str
) -> None:
    secret = _secret(tmp_path, "hunter2")
    login = {
        "token": Login(token=secret),
        "password": Login(user="me", password=secret),
        "none": Login(),
    }[kind]
    impostor = Impostor('{"max_payload":1000,"auth_required":true}', b"PONG\r\n")
    async with impostor as host:
        sink = Nats(
            servers=[f"{scheme}://{host}"],
            subject="ocsf",
            login=login,
            tls=None if scheme == "tls" else Tls(ca=certificates.ca),
        )
        with pytest.raises(DeliveryError, match="it offers no TLS"):
            await sink.open()
    assert b"hunter2" not in impostor.received


async def test_text_of_a_server_is_short_printable_and_without_secrets(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = b"-ERR 'Authorization of hunter2 \x1b[31m failed " + b"x" * 500 + b"'\r\n"
    async with Impostor('{"auth_required":true}', answer) as host:
        login = Login(token=_secret(tmp_path, "hunter2"))
        with pytest.raises(DeliveryError, match=r"Authorization of \*\*\* \?\[31m") as caught:
            await Nats(servers=[f"nats://{host}"], subject="ocsf", login=login).open()
    text = str(caught.value)
    assert "hunter2" not in text
    assert "hunter2" not in f"{login!r} {login.read()!r}"
    assert text.isprintable()
    assert len(text) < 400
    assert capfd.readouterr() == ("", "")


async def test_later_text_of_a_server_is_without_secrets(tmp_path: Path) -> None:
    login = Login(token=_secret(tmp_path, "Hunter2"))
    impostor = Impostor('{"max_payload":1000}', b"PONG\r\n", b"-ERR 'no more of Hunter2'\r\n")
    async with impostor as host:
        sink = Nats(servers=[f"nats://{host}"], subject="ocsf", login=login)
        async with sink:
            with pytest.raises(DeliveryError, match=r"no more of \*\*\*"):
                await sink.deliver(messages(b"{}"))


@pytest.mark.parametrize("then", ["Stale Connection", "Maximum Payload Violation"])
async def test_nats_sink_reports_a_closed_connection_and_does_not_reconnect(then: str) -> None:
    impostor = Impostor('{"max_payload":1000}', b"PONG\r\n", f"-ERR '{then}'\r\n".encode())
    async with impostor as host, Nats(servers=[f"nats://{host}"], subject="ocsf") as sink:
        with pytest.raises(DeliveryError, match=f"(?i)can't be used: nats: {then}"):
            await asyncio.wait_for(sink.deliver(messages(b"{}")), _IMMEDIATE_SECONDS)
        await asyncio.sleep(0.1)
    assert impostor.connections == 1


async def test_nothing_is_printed(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's
    impostor = Impostor('{"max_payload":1000}', b"PONG\r\n", b"INFO {\r\n")
    async with impostor as host, Nats(servers=[f"nats://{host}"], subject="ocsf") as sink:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.deliver(messages(b"{}")), 0.3)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("info", ["", "{", "x" * 100_000, '{"a":' * 50_000])
async def test_error_for_a_server_that_is_not_nats_is_one_sentence(info: str) -> None:
    async with Impostor(info) as host:
        with pytest.raises(DeliveryError, match="can't be used"):
            await Nats(servers=[f"nats://{host}"], subject="ocsf").open()
