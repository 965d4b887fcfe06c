from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft import demo
from ocsf_nft.demo import Collector, attempts, proxy, screen
from ocsf_nft.demo.attempts import Attempt, Outcome, Trace
from ocsf_nft.demo.screen import Row, Screen, folded
from ocsf_nft.errors import UnsupportedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=12)
_TREES: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=20,
)
_EVENT = {
    "activity_name": "Refuse",
    "severity": "Medium",
    "message": "[red]not markup[/red]",
    "status_detail": "Dropped. Use the proxy.",
    "firewall_rule": {"name": "egress"},
    "connection_info": {"protocol_num": 17},
    "dst_endpoint": {"ip": "203.0.113.53", "port": 53},
}
_TRACE = Trace(protocol=17, destination="203.0.113.53", port=53)
_REFUSED = Outcome(got_through=False, saw="refused", milliseconds=0.25)
_THROUGH = Outcome(got_through=True, saw="sent", milliseconds=0.25)


def _attempt(trace: Trace | None, *command: str) -> Attempt:
    return Attempt(title="a try", command=command, watch=attempts._watch_python, trace=trace)


@given(_TREES, st.integers(min_value=1, max_value=100))
def test_folding_changes_only_the_space_between(value: Any, width: int) -> None:
    assert json.loads(folded(value, width)) == value


@given(st.lists(st.integers(0, 9999), max_size=60), st.integers(min_value=20, max_value=80))
def test_folded_lines_fit(numbers: list[int], width: int) -> None:
    assert all(len(line) <= width for line in folded({"n": numbers}, width).splitlines())


def test_folding_keeps_letters_of_all_languages() -> None:
    assert folded({"größe": ["é", 1]}, 80) == '{"größe": ["é", 1]}'
    assert folded({"größe": ["é", 1]}, 3) == '{\n  "größe": [\n    "é",\n    1\n  ]\n}'


def test_folding_puts_plain_members_on_one_line_and_trees_on_separate_lines() -> None:
    value = {"a": 1, "b": 2, "c": {"d": 3}, "e": 4, "f": [5, 6], "g": 777777777, "h": 8}
    assert folded(value, 20) == (
        '{\n  "a": 1, "b": 2,\n  "c": {"d": 3},\n  "e": 4,\n  "f": [5, 6],\n'
        '  "g": 777777777,\n  "h": 8\n}'
    )
    assert folded({"l": [], "a": 11111, "b": 22222, "c": 3}, 26) == (
        '{\n  "l": [],\n  "a": 11111, "b": 22222,\n  "c": 3\n}'
    )


@pytest.mark.parametrize(
    ("trace", "outcome", "event", "fault"),
    [
        (_TRACE, _REFUSED, _EVENT, None),
        (_TRACE, _REFUSED, None, "was not reported"),
        (_TRACE, _THROUGH, _EVENT, "was not refused"),
        (None, _THROUGH, None, None),
        (None, _REFUSED, None, "did not get through"),
    ],
)
def test_row_has_no_fault_if_attempt_was_refused_and_reported(
    trace: Trace | None, outcome: Outcome, event: dict[str, Any] | None, fault: str | None
) -> None:
    assert Row(attempt=_attempt(trace), outcome=outcome, event=event).fault == fault


def test_screen_shows_texts_of_programs_and_events_without_markup(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    hostile = Outcome(got_through=False, saw="[bold]no\x1b[2J", milliseconds=0.25)
    with Screen() as shown:
        shown.add(Row(attempt=_attempt(_TRACE), outcome=hostile, event=_EVENT))
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "[bold]no�[2J" in printed.err
    assert "[red]not markup[/red]" in printed.err
    assert "Use the proxy." in printed.err
    assert "\x1b" not in printed.err


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, True),
        ({"connection_info": {"protocol_num": 6}}, False),
        ({"dst_endpoint": {"ip": "203.0.113.7", "port": 53}}, False),
        ({"dst_endpoint": {"ip": "203.0.113.53"}}, False),
        ({"unmapped": {"ethertype": 0x88B5}}, False),
        ({"activity_name": "Open"}, False),
    ],
)
def test_trace_finds_its_event_by_content(changed: dict[str, Any], *, expected: bool) -> None:
    assert _TRACE.is_in(_EVENT | changed) is expected


