"""Tests that the library in C makes the same events as the general code, and from which lines."""

from __future__ import annotations

import random
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.conversion import native_library
from ocsf_nft.log_prefixes import Configured, Prefixes
from ocsf_nft.ocsf.context import Context, Host, Proxy
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.templates import SIGHTINGS, Pieces
from ocsf_nft.ocsf.versions import VERSIONS
from ocsf_nft.record import Reject
from ocsf_nft.sources.replay import line_numbers
from ocsf_nft.sources.replay.line_numbers import LineNumbers
from tests.conversion import log_lines
from tests.conversion.both_ways import BothWays, without_times
from tests.sources.corpus_cases import cases
from tests.sources.replaying import MESSAGE

if TYPE_CHECKING:
    from ocsf_nft.attempt import Attempt

_CONTEXT: Final = Context(
    host=Host(hostname="node.example", instance_uid="i-1"),
    proxies=(
        Proxy(address=ip_address("10.0.0.1"), port=3128),
        Proxy(address=ip_address("fd00::1"), port=3129),
    ),
    labels=("team:blue", 'a"b\\'),
)
_PREFIX: Final = re.compile(r"^osb:h2-sb:[a-z0-9]+:(?=IN=)")
#: Forms of the corpus that the library leaves to the general code: packets in packets, extension
#: headers, cut headers, other link layers, and devices or prefixes with names of fields.
_ODD: Final = {
    "tcp4 truncated header (8B)",
    "udplite4",
    "icmp4 unreach w/ inner tcp",
    "icmp4 fragneeded mtu",
    "icmp4 redirect",
    "icmp4 ttl exceeded",
    "icmp4 param problem",
    "icmp6 unreach inner",
    "icmp6 pkt too big",
    "icmp6 param problem",
    "esp v4",
    "ah v6",
    "frag6 first",
    "v6 routing hdr",
    "v6 truncated ext",
    "ipv4 options RR+TS",
    "l2 ethertype 88b5",
    "gw ingress vlan 7",
    "gw ingress QinQ",
    "gw ingress arp",
    "gw ingress 88b5",
    "prefix 'osb:h2-sb:=DST=1.1.1'",
}


#: Lines that the general code converts before the library does: their rule is learnt, and then a
#: template, which is made when the general code has seen the form SIGHTINGS times.
_LEARNT: Final = 1 + SIGHTINGS


def _numbered(message: str, number: int) -> bytes:
    return f"[{number:5d}.000001] {_PREFIX.sub('ocsf-nft:sb:egress:', message)}\n".encode()


def test_library_converts_all_usual_forms_of_the_corpus() -> None:
    odd = set()
    for case in cases():
        ways = BothWays(context=_CONTEXT)
        ways.convert_lines(b"".join(_numbered(case.messages[0], each) for each in range(20)))
        if ways.fast.records != 20 - _LEARNT:
            assert ways.fast.records == 0
            odd.add(case.name)
    assert odd == _ODD


@pytest.mark.parametrize(
    ("header", "learnt"),
    [
        ("[ 1234.{:06d}] ", _LEARNT),
        ("<4>[ 1234.{:06d}] ", _LEARNT),
        ("kern  :warn  : [ 1234.{:06d}] ", _LEARNT),
        ("kern:info:[ 1234.{:06d}] ", 20),
        ("[ 1234.{:06d}][   T12] ", _LEARNT),
        ("[ 1234.{:06d}][   X12] ", 20),
        ("[Sun Nov 24 12:34:56 2026] ", _LEARNT),
        ("[Sun Nov  4 12:34:56 2026] ", _LEARNT),
        ("2026-11-24T12:34:56,{:06d}+01:00 ", _LEARNT),
        ("<4>Nov 24 12:34:56 host kernel: ", _LEARNT),
        ("<4>4,{},123456,-;", 20),
        ("4,{},123456,-;", _LEARNT),
        ("Nov 24 12:34:56 host.example kernel: [ 1234.{:06d}] ", _LEARNT),
        ("2026-11-24T12:34:56.{:06d}+01:00 host kernel: ", _LEARNT),
        ("2026-11-24T12:34:56Z 192.0.2.1 kernel: [ 1234.{:06d}] ", _LEARNT),
        ("4,{},123456,c;", _LEARNT),
        ("4,{},123456,-,caller=T1;", 20),
        ("Nov 24 12:34:56 host kernel: [UFW BLOCK] ", _LEARNT),
        ("{:06d} ", 20),
    ],
)
def test_library_converts_lines_with_usual_headers(header: str, learnt: int) -> None:
    ways = BothWays(context=_CONTEXT)
    found = ways.convert_lines(
        b"".join(f"{header.format(each)}{MESSAGE}\n".encode() for each in range(20))
    )
    assert found.tally.records == 20
    assert ways.fast.records == 20 - learnt


