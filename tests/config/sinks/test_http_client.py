"""Settings that all HTTP sinks share."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.http import HttpSink
from ocsf_nft.config.sinks.opensearch import OpenSearchSink
from ocsf_nft.config.sinks.otlp import OtlpSink
from ocsf_nft.config.sinks.splunk_hec import SplunkHecSink
from ocsf_nft.delivery.receiver_settings import Credentials, Secret
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.config.sinks.http_client import SecuredSink, WebSink

TOKEN = {"env": "TOKEN"}
KINDS: dict[str, tuple[type[WebSink], dict[str, Any]]] = {
    "http": (HttpSink, {}),
    "splunk_hec": (SplunkHecSink, {"token": TOKEN}),
    "opensearch": (OpenSearchSink, {}),
    "otlp": (OtlpSink, {}),
}
SECURED: dict[str, type[SecuredSink]] = {
    "http": HttpSink,
    "opensearch": OpenSearchSink,
    "otlp": OtlpSink,
}


def _sink(kind: str, **facts: Any) -> WebSink:
    model, needed = KINDS[kind]
    return model.model_validate({"type": kind, "url": "https://siem.example:8443"} | needed | facts)


def _assert_refused(
    kinds: Iterable[str], facts: dict[str, Any], cause: str, subtests: pytest.Subtests
) -> None:
    for kind in kinds:
        with subtests.test(kind), pytest.raises(ValidationError, match=cause):
            _sink(kind, **facts)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_url_is_required(kind: str) -> None:
    table = _sink(kind)
    assert table.receiver.url == "https://siem.example:8443"
    assert table.target.startswith("https://siem.example:8443")
    assert table.receiver.tls is None
    assert table.receiver.proxy is None
    assert type(table.sink()).__name__.lower() == kind.replace("_", "")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("ftp://siem.example", "begins with http:// or https://"),
        ("siem.example:8088", "begins with http:// or https://"),
        ("https://", "with a host"),
        ("https://siem.example:0", "port of 1 to 65535"),
        ("https://siem.example:65536", "must be a URL, such as"),
        ("https://siem.example:port", "must be a URL, such as"),
        ("https://[::1", "must be a URL, such as"),
        ("https://me:secret@siem.example", "must not hold a user or password"),
        ("https://@siem.example", "must not hold a user or password"),
        ("https://siem.example/#in", "must not hold a fragment"),
        ("https://siem.example/a b", "printable ASCII"),
        ("https://siem.example/\n", "printable ASCII"),
        ("https://s\u0456em.example/", "printable ASCII"),
        (8088, "must be text, not 8088"),
    ],
)
def test_web_sink_refuses_invalid_url(url: str, cause: str, subtests: pytest.Subtests) -> None:
    _assert_refused(KINDS, {"url": url}, cause, subtests)


@pytest.mark.parametrize("kind", ["splunk_hec", "opensearch", "otlp"])
def test_url_that_gets_a_path_has_no_query(kind: str) -> None:
    with pytest.raises(ValidationError, match=r"must not hold a query"):
        _sink(kind, url="https://siem.example/?a=b")
    assert _sink(kind, url="https://siem.example/p/").receiver.url == "https://siem.example/p"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("splunk_hec", "/services/collector"),
        ("splunk_hec", "/services/collector/event"),
        ("opensearch", "/_bulk"),
        ("otlp", "/v1/logs"),
    ],
)
def test_url_must_not_contain_the_path_that_is_appended(kind: str, path: str) -> None:
    with pytest.raises(ValidationError, match=f"must end before {path}, which is appended to it"):
        _sink(kind, url=f"https://siem.example{path}/")


@pytest.mark.parametrize("kind", KINDS)
def test_headers_may_hold_secrets(kind: str) -> None:
    table = _sink(kind, headers={"X-Tenant": "blue", "X-Key": {"file": "/run/key"}})
    assert table.receiver.headers == {"X-Tenant": "blue", "X-Key": Secret("file", "/run/key")}


@pytest.mark.parametrize(
    ("headers", "cause"),
    [
        ({"Content-Length": "5"}, "must not be Content-Length"),
        ({"host": "x"}, "must not be host"),
        ({"X Y": "x"}, "must be a header's name"),
        ({"X:": "x"}, "must be a header's name"),
        ({"": "x"}, "must be a header's name"),
        ({"X-A": "a\r\nX-B: b"}, "should match pattern"),
        ({"X-A": "1", "x-a": "2"}, "has one twice"),
    ],
)
def test_web_sink_refuses_invalid_header(
    headers: dict[str, str], cause: str, subtests: pytest.Subtests
) -> None:
    _assert_refused(KINDS, {"headers": headers}, cause, subtests)


@pytest.mark.parametrize("kind", KINDS)
def test_web_sink_takes_proxy_of_host_and_port(kind: str) -> None:
    assert _sink(kind, proxy="http://p.example:3128").receiver.proxy == "http://p.example:3128"


@pytest.mark.parametrize(
    "proxy",
    ["https://proxy.example:3128", "http://proxy.example/in", "http://a:b@proxy.example", "proxy"],
)
def test_web_sink_refuses_other_proxy(proxy: str, subtests: pytest.Subtests) -> None:
    _assert_refused(KINDS, {"proxy": proxy}, r"proxy\n", subtests)


@pytest.mark.parametrize("kind", KINDS)
def test_tls_is_for_https(kind: str) -> None:
    tls = _sink(kind, tls={"ca": "/etc/ca.pem"}).receiver.tls
    assert tls is not None
    assert str(tls.ca) == "/etc/ca.pem"
    with pytest.raises(ValidationError, match="has tls, and a url that is not https"):
        _sink(kind, url="http://siem.example", tls={"ca": "/etc/ca.pem"})


@pytest.mark.parametrize("kind", SECURED)
def test_credentials_are_a_token_or_a_user_with_a_password(kind: str) -> None:
    secret = Secret("environment", "TOKEN")
    assert _sink(kind).credentials is None
    assert _sink(kind, bearer=TOKEN).credentials == Credentials("Bearer", secret)
    assert _sink(kind, user="me", password=TOKEN).credentials == Credentials("Basic", secret, "me")


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"user": "me"}, "has one of user and password"),
        ({"password": TOKEN}, "has one of user and password"),
        ({"user": "me", "password": TOKEN, "bearer": TOKEN}, "has a bearer token and a user"),
        ({"user": "a:b", "password": TOKEN}, "should match pattern"),
        ({"bearer": "s3cr3t"}, "dictionary"),
        ({"bearer": TOKEN, "headers": {"authorization": "x"}}, "has Authorization, and credent"),
    ],
)
def test_web_sink_refuses_contradicting_credentials(
    facts: dict[str, Any], cause: str, subtests: pytest.Subtests
) -> None:
    _assert_refused(SECURED, facts, cause, subtests)


def test_user_and_password_are_encoded_for_basic_authentication() -> None:
    credentials = Credentials("Basic", Secret("environment", "TOKEN"), "Aladdin")
    # The example of RFC 7617, section 2.
    assert credentials.header("open sesame") == "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="


@pytest.mark.parametrize("kind", KINDS)
def test_missing_extra_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    table = _sink(kind)
    with pytest.raises(UnsupportedError, match=rf"of type {kind} needs the extra ocsf-nft\[http\]"):
        table.sink()


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        ({"colour": "red"}, "colour"),
        ({"timeout_seconds": None}, "timeout_seconds"),
        ({"url": None}, "url"),
    ],
)
def test_web_sink_refuses_unknown_or_empty_key(
    facts: dict[str, Any], cause: str, subtests: pytest.Subtests
) -> None:
    _assert_refused(KINDS, facts, cause, subtests)
