from __future__ import annotations

import pytest

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf import messages
from ocsf_nft.process import Attribution, Process, Seen
from tests.conformance.corpus import NOW_NS, OUT, V4, record
from tests.ocsf.mapped import MAPPER, event_of


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "tcp6",
            (
                "Blocked TCP connection from uid 1000 in sandbox sb1 to [2001:db8::7]:443 "
                "(https); answered with a TCP reset"
            ),
        ),
        (
            "tcp without a user",
            (
                "Blocked TCP connection from sandbox sb1 to 203.0.113.7:443 (https); answered "
                "with a TCP reset"
            ),
        ),
        (
            "icmpv6 echo",
            (
                "Blocked ICMPv6 packet from sandbox sb1 to 2001:db8::7 (ping); answered with "
                "an ICMP error"
            ),
        ),
        (
            "icmp echo",
            (
                "Blocked ICMP packet from sandbox sb1 to 203.0.113.7 (ping); answered with an "
                "ICMP error"
            ),
        ),
        (
            "protocol 253",
            (
                "Blocked IP protocol 253 packet from sandbox sb1 to 203.0.113.7; answered "
                "with an ICMP error"
            ),
        ),
        (
            "forward",
            (
                "Blocked TCP connection from 10.200.0.2:41254 to 203.0.113.7:443 (https) "
                "through sandbox sb1; answered with a TCP reset"
            ),
        ),
        (
            "ingress",
            (
                "Dropped TCP connection from 198.51.100.1:41254 to 10.200.0.2:443 (https) "
                "in sandbox sb1"
            ),
        ),
        ("link arp", "Dropped ARP frame from sandbox sb1"),
        (
            "vm forward",
            (
                "Dropped TCP connection from the VM of sandbox sb1 to 169.254.1.1:443 "
                "(https) through its host"
            ),
        ),
        (
            "vm input",
            (
                "Dropped TCP connection from the VM of sandbox sb1 to 10.200.0.1:22 (ssh) "
                "on its host"
            ),
        ),
        (
            "vm ingress",
            (
                "Dropped TCP connection from 198.51.100.1:41254 to 10.200.0.2:443 (https) "
                "in the VM of sandbox sb1"
            ),
        ),
        (
            "vm link",
            (
                "Dropped UDP packet (source 198.51.100.9, MAC 02:00:00:00:00:01) from the "
                "VM of sandbox sb1 to 203.0.113.7:53 (domain)"
            ),
        ),
        (
            "vm link arp",
            ("Dropped ARP frame (MAC 02:00:00:00:00:01) from the VM of sandbox sb1"),
        ),
        ("link 88b5", "Dropped ethertype 0x88b5 frame from sandbox sb1"),
        (
            "foreign",
            (
                "Blocked TCP connection from 10.200.0.2:41254 to 203.0.113.7:443 (https) "
                'by rule "[UFW BLOCK]"'
            ),
        ),
        (
            "nothing but macs",
            'Logged frame from 02:00:00:00:00:01 by rule "x"; the verdict is unknown',
        ),
        (
            "nothing but a prefix",
            'Logged frame from an unknown sender by rule "x"; the verdict is unknown',
        ),
        (
            "unprintable prefix",
            (
                "Logged TCP connection from 10.200.0.2:41254 to 203.0.113.7:443 (https) "
                'by rule "\\x00\\x80\\ud800"; the verdict is unknown'
            ),
        ),
    ],
)
def test_message_describes_the_record(name: str, message: str) -> None:
    assert event_of(name)["message"] == message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("tcp4", "set HTTPS_PROXY=http://10.200.0.1:3128"),
        ("tcp6", "set HTTPS_PROXY=http://[fd00:200::1]:3128"),
        ("metadata4", "This sandbox may not use the cloud's metadata service"),
        ("udp dns", "let the proxy resolve them"),
        ("gre", "The sandbox may send only TCP to the proxy at http://10.200.0.1:3128"),
        ("ingress", "The sandbox may receive only replies of its proxy"),
        ("link 88b5", "The sandbox may send only frames of the IP stack"),
    ],
)
def test_detail_has_the_advice_for_a_program(name: str, hint: str) -> None:
    assert hint in event_of(name)["status_detail"]


def test_message_has_the_name_of_the_protocol_that_people_use() -> None:
    for number, name in (
        (3, "GGP"),
        (4, "IP in IP"),
        (5, "ST"),
        (41, "IPv6 in IP"),
        (42, "IP protocol 42"),
        (58, "ICMPv6"),
    ):
        sent = Attempt.of(record(**V4, **OUT, protocol=number))
        message = MAPPER.network_activity(sent, processed_ns=NOW_NS).message
        assert f"Blocked {name} packet from sandbox sb1 to 203.0.113.7; " in message


def test_name_of_a_process_is_cut_after_64_characters() -> None:
    for characters, shown in ((64, "x" * 64), (65, "x" * 63 + "…")):
        process = Process(pid=7, name="x" * characters)
        by = Attribution(method="capture", reason="seen", process=process)
        assert messages.sender_text("sb1", 1000, by) == f"{shown}[7] (uid 1000) in sandbox sb1"


def test_actor_text_has_the_number_of_candidate_processes() -> None:
    for seen, unnamed, shown in (
        ([1], 0, "uid 1000 in sandbox sb1"),
        ([None, 1], 0, "one or more of 2 processes of uid 1000 in sandbox sb1"),
        ([1, 1], 0, "2 processes of uid 1000 in sandbox sb1"),
        ([1, 2], 3, "5 processes of uid 1000 in sandbox sb1"),
        ([], 3, "one or more of 3 processes of uid 1000 in sandbox sb1"),
    ):
        processes = tuple(Seen(process=Process(pid=pid), calls=n) for pid, n in enumerate(seen))
        by = Attribution(method="capture", reason="seen", seen=processes, unnamed=unnamed)
        assert messages.sender_text("sb1", 1000, by) == shown
    nameless = Attribution(method="capture", reason="seen", process=Process(pid=7))
    assert messages.sender_text("sb1", None, nameless) == "process [7] in sandbox sb1"


def test_elapsed_time_is_in_milliseconds_below_a_second() -> None:
    for milliseconds, shown in (
        (-1, "0 ms"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1000, "1.0 s"),
        (1001, "1.0 s"),
        (100_060, "100.1 s"),
    ):
        assert messages.elapsed(NOW_NS, NOW_NS + milliseconds * 1_000_000) == shown