def test_secret_in_the_flags_of_a_kmsg_line_is_redacted() -> None:
    ways = BothWays()
    found = ways.convert_lines(
        b"".join(
            f"4,{each},77,-{flags};{MESSAGE}\n".encode()
            for flags in ("", ",password=hunter2hunter2")
            for each in range(20)
        )
    )
    assert ways.fast.records == 20 - _LEARNT
    assert b"hunter2" not in found.events


@pytest.mark.parametrize(
    "stamp",
    ["2300-12-31T23:59:58.1Z", "9999-12-31T23:59:58Z", "0001-01-01T00:00:00Z",
     "1969-12-31T23:59:58.123457Z", "1970-01-01T00:00:00.5Z", "2262-04-11T23:47:16.9Z"],
)  # fmt: skip
def test_extreme_times_are_those_of_the_general_code(stamp: str) -> None:
    ways = BothWays()
    found = ways.convert_lines(f"{stamp} h kernel: {MESSAGE}\n".encode() * 20)
    assert found.tally.records == 20


@pytest.mark.parametrize(("sequence", "skipped"), [((1 << 63) - 1, 2), (1 << 63, 1)])
def test_line_after_a_kmsg_line_with_an_extreme_number_is_read_in_both_ways(
    sequence: int, skipped: int
) -> None:
    found = BothWays().convert([b"4,%d,1,-;usb\n NAME=IN=x OUT=y \n" % sequence])
    assert found.tally.skipped == skipped


def test_configured_rules_keep_their_users_and_may_have_long_names() -> None:
    message = MESSAGE.replace("ocsf-nft:sb:egress:", "{}x ")
    plain = message.replace("UID=0 GID=0 ", "")
    prefixes = Prefixes(
        [
            Configured(begins="vm:", verdict="drop", sandbox="s", rule="vm-forward"),
            Configured(begins="long:", verdict="drop", sandbox="s", rule="\u00e9" * 200),
        ]
    )
    for prefix in ("vm:", "long:"):
        ways = BothWays(prefixes=prefixes)
        for form in (plain, message):
            ways.convert_lines(b"".join(_numbered(form.format(prefix), each) for each in range(20)))


def test_sandboxes_share_templates() -> None:
    ways = BothWays(context=_CONTEXT)
    for each in range(50):
        message = MESSAGE.replace(":sb:", f":sb-{each}:").replace("eth0", f"veth{each}")
        for number in (1, 2):
            ways.convert_lines(_numbered(message, number))
    # One line of each sandbox is for its rule: two sandboxes are enough for the template.
    assert ways.fast.records == 50 - 2


@pytest.mark.parametrize("seed", range(6))
def test_random_files_give_the_same_events_in_both_ways(seed: int) -> None:
    chance = random.Random(seed)
    ways = BothWays(
        context=_CONTEXT if seed % 2 else None,
        version=sorted(VERSIONS)[seed % len(VERSIONS)],
        selected=("", "ocsf-nft:", "[UFW")[seed % 3],
    )
    data = log_lines.log_file(chance, 2_500)
    size = chance.choice((1_000, 70_000, 1 << 18))
    found = ways.convert(data[at : at + size] for at in range(0, len(data), size))
    assert found.tally.records > 1_250
    assert ways.fast.records > 50


