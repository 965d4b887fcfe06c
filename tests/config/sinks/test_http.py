"""Configuration of sinks that use HTTP."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.http import HttpSink, OpenSearchSink, OtlpSink, SplunkHecSink
from ocsf_nft.delivery.receiver_settings import Credentials, Secret
from ocsf_nft.delivery.sinks.http import Http
from ocsf_nft.delivery.sinks.otlp import Otlp
from ocsf_nft.delivery.sinks.splunk_hec import SplunkHec
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ocsf_nft.config.sinks.http import SecuredSink, WebSink


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
    assert table.called.startswith("https://siem.example:8443")
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
    assert _sink(kind)._credentials is None
    assert _sink(kind, bearer=TOKEN)._credentials == Credentials("Bearer", secret)
    assert _sink(kind, user="me", password=TOKEN)._credentials == Credentials("Basic", secret, "me")


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


HTTP_URL = "https://siem.example/in?code=s3cr3t"


def _http(**facts: Any) -> HttpSink:
    return HttpSink.model_validate({"type": "http", "url": HTTP_URL} | facts)


def test_query_is_stored_and_not_shown() -> None:
    table = _http()
    assert table.receiver.url == HTTP_URL
    assert table.called == "https://siem.example/in"
    assert not table.receiver.is_compressed


def test_form_and_method_must_be_known() -> None:
    sink = _http(format="json_array", method="PUT").sink()
    assert isinstance(sink, Http)
    assert (sink._form, sink._method) == ("json_array", "PUT")
    for wrong in ({"format": "xml"}, {"method": "GET"}):
        with pytest.raises(ValidationError):
            _http(**wrong)


SPLUNK_URL = "https://splunk.example:8088"


def _splunk(**facts: Any) -> SplunkHecSink:
    table = {"type": "splunk_hec", "url": SPLUNK_URL, "token": {"credential": "hec"}}
    return SplunkHecSink.model_validate(table | facts)


def test_token_uses_the_splunk_scheme() -> None:
    assert _splunk()._credentials == Credentials("Splunk", Secret("credential", "hec"))
    with pytest.raises(ValidationError, match="token"):
        SplunkHecSink.model_validate({"type": "splunk_hec", "url": SPLUNK_URL})


def test_wait_for_an_acknowledgement_is_within_the_delivery_timeout() -> None:
    sink = _splunk(ack_seconds=60, timeout_seconds=90).sink()
    assert isinstance(sink, SplunkHec)
    assert sink._ack_seconds == 60
    with pytest.raises(ValidationError, match="must be less than timeout_seconds, which is 30"):
        _splunk(ack_seconds=30)


def test_two_indexes_are_two_targets() -> None:
    assert _splunk().called == SPLUNK_URL
    assert _splunk(index="ocsf").called == f"{SPLUNK_URL}/ocsf"


@pytest.mark.parametrize("index", ["", "Main", "-main", "a b", "a/b", "x" * 81])
def test_invalid_index_name_of_splunk_is_refused(index: str) -> None:
    with pytest.raises(ValidationError, match="index"):
        _splunk(index=index)


KEY = {"env": "KEY"}


def _opensearch(**facts: Any) -> OpenSearchSink:
    table = {"type": "opensearch", "url": "https://search.example:9200"}
    return OpenSearchSink.model_validate(table | facts)


def test_an_index_a_day_is_the_default() -> None:
    assert _opensearch().called == "https://search.example:9200/ocsf-{date}"


@pytest.mark.parametrize("index", ["ocsf", "{date}", "ocsf-{date}-v1", "a.b_c-d", "1st"])
def test_valid_index_name_of_opensearch_is_accepted(index: str) -> None:
    assert _opensearch(index=index).index == index


@pytest.mark.parametrize(
    "index", ["", "Ocsf", "-ocsf", "_ocsf", ".ocsf", "a/b", "a,b", "a*", "{day}", "a" * 201]
)
def test_invalid_index_name_of_opensearch_is_refused(index: str) -> None:
    with pytest.raises(ValidationError, match="must be an index's name"):
        _opensearch(index=index)


def test_a_data_stream_has_no_day_in_its_name() -> None:
    assert _opensearch(index="ocsf", data_stream=True).data_stream
    with pytest.raises(ValidationError, match=r"must not hold {date} for a data stream"):
        _opensearch(data_stream=True)


def test_api_key_is_accepted() -> None:
    assert _opensearch(api_key=KEY)._credentials == Credentials(
        "ApiKey", Secret("environment", "KEY")
    )
    for other in ({"bearer": KEY}, {"user": "me", "password": KEY}):
        with pytest.raises(ValidationError, match="has an api_key, and a bearer token or user"):
            _opensearch(api_key=KEY, **other)
    with pytest.raises(ValidationError, match="has Authorization, and credentials too"):
        _opensearch(api_key=KEY, headers={"Authorization": "x"})


def test_otlp_sink_needs_only_a_url_and_compresses() -> None:
    table = OtlpSink.model_validate({"type": "otlp", "url": "http://127.0.0.1:4318/"})
    assert table.called == "http://127.0.0.1:4318"
    assert table.receiver.is_compressed
    assert isinstance(table.sink(), Otlp)
