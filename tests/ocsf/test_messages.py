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
                "uid 1000 in sandbox sb1 tried TCP to [2001:db8::7]:443 (https) directly; "
                "refused with a reset"
            ),
        ),
        (
            "tcp without a user",
            ("sandbox sb1 tried TCP to 203.0.113.7:443 (https) directly; refused with a reset"),
        ),
        (
            "icmpv6 echo",
            "sandbox sb1 tried ICMPv6 to 2001:db8::7 (ping) directly; refused with an ICMP error",
        ),
        (
            "icmp echo",
            "sandbox sb1 tried ICMP to 203.0.113.7 (ping) directly; refused with an ICMP error",
        ),
        (
            "protocol 253",
            (
                "sandbox sb1 tried IP protocol 253 to 203.0.113.7 directly; "
                "refused with an ICMP error"
            ),
        ),
        (
            "forward",
            (
                "10.200.0.2:41254, behind sandbox sb1, tried TCP to 203.0.113.7:443 "
                "(https) directly; "
                "refused with a reset"
            ),
        ),
        (
            "ingress",
            (
                "198.51.100.1:41254 sent sandbox sb1 TCP to 10.200.0.2:443 (https); "
                "dropped without an answer"
            ),
        ),
        ("link arp", "sandbox sb1 sent an ARP frame; dropped without an answer"),
        (
            "vm forward",
            (
                "the VM of sandbox sb1 tried TCP to 169.254.1.1:443 (https) through its host; "
                "dropped without an answer"
            ),
        ),
        (
            "vm input",
            (
                "the VM of sandbox sb1 tried TCP to 10.200.0.1:22 (ssh) on its host; "
                "dropped without an answer"
            ),
        ),
        (
            "vm ingress",
            (
                "198.51.100.1:41254 sent the VM of sandbox sb1 TCP to 10.200.0.2:443 (https); "
                "dropped without an answer"
            ),
        ),
        (
            "vm link",
            (
                "the VM of sandbox sb1 sent UDP to 203.0.113.7:53 (domain) from 198.51.100.9 "
                "by 02:00:00:00:00:01; dropped without an answer"
            ),
        ),
        (
            "vm link arp",
            (
                "the VM of sandbox sb1 sent an ARP frame by 02:00:00:00:00:01; "
                "dropped without an answer"
            ),
        ),
        ("link 88b5", "sandbox sb1 sent a frame of type 0x88b5; dropped without an answer"),
        (
            "foreign",
            (
                "TCP to 203.0.113.7:443 (https) from 10.200.0.2:41254 matched rule "
                '"[UFW BLOCK]"; refused'
            ),
        ),
        (
            "nothing but macs",
            'a frame from 02:00:00:00:00:01 matched rule "x"; logged, and no more is known',
        ),
        (
            "nothing but a prefix",
            'a frame from an unknown sender matched rule "x"; logged, and no more is known',
        ),
        (
            "unprintable prefix",
            (
                "TCP to 203.0.113.7:443 (https) from 10.200.0.2:41254 matched rule "
                '"\\x00\\x80\\ud800"; '
                "logged, and no more is known"
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
        ("metadata4", "metadata service is not for this sandbox"),
        ("udp dns", "let the proxy resolve them"),
        ("gre", "Only TCP to the proxy at http://10.200.0.1:3128 may leave"),
        ("ingress", "Only replies of the sandbox's proxy"),
        ("link 88b5", "Only frames of the IP stack may leave"),
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
        assert f" tried {name} to 203.0.113.7 directly; " in message


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
