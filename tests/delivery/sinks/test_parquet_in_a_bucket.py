"""Parquet sink with an S3 bucket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pytest
import trustme

from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.delivery.object_storage import Bucket
from ocsf_nft.delivery.parquet_layout import Layout
from ocsf_nft.delivery.receiver_settings import Secret
from ocsf_nft.delivery.sinks.base import DELIVERED
from ocsf_nft.delivery.sinks.parquet import Parquet
from ocsf_nft.errors import DeliveryError, RefusedError
from ocsf_nft.ocsf.versions import STORED
from tests.delivery import read_back
from tests.delivery import sample_events as samples
from tests.delivery.sinks.weed import ACCESS_KEY, BUCKET, READER, SECRET, Weed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

LOCATION: Final = "ext/ocsf-nft-4001/1.8.0/region=eu-west-1/accountId=external/eventDay=20260101"


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weed]:
    with Weed(tmp_path_factory.mktemp("weed")) as weed:
        yield weed


@pytest.fixture
def weed(_server: Weed) -> Weed:
    _server.clear()
    return _server


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(f"{SECRET}\n")
    return path


def replace_content(path: Path, content: str | None) -> None:
    path.unlink()
    if content is not None:
        path.write_text(content)


def parquet(
    endpoint: str, secret: Path | None, source_version: str = "1.8.0", **facts: Any
) -> Parquet:
    given: dict[str, Any] = {"access_key": ACCESS_KEY}
    if secret is not None:
        given["secret"] = Secret("file", str(secret))
    bucket = Bucket(
        **({"name": BUCKET, "endpoint": endpoint, "region": "eu-west-1"} | given | facts)
    )
    return Parquet(
        storage=bucket,
        columns=columns(STORED),
        layout=Layout("ocsf-nft", source_version, "eu-west-1", "external"),
    )


async def deliver(sink: Parquet, count: int = 5) -> None:
    async with sink:
        assert await sink.deliver(samples.packets(count)) == DELIVERED


async def failure(sink: Parquet, count: int = 5) -> DeliveryError:
    with pytest.raises(DeliveryError) as caught:
        await deliver(sink, count)
    shown = f"{caught.value!s} {caught.value!r} {sink!r} {sink.storage!r}"
    assert SECRET not in shown
    assert "\n" not in str(caught.value)
    return caught.value


def counts(weed: Weed) -> list[int]:
    struct = columns(STORED)[samples.REFUSED]
    return [event["count"] for event in read_back.events(weed.objects().values(), struct)]


async def test_batch_becomes_an_object_at_the_security_lake_path(weed: Weed, secret: Path) -> None:
    await deliver(parquet(weed.url, secret), 50)
    ((path, content),) = weed.objects().items()
    assert re.fullmatch(rf"{LOCATION}/20260101T000000Z-[0-9a-f]{{32}}\.parquet", path)
    events = read_back.events([content], columns(STORED)[samples.REFUSED])
    assert events == [message.event() for message in samples.packets(50)]


async def test_bucket_may_have_a_prefix(weed: Weed, secret: Path) -> None:
    await deliver(parquet(weed.url, secret, prefix="security/logs"))
    (path,) = weed.objects()
    assert path.startswith(f"security/logs/{LOCATION}/")


async def test_path_has_no_part_for_a_missing_source_version(weed: Weed, secret: Path) -> None:
    await deliver(parquet(weed.url, secret, source_version=""))
    (path,) = weed.objects()
    assert path.startswith("ext/ocsf-nft-4001/region=eu-west-1/")


async def test_repeated_batch_is_stored_once(weed: Weed, secret: Path) -> None:
    sink = parquet(weed.url, secret)
    await deliver(sink)
    first = weed.objects()
    await deliver(sink)
    await deliver(parquet(weed.url, secret))
    assert weed.objects() == first


async def test_bucket_uses_credentials_of_the_environment_if_none_are_configured(
    weed: Weed, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = parquet(weed.url, None, access_key=None)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    await deliver(sink)
    assert counts(weed) == list(range(5))


async def test_configured_values_are_not_mixed_with_the_environment(
    weed: Weed, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
            patch.setenv(name, "http://127.0.0.1:1")
        patch.setenv("AWS_SESSION_TOKEN", "of another user")
        patch.setenv("AWS_REGION", "us-east-1")
        await deliver(parquet(weed.url, secret))
    assert counts(weed) == list(range(5))


async def test_bucket_secret_is_read_again_when_the_sink_is_opened_again(
    weed: Weed, secret: Path
) -> None:
    replace_content(secret, "an old one")
    sink = parquet(weed.url, secret)
    assert "correct the secret" in str(await failure(sink))
    replace_content(secret, SECRET)
    await deliver(sink)
    assert counts(weed) == list(range(5))


async def test_error_for_a_missing_secret_is_one_sentence(weed: Weed, secret: Path) -> None:
    replace_content(secret, None)
    assert "can't be read" in str(await failure(parquet(weed.url, secret)))


@pytest.mark.parametrize(
    ("facts", "fault"),
    [
        ({"access_key": "AKIANOBODY"}, "403 InvalidAccessKeyId .*: correct access_key"),
        ({"access_key": READER}, "403 AccessDenied .*: allow these credentials to put"),
        (
            {"name": "pond"},
            "s3://pond at .* 404 NoSuchBucket .*: create the bucket, or name another",
        ),
    ],
)
async def test_error_for_a_denied_request_is_one_sentence(
    weed: Weed, secret: Path, facts: dict[str, Any], fault: str
) -> None:
    error = await failure(parquet(weed.url, secret, **facts))
    assert re.search(fault, str(error))
    assert not isinstance(error, RefusedError)
    assert weed.objects() == {}


async def test_opening_reports_a_server_that_is_down(secret: Path) -> None:
    with pytest.raises(DeliveryError, match="can't be reached: Connection refused"):
        await parquet("http://127.0.0.1:1", secret).open()


async def test_error_for_a_host_without_an_address_is_one_sentence(secret: Path) -> None:
    error = await failure(parquet("http://s3.invalid", secret))
    assert "s3://lake at http://s3.invalid can't be reached: " in str(error)


async def test_batch_of_an_interrupted_delivery_is_stored_after_the_server_restarts(
    weed: Weed, secret: Path
) -> None:
    sink = parquet(weed.url, secret)
    async with sink:
        weed.pause()
        delivery = asyncio.create_task(sink.deliver(samples.packets(5)))
        await asyncio.sleep(0.2)
        assert not delivery.done()
        weed.kill()
        with pytest.raises(DeliveryError, match=r"^s3://lake at .* can't be reached: "):
            await delivery
    await asyncio.to_thread(weed.start)
    await deliver(sink)
    assert counts(weed) == list(range(5))


async def test_cancelled_delivery_does_not_wait_for_a_paused_server(
    weed: Weed, secret: Path
) -> None:
    sink = parquet(weed.url, secret)
    try:
        async with sink:
            weed.pause()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sink.deliver(samples.packets(5)), 0.3)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(sink.open(), 0.3)
    finally:
        weed.resume()
    await deliver(sink)
    assert counts(weed) == list(range(5))


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(serve: Serve, context: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run a server that closes all its connections at the end; yield its port."""
    async with contextlib.AsyncExitStack() as stack:

        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stack.push_async_callback(_closed, writer)
            await serve(reader, writer)
            writer.close()

        server = await asyncio.start_server(served, "127.0.0.1", 0, ssl=context)
        await stack.enter_async_context(server)
        yield server.sockets[0].getsockname()[1]


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