def test_wrong_template_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = Mapper.pieces

    def wrong(self: Mapper, attempt: Attempt, version: str) -> Pieces | None:
        found = pieces(self, attempt, version)
        return found and found._replace(literals=(b"x", *found.literals[1:]))

    monkeypatch.setattr(Mapper, "pieces", wrong)
    ways = BothWays()
    found = ways.convert_lines(b"".join(_numbered(MESSAGE, each) for each in range(20)))
    assert found.tally.records == 20
    assert ways.fast.records == 0


def test_line_with_a_secret_is_left_to_the_redactor() -> None:
    ways = BothWays()
    message = MESSAGE.replace("ocsf-nft:sb:egress:", "password: hunter2hunter2 ")
    found = ways.convert_lines(b"".join(_numbered(message, each) for each in range(20)))
    assert ways.fast.records == 0
    assert b"hunter2" not in found.events
    assert found.events.count(b"[redacted:") >= 20


def test_more_forms_than_the_library_stores_are_converted() -> None:
    ways = BothWays()
    for each in range(8_300):  # rules
        message = MESSAGE.replace(":sb:", f":{each}:")
        ways.convert_lines(_numbered(message, 1))
    ways.convert_lines(b"".join(_numbered(MESSAGE, each) for each in range(20)))
    assert ways.fast.records > 15


def test_long_lines_and_lines_without_end_are_converted() -> None:
    for size in (100, 4_096, 70_000, 1 << 20, 3 << 20):
        ways = BothWays()
        line = _numbered(MESSAGE, 1)[:-1] + b"x" * size
        chunks = (line[at : at + 50_000] for at in range(0, len(line), 50_000))
        found = ways.convert((*chunks, b"\n", _numbered(MESSAGE, 2), _numbered(MESSAGE, 3)[:-1]))
        assert found.tally.records + len(found.rejects) == 3


def test_library_counts_equal_lines_as_the_general_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_numbers, "MAX_COUNTED_LINES", 50)
    library = native_library.load_library()
    assert library is not None
    chance = random.Random(1)
    fast, general = native_library.LineCounts(library, 50), LineNumbers()
    fast_user, general_user = native_library.LineCounts(library, 1), LineNumbers()
    for _ in range(60):
        lines = [b"IN=%d" % min(chance.randrange(100), chance.randrange(100)) for _ in range(40)]
        block = b"".join(
            line + chance.choice((b"\n", b"\r\n", b"\nother\n", b"\n__CURSOR=IN=\n"))
            for line in lines
        )
        numbers = general.count_lines(block)
        assert fast.count_lines(block) == numbers
        # Another process uses the numbers.
        fast_user.use_counted(numbers)
        general_user.use_counted(numbers)
        found = [(fast_user.count_line(line), general_user.count_line(line)) for line in lines]
        assert all(one == other for one, other in found)
    assert [fast.count_line(line) for line in lines] == [general.count_line(line) for line in lines]
    assert max(number for number, _ in found) > 1


def test_kept_events_stay_valid_over_several_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native_library, "_LARGE_BUFFER_BYTES", 300_000)
    ways = BothWays()
    ways.fast.keep_events(is_on=True)
    block = b"".join(_numbered(MESSAGE, each) for each in range(300))
    for _ in range(3):
        ways.fast.keep_events(is_on=True)
        found = [each for each in ways.fast.convert(block) if not isinstance(each, Reject)]
        expected = [each for each in ways.general.convert(block) if not isinstance(each, Reject)]
        assert without_times(b"".join(found)) == without_times(b"".join(expected))
    assert ways.fast.records > 800


def test_event_that_is_larger_than_a_buffer_is_made_by_the_general_code(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(native_library, "_BUFFER_BYTES", 1_000)
    ways = BothWays()
    found = ways.convert_lines(b"".join(_numbered(MESSAGE, each) for each in range(20)))
    assert found.tally.records == 20
    assert ways.fast.records == 0


def test_variable_leaves_the_library_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(native_library.VARIABLE, "1")
    assert native_library.load_library() is None
