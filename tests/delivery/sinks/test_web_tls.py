"""TLS, certificates and proxies of HTTP sinks."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.errors import DeliveryError
from tests.delivery.sinks.attempts import attempts
from tests.delivery.sinks.kinds import KINDS, SECRET, Kind, fault
from tests.delivery.sinks.servers import serving

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    return KINDS[request.param]


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> Secret:
    monkeypatch.setenv("TOKEN_OF_THE_TEST", SECRET)
    return Secret("environment", "TOKEN_OF_THE_TEST")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert(*names).configure_cert(context)
    return context


def _ca(authority: trustme.CA, folder: Path) -> Path:
    path = folder / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


async def test_web_sink_trusts_the_configured_authority(
    kind: Kind, token: Secret, authority: trustme.CA, tmp_path: Path
) -> None:
    server = kind.server()
    tls = Tls(ca=_ca(authority, tmp_path))
    async with serving(server, tls=_server_tls(authority, "127.0.0.1")) as url:
        async with kind.sink(url, token, tls=tls) as sink:
            await sink.deliver(attempts(2))
        assert len(server.lines) == 2


@pytest.mark.parametrize(
    ("name", "is_trusted", "cause"),
    [
        ("127.0.0.1", False, "unable to get local issuer certificate"),
        ("splunk.example", True, "IP address mismatch, certificate is not valid for '127.0.0.1'"),
    ],
)
async def test_a_wrong_certificate_is_named(
    kind: Kind,
    token: Secret,
    authority: trustme.CA,
    tmp_path: Path,
    name: str,
    is_trusted: bool,
    cause: str,
) -> None:
    trusted = authority if is_trusted else trustme.CA()
    sink_tls = Tls(ca=_ca(trusted, tmp_path))
    async with serving(kind.server(), tls=_server_tls(authority, name)) as url:
        error = await fault(kind.sink(url, token, tls=sink_tls))
        assert f"its certificate is not trusted ({cause}" in str(error)
        assert "give its authority in tls.ca" in str(error)
        # Without tls.ca, only the system's authorities are trusted.
        assert "its certificate is not trusted" in str(await fault(kind.sink(url, token)))


async def test_web_sink_reports_a_server_without_tls(kind: Kind, token: Secret) -> None:
    async with serving(kind.server()) as url:
        error = await fault(kind.sink(url.replace("http:", "https:"), token))
    assert "TLS failed" in str(error)


async def test_a_receiver_that_asks_for_a_certificate_gets_ours(
    kind: Kind, token: Secret, authority: trustme.CA, tmp_path: Path
) -> None:
    server_tls = _server_tls(authority, "127.0.0.1")
    server_tls.verify_mode = ssl.CERT_REQUIRED
    authority.configure_trust(server_tls)
    ours = authority.issue_cert("ocsf-nft.example")
    certificate, key = tmp_path / "ours.pem", tmp_path / "ours.key"
    ours.cert_chain_pems[0].write_to_path(certificate)
    ours.private_key_pem.write_to_path(key)
    tls = Tls(ca=_ca(authority, tmp_path), certificate=certificate, key=key)
    server = kind.server()
    async with serving(server, tls=server_tls) as url:
        async with kind.sink(url, token, tls=tls) as sink:
            await sink.deliver(attempts(1))
        assert len(server.lines) == 1
        error = await fault(kind.sink(url, token, tls=replace(tls, certificate=None, key=None)))
    # The text depends on TLS: the alert may come before or after the end of the connection.
    assert f"{url} can't be reached: " in str(error)


async def test_secrets_and_certificates_are_read_again_at_each_opening(
    kind: Kind, token: Secret, authority: trustme.CA, tmp_path: Path, monkeypatch: Any
) -> None:
    server = kind.server()
    ca = _ca(trustme.CA(), tmp_path)
    async with serving(server, tls=_server_tls(authority, "127.0.0.1")) as url:
        sink = kind.sink(url, token, tls=Tls(ca=ca))
        await fault(sink)
        _ca(authority, tmp_path)
        monkeypatch.setenv(token.location, "renewed")
        async with sink:
            await sink.deliver(attempts(1))
    assert server.seen[0].headers["Authorization"] == f"{kind.scheme} renewed"


async def test_web_sink_uses_only_the_configured_proxy(
    kind: Kind, token: Secret, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server = kind.server()
    async with serving(server) as proxy:
        async with kind.sink(proxy, token) as sink:
            await sink.deliver(attempts(1))
        far = "http://far.invalid/" if kind is KINDS["http"] else "http://far.invalid"
        async with kind.sink(far, token, proxy=proxy) as sink:
            await sink.deliver(attempts(1))
    assert server.seen[0].headers["Host"].startswith("127.0.0.1")
    assert server.seen[1].headers["Host"] == "far.invalid"
    unreachable = kind.sink("http://far.invalid", token, proxy=proxy)
    with pytest.raises(DeliveryError, match=f"far.invalid can't be reached through {proxy}: "):
        await unreachable.open()


async def test_certificate_of_a_receiver_behind_a_proxy_is_checked(
    kind: Kind, token: Secret, authority: trustme.CA, tmp_path: Path
) -> None:
    server = kind.server()
    async with (
        serving(server, tls=_server_tls(authority, "127.0.0.1")) as url,
        _connecting_proxy() as proxy,
    ):
        tls = Tls(ca=_ca(authority, tmp_path))
        async with kind.sink(url, token, tls=tls, proxy=proxy) as sink:
            await sink.deliver(attempts(1))
        assert len(server.lines) == 1
        error = await fault(kind.sink(url, token, proxy=proxy))
        assert "its certificate is not trusted" in str(error)
        async with serving(kind.server()) as plain:
            error = await fault(kind.sink(plain.replace("http:", "https:"), token, proxy=proxy))
            assert "TLS failed (" in str(error)
            assert "None" not in str(error)
        error = await fault(kind.sink("https://not.for.you", token, proxy=proxy))
        assert "the proxy answers 403 Forbidden" in str(error)


@contextlib.asynccontextmanager
async def _connecting_proxy() -> AsyncIterator[str]:
    """Run a proxy with CONNECT (RFC 9110, 9.3.6) to this host only; yield its URL."""
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:  # a connection test without a request
            writer.close()
            return
        host, _, port = head.split()[1].decode().rpartition(":")
        if host != "127.0.0.1":
            writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
            writer.close()
            return
        far_reader, far_writer = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connected\r\n\r\n")
        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*tasks, return_exceptions=True)