NO_SUCH_KEY: Final = b"<Error><Code>NoSuchKey</Code><Message>There is none.</Message></Error>"


@dataclass
class Scripted:
    """Server without objects; it answers a PUT with ``status`` and ``body``, or not at all.

    It accepts a PUT of at most ``most_bytes``.
    """

    url: str = ""
    status: str = ""
    body: bytes = b""
    most_bytes: int = 0
    puts: int = 0
    accepted: int = 0
    was_put: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"PUT "):
                    self.puts += 1
                    length = re.search(rb"content-length: (\d+)", head.lower())
                    size = int(length[1]) if length else 0
                    await reader.readexactly(size)
                    self.was_put.set()
                    if size <= self.most_bytes:
                        self.accepted += 1
                        writer.write(_answer('200 OK\r\nETag: "1"', b""))
                    elif self.status:
                        writer.write(_answer(self.status, self.body))
                else:
                    writer.write(_answer("404 Not Found", NO_SUCH_KEY))
        self.left.set()


def _answer(status: str, body: bytes) -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.fixture
async def scripted() -> AsyncIterator[Scripted]:
    server = Scripted()
    async with listening(server.serve) as port:
        server.url = f"http://127.0.0.1:{port}"
        yield server


async def test_cancelled_delivery_leaves_no_connection_open(
    scripted: Scripted, secret: Path
) -> None:
    async with parquet(scripted.url, secret) as sink, asyncio.timeout(30):
        delivery = asyncio.create_task(sink.deliver(samples.packets(5)))
        await scripted.was_put.wait()
        delivery.cancel()
        with pytest.raises(asyncio.CancelledError):
            await delivery
        await scripted.left.wait()


async def test_bucket_sends_one_request_to_an_overloaded_server(
    scripted: Scripted, secret: Path
) -> None:
    scripted.status = "503 Slow Down"
    scripted.body = b"<Error><Code>SlowDown</Code><Message>Please wait.</Message></Error>"
    error = await failure(parquet(scripted.url, secret))
    assert str(error).endswith("answers 503 SlowDown Please wait.")
    assert not isinstance(error, RefusedError)
    assert scripted.puts == 1


