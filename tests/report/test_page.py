"""Pages of reports: hostile texts, and what a page refers to."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any, Final

import pytest

from ocsf_nft.report.aggregator import Aggregator
from ocsf_nft.report.html import Html, element, joined
from ocsf_nft.report.page import page
from ocsf_nft.report.selection import Span
from ocsf_nft.report.text import incident as incident_text
from tests.report.day import BEGIN, Event
from tests.report.test_aggregator import DAY, view_of

if TYPE_CHECKING:
    from collections.abc import Callable

_HOSTILE: Final = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><style>*{display:none}",
    "</title></svg></table></section><iframe src=//evil>",
    "&lt;b&gt;&#x3c;i&#x3e; {{7*7}} ${7*7} %3Cscript%3E",
    "\u202egpj.exe\u202c\u200b\ufeff\x1b[31m\x00\x07\r\n\t",
    "\ud800\udfff",
    "é" * 900_000,
)
#: Texts that are no free text: they select what the page shows.
_FIXED: Final = frozenset(
    {"event_code", "type", "uid", "correlation_uid", "src_url", "pid", "value"}
)
_UNSAFE: Final = re.compile(
    "[\u202a-\u202e\u2066-\u2069\u200b\ufeff\x00-\x09\x0b-\x1f\x7f\ud800-\udfff]"
)


class _Parser(HTMLParser):
    """Parser that notes all tags, with the names of their attributes, and the values."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.values: list[tuple[str, str | None]] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(name for name, _ in attrs)))
        self.values += attrs

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def _parsed(html: bytes) -> _Parser:
    parser = _Parser()
    parser.feed(html.decode())
    parser.close()
    return parser


def _page(found: tuple[Event, ...]) -> bytes:
    return page(view_of(found), subject=f"Sandbox {found[0]['message']}", made_ms=BEGIN)


def changed(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """Return events with all their free texts changed."""
    if isinstance(value, dict):
        return {name: changed(each, change, name) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(changed(each, change, key) for each in value)
    return change(value) if isinstance(value, str) and key not in _FIXED else value


@pytest.mark.parametrize("hostile", _HOSTILE, ids=range(len(_HOSTILE)))
def test_no_element_and_no_attribute_comes_from_an_event(hostile: str) -> None:
    def made(change: Callable[[str], str]) -> bytes:
        aggregator = Aggregator(Span())
        # As objects: orjson can't write lone surrogates.
        for event in changed(DAY, change):
            aggregator.add(event)
        return page(aggregator.view(), subject=change("Sandbox"), made_ms=BEGIN)

    plain, found = (
        _parsed(made(lambda text: f"{text} x")),
        _parsed(made(lambda text: text + hostile)),
    )
    assert found.tags == plain.tags
    own = {value for name, value in found.values if name not in {"aria-label", "data-label"}}
    assert own <= {value for _, value in plain.values}
    assert _UNSAFE.search("".join(found.texts)) is None
    assert len("".join(found.texts)) < 400_000


def test_lines_for_a_terminal_have_no_control_characters() -> None:
    found = changed(DAY, lambda text: f"{text}\x1b]0;x\x07\u202e\n")
    for line in incident_text(view_of(found)):
        assert line.isprintable(), line


@pytest.mark.parametrize(
    "address",
    [
        "javascript:alert(1)", "JavaScript:alert(1)", "data:text/html,x", "http://a.example/",
        'https://a.example/" onclick=x', "https://a.example/<b>", " https://a.example/", "//a",
        "https://a.example/\u202e", "vbscript:x", "https:a",
    ],
)  # fmt: skip
def test_only_a_plain_https_address_becomes_a_link(address: str) -> None:
    found = json.loads(json.dumps(DAY))
    for event in found:
        if event["class_uid"] == 2004:
            event["finding_info"]["src_url"] = address
    links = [value for name, value in _parsed(_page(found)).values if name == "href"]
    assert all(value is not None and value.startswith("#") for value in links)


def test_page_links_to_the_runbook_without_a_referrer() -> None:
    html = _page(DAY).decode()
    assert (
        '<a href="https://ocsf-nft.example/runbook/scan-finding" rel="noopener noreferrer">' in html
    )
    assert '<meta name="referrer" content="no-referrer">' in html


def test_page_needs_nothing_from_elsewhere_and_its_policy_permits_nothing() -> None:
    html = _page(DAY).decode()
    parser = _parsed(html.encode())
    names = {name for tag in parser.tags for name in tag[1:]}
    assert names.isdisjoint({"src", "srcset", "style", "action", "background", "data", "poster"})
    assert not any(name.startswith("on") for name in names)
    assert {tag[0] for tag in parser.tags}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "embed", "form", "base", "use", "image"}
    )
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert re.findall(r"url\(|@import|@font-face|expression", style) == []
    assert "<" not in style
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert (
        f"default-src &#x27;none&#x27;; style-src &#x27;sha256-{digest}&#x27;; "
        "base-uri &#x27;none&#x27;; form-action &#x27;none&#x27;"
    ) in html


def test_page_has_the_answers_and_all_sections() -> None:
    html = _page(DAY)
    text = " ".join(_parsed(html).texts)
    for part in (
        "4 open findings", "Take CAP_NET_ADMIN from the container", "42,637 packets blocked",
        "/usr/bin/tini", "xargs[4600]", "TCP 169.254.169.254:80 http", "The fence was not read",
        "registry.example/agent:1.2", "team=search", "acme", "eu-central-1",
    ):  # fmt: skip
        assert part in text, part
    assert len(html) < 200_000


def test_page_of_no_events_is_complete() -> None:
    text = " ".join(_parsed(page(view_of([]), subject="Empty", made_ms=BEGIN)).texts)
    for part in ("No finding.", "No process.", "No gap is known in this period.", "No sandbox."):
        assert part in text


def test_processes_without_children_are_listed_up_to_a_number() -> None:
    text = " ".join(_parsed(_page(DAY)).texts)
    assert text.count(" blocked in 1 event") <= 9
    assert "and 20 processes like these" in text


def test_page_is_accessible() -> None:
    parser = _parsed(_page(DAY))
    tags = [tag[0] for tag in parser.tags]
    assert tags.count("h1") == tags.count("main") == tags.count("title") - _bars(parser) == 1
    headers = [tag for tag in parser.tags if tag[0] == "th"]
    assert all("scope" in tag for tag in headers)
    for tag in parser.tags:
        if tag[0] == "svg":
            assert {"aria-hidden", "aria-label"} & set(tag)
    anchors = {value for name, value in parser.values if name == "id"}
    links = {value for name, value in parser.values if name == "href" and value}
    assert {link[1:] for link in links if link.startswith("#")} <= anchors


def _bars(parser: _Parser) -> int:
    """Return the number of titles inside of charts."""
    titles = 0
    is_inside = False
    for tag in parser.tags:
        is_inside = tag[0] == "svg" or (is_inside and tag[0] != "/svg")
        titles += is_inside and tag[0] == "title"
    return titles


def test_builder_escapes_texts_and_attributes() -> None:
    found = element("p", "<&\"'\x1b", Html("<b></b>"), None, "", class_='a"b', data_x=None, id=5)
    assert found.text == '<p class="a&quot;b" id="5">&lt;&amp;&quot;&#x27;\\x1b<b></b></p>'
    assert joined(["<", Html("<br>")], "&").text == "&lt;&amp;<br>"
    assert element("meta", name="a").text == '<meta name="a">'