async def test_collector_finds_an_event_before_and_after_its_arrival() -> None:
    collector, is_over = Collector(), asyncio.Event()

    async def events() -> AsyncIterator[dict[str, Any]]:
        yield {"activity_name": "Start"}
        yield _EVENT
        await is_over.wait()

    waiting = asyncio.create_task(collector.find(_TRACE.is_in, 60))
    await asyncio.sleep(0)
    collecting = asyncio.create_task(collector.collect(events()))
    assert await waiting == _EVENT
    assert await collector.find(_TRACE.is_in, 60) == _EVENT
    assert await collector.find(lambda _event: False, 0.01) is None
    is_over.set()
    await collecting


async def test_collector_stops_waiting_when_the_service_ends() -> None:
    async def events() -> AsyncIterator[dict[str, Any]]:
        yield {"activity_name": "Stop"}

    collector = Collector()
    waiting = asyncio.create_task(collector.find(_TRACE.is_in, 60))
    await asyncio.sleep(0)
    await collector.collect(events())
    assert await asyncio.wait_for(waiting, 60) is None


@pytest.mark.parametrize(
    ("script", "saw", "got_through"),
    [
        ('print(\'{"saw": "x", "milliseconds": 1}\')', "x", True),
        ("import sys; print('broken', file=sys.stderr); sys.exit(3)", "broken", False),
        ("pass", "", True),
    ],
)
def test_program_with_unreadable_output_is_judged_by_its_exit_code(
    script: str, saw: str, *, got_through: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        outcome = attempts._watch_python(process, 0.0)
    assert (outcome.saw, outcome.got_through) == (saw, got_through)


def test_curl_reports_its_own_duration_in_milliseconds_and_its_reason() -> None:
    script = (
        "import sys; print('page'); print('200 0.25', end='');"
        "print('curl: (7) Failed to connect to 203.0.113.7 port 443: refused', file=sys.stderr);"
        "sys.exit({code})"
    )
    for code, saw in ((0, "200: page"), (7, "refused")):
        with subprocess.Popen(
            [sys.executable, "-c", script.format(code=code)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            outcome = attempts._watch_curl(process, 0.0)
        assert outcome == Outcome(got_through=code == 0, saw=saw, milliseconds=250)


def test_stub_proxy_answers_requests_to_a_proxy_without_connecting() -> None:
    assert b" 200 OK\r\n" in proxy._answer(b"GET http://example.com/ HTTP/1.1\r\n\r\n")
    assert b" 501 " in proxy._answer(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n")
    assert b" 501 " in proxy._answer(b"GET / HTTP/1.1\r\n\r\n")


def test_output_on_a_wide_screen_has_limited_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert Screen()._console.width == screen._WIDEST


def test_screen_of_a_terminal_grows_and_shows_the_newest_rows_that_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.setenv(variable, "1")
    for lines, fitting in ((21, 4), (23, 4), (24, 5), (11, 1)):
        monkeypatch.setenv("LINES", str(lines))
        with Screen() as shown:
            assert shown.is_watched
            for number in range(1, 7):
                attempt = replace(_attempt(_TRACE), title=f"try {number}.")
                shown.add(Row(attempt=attempt, outcome=_REFUSED, event=_EVENT))
            capsys.readouterr()
            shown.add(Row(attempt=_attempt(_TRACE), outcome=_REFUSED, event=_EVENT))
            drawn = capsys.readouterr().err
            assert "a try" in drawn
            assert drawn.count("try ") == fitting - 1, lines
            assert drawn.count(f"try {8 - fitting}.") == (fitting > 1)
        final = capsys.readouterr().err.rpartition("Attempt and result")[2]
        assert final.count("try ") == 6


def test_screen_shows_failed_attempts(capsys: pytest.CaptureFixture[str]) -> None:
    with Screen() as shown:
        shown.conclude([])
        shown.add(Row(attempt=_attempt(_TRACE), outcome=_REFUSED, event=None))
    printed = capsys.readouterr().err
    assert (
        "0 of 0 attempts refused and reported. The sandbox and its fence were removed." in printed
    )
    assert "This attempt was not reported" in printed
    assert any(line.startswith("!  a try") for line in printed.splitlines())
    shown.conclude([{"activity_name": "Refuse", "severity": "Medium"}])
    assert (
        "0 of 1 attempts refused and reported, none waited longer than 0.2 ms. The sandbox"
        in " ".join(capsys.readouterr().err.split())
    )


def test_screen_shows_refused_and_allowed_attempts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (
        Row(attempt=_attempt(_TRACE), outcome=_REFUSED, event=_EVENT),
        Row(attempt=_attempt(None), outcome=_THROUGH, event=None),
    )
    for columns, has_hint in ((110, True), (109, False)):
        monkeypatch.setenv("COLUMNS", str(columns))
        with Screen() as shown:
            assert shown.is_watched is False
            for row in rows:
                shown.add(row)
        lines = capsys.readouterr().err.splitlines()
        (refused,) = (line for line in lines if line.startswith("✗  a try"))
        assert refused.split() == ["✗", "a", "try", "Medium", "[red]not", "markup[/red]"]
        (allowed,) = (line for line in lines if line.startswith("✓  a try"))
        assert allowed.split()[3:] == ["-", "no", "event:", "this", "way", "out", "is", "allowed"]
        (took,) = (line for line in lines if "0.25 ms refused" in line)
        assert took.split()[3:] == ["egress", *["Use", "the", "proxy."] * has_hint]
        assert not any("≤" in line for line in lines)


def test_screen_marks_attempts_that_do_not_time_themselves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outside = replace(_REFUSED, milliseconds=12.6, is_timed_outside=True)
    with Screen() as shown:
        for outcome in (outside, _REFUSED):
            shown.add(Row(attempt=_attempt(_TRACE), outcome=outcome, event=_EVENT))
    printed = capsys.readouterr().err
    assert "≤ 13 ms refused" in printed
    assert " 0.25 ms refused" in printed
    assert "≤ counted from the start of the program; others measure their own time" in printed


def test_screen_concludes_with_the_first_event_and_counts_events_of_the_kernel(
    capsys: pytest.CaptureFixture[str],
) -> None:
    quiet = {"activity_name": "Refuse", "severity": "Informational"}
    first = _EVENT | {"message": "a line that is wider than the screen " * 4}
    cases: tuple[tuple[list[dict[str, Any]], str], ...] = (
        ([_EVENT, {**quiet, "activity_name": "Open"}], ""),
        ([_EVENT, quiet], "1 more event reports packets of the sandbox's kernel "),
        ([quiet, quiet], "2 more events report packets of the sandbox's kernel "),
    )
    for events, note in cases:
        shown = Screen()
        for event in (None, first, _EVENT):
            shown.rows.append(Row(attempt=_attempt(_TRACE), outcome=_REFUSED, event=event))
        slow = replace(_THROUGH, milliseconds=700)
        shown.rows.append(Row(attempt=_attempt(None), outcome=slow, event=None))
        shown.conclude(events)
        printed = capsys.readouterr().err
        _, title, text = printed.partition("The complete event of the first attempt")
        assert title
        assert json.loads(text[text.index("{\n") : text.index("\n}") + 2]) == first
        words = " ".join(text.split())
        counted = "2 of 3 attempts refused and reported, none waited longer than 0.2 ms. "
        assert f"{counted}{note}" in words
        assert ("more event" in words) == bool(note)
        assert "Next: ocsf-nft check shows what this host can do" in words
    shown.give_up()
    assert capsys.readouterr().err == "Ended early. The sandbox and its fence were removed.\n"


def test_ping_without_error_output_is_judged_by_its_exit_code() -> None:
    for script, expected in (("pass", True), ("raise SystemExit(1)", False)):
        with subprocess.Popen(
            [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True
        ) as process:
            outcome = attempts._watch_ping(process, time.perf_counter() - 1)
        assert (outcome.got_through, outcome.saw) == (expected, "no complaint")
        assert outcome.is_timed_outside
        assert 1000 <= outcome.milliseconds < 60_000


def test_demo_raises_the_error_of_its_work() -> None:
    async def work() -> None:
        raise UnsupportedError("not here")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with demo._blocked_signals(), pytest.raises(UnsupportedError, match="not here"):
        asyncio.run(demo._until_signal(work()))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