@pytest.mark.parametrize(
    ("status", "code", "is_refused"),
    [
        ("400 Bad Request", "EntityTooLarge", True),
        ("413 Payload Too Large", "", True),
        ("400 Bad Request", "ExpiredToken", False),
        ("401 Unauthorized", "", False),
        ("429 Too Many Requests", "", False),
        ("500 Internal Server Error", "InternalError", False),
    ],
)
async def test_only_an_object_that_is_too_large_is_refused(
    scripted: Scripted, secret: Path, status: str, code: str, is_refused: bool
) -> None:
    scripted.status = status
    scripted.body = f"<Error><Code>{code}</Code></Error>".encode() if code else b"no"
    error = await failure(parquet(scripted.url, secret))
    assert isinstance(error, RefusedError) == is_refused
    assert status[:3] in str(error)


async def test_no_file_of_a_batch_is_stored_if_another_one_is_too_large(
    scripted: Scripted, secret: Path
) -> None:
    few = samples.packets(1)
    next_day = few[0].event()["time"] + 86_400_000
    many = samples.packets(2000, since_ms=next_day)
    scripted.status, scripted.most_bytes = "413 Payload Too Large", 75_000
    async with parquet(scripted.url, secret) as sink:
        await sink.deliver(few)
        assert scripted.accepted == 1
        with pytest.raises(RefusedError):
            await sink.deliver([*few, *many])
    assert scripted.accepted == 1


async def test_text_of_the_storage_server_is_short_and_printable(
    scripted: Scripted, secret: Path
) -> None:
    scripted.status = "400 Bad Request"
    scripted.body = b"<Error><Message>\x1b[2J\xe2\x80\xae\n" + b"x" * 5000 + b"</Message></Error>"
    error = await failure(parquet(scripted.url, secret))
    assert str(error).isprintable()
    assert len(str(error)) < 300


async def test_error_for_missing_credentials_names_their_possible_sources(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    # There is no metadata service, as on a machine outside a cloud.
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    error = await failure(parquet(scripted.url, None, access_key=None))
    assert str(error).startswith("there are no credentials for s3://lake at http://127.0.0.1")


AUTHORITY: Final = trustme.CA()
OTHER: Final = trustme.CA()


@contextlib.asynccontextmanager
async def tls_relay(weed: Weed, certificate: trustme.LeafCert) -> AsyncIterator[str]:
    """Run a TLS relay to the server, and yield its URL."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner, outer = await asyncio.open_connection("127.0.0.1", weed.port)
        try:
            await asyncio.gather(_pump(reader, outer), _pump(inner, writer))
        finally:
            await _closed(outer)

    async with listening(relay, context) as port:
        yield f"https://127.0.0.1:{port}"


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def ca(tmp_path: Path) -> Path:
    path = tmp_path / "ca.pem"
    AUTHORITY.cert_pem.write_to_path(str(path))
    return path


async def test_bucket_trusts_the_configured_authority(weed: Weed, secret: Path, ca: Path) -> None:
    async with tls_relay(weed, AUTHORITY.issue_cert("127.0.0.1")) as url:
        await deliver(parquet(url, secret, ca=ca))
    assert counts(weed) == list(range(5))


@pytest.mark.parametrize(
    ("certificate", "fault"),
    [
        (OTHER.issue_cert("127.0.0.1"), "is of an unknown authority: name"),
        (AUTHORITY.issue_cert("example.org"), "is of another host: name"),
    ],
)
async def test_server_with_a_wrong_certificate_gets_nothing(
    weed: Weed, secret: Path, ca: Path, certificate: trustme.LeafCert, fault: str
) -> None:
    async with tls_relay(weed, certificate) as url:
        error = await failure(parquet(url, secret, ca=ca))
    assert f"can't be reached: its certificate {fault}" in str(error)
    assert weed.objects() == {}


async def test_bucket_trusts_only_the_systems_authorities_by_default(
    weed: Weed, secret: Path
) -> None:
    async with tls_relay(weed, AUTHORITY.issue_cert("127.0.0.1")) as url:
        assert "its certificate is of an unknown authority" in str(
            await failure(parquet(url, secret))
        )


@pytest.mark.parametrize(("content", "fault"), [(None, "No such file"), ("x", "no certificate")])
async def test_error_for_a_ca_file_without_certificates_is_one_sentence(
    secret: Path, ca: Path, content: str | None, fault: str
) -> None:
    replace_content(ca, content)
    error = await failure(parquet("https://127.0.0.1:1", secret, ca=ca))
    assert f"TLS can't use {ca}: " in str(error)
    assert fault in str(error)


async def test_error_for_a_ca_file_in_openssl_format_is_one_sentence(
    secret: Path, ca: Path
) -> None:
    pem = AUTHORITY.cert_pem.bytes().decode()
    replace_content(ca, pem.replace(" CERTIFICATE", " TRUSTED CERTIFICATE"))
    error = await failure(parquet("https://127.0.0.1:1", secret, ca=ca))
    assert "s3://lake at https://127.0.0.1:1 can't be used: No certificates found" in str(error)
