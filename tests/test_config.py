from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import config
from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.netns import Namespace, named, of_process

if TYPE_CHECKING:
    from pathlib import Path

FILE = """
output = "/var/log/ocsf-nft/events.jsonl"
state_dir = "/var/lib/elsewhere"

[[sandbox]]
name = "agent-1"
netns = "agent-1"
proxy = ["10.0.0.1:3128", "[fd00::1]:3128"]
allow = ["udp:10.0.0.53:53"]
host_guard = "veth-1"
install = true

[[sandbox]]
name = "agent-2"
pid = 4242
source = "journal"
"""


def _read_by(source: str, transport: str) -> dict[str, Any]:
    return {"sandbox": [{"name": "a", "source": source, "transport": transport}]}


def test_a_file_is_read_into_checked_values(tmp_path: Path) -> None:
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(FILE)
    read = config.load(path)
    assert read.output_path is not None
    first, second = read.sandbox
    assert first.namespace == named("agent-1")
    assert [str(place) for place in first.spec().allowed] == [
        "10.0.0.1:3128",
        "10.0.0.53:53",
        "[fd00::1]:3128",
    ]
    assert first.spec().guard_device == "veth-1"
    assert second.namespace == of_process(4242)


def test_the_least_is_one_sandbox_by_its_name() -> None:
    read = config.parse({"sandbox": [{"name": "a"}]}, where="test")
    assert read.output_path is None
    assert read.sandbox[0].namespace is None
    assert Namespace() != of_process(1)


@pytest.mark.parametrize(
    ("source", "transport"),
    [("auto", "none"), ("nflog", "nflog"), ("kmsg", "kmsg"), ("journal", "kmsg"), ("kmsg", "auto")],
)
def test_a_source_goes_with_the_transport_that_it_reads(source: str, transport: str) -> None:
    (read,) = config.parse(_read_by(source, transport), where="test").sandbox
    assert (read.source, read.transport) == (source, transport)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({}, "sandbox"),
        ({"sandbox": []}, "at least 1"),
        ({"sandbx": [{"name": "a"}]}, "there is no key sandbx: did you mean sandbox?"),
        ({"sandbox": [{"name": "a", "prxy": []}]}, "sandbox.0.prxy: did you mean proxy?"),
        ({"sandbox": [{"name": "a/b"}]}, "no sandbox name"),
        ({"sandbox": [{"name": 3}]}, "must be text"),
        ({"sandbox": [{"name": "a", "install": True}]}, "at least one --proxy"),
        ({"sandbox": [{"name": "a", "proxy": ["1.2.3.4"]}]}, "no ADDR:PORT"),
        ({"sandbox": [{"name": "a", "proxy": [3]}]}, "must be text"),
        ({"sandbox": [{"name": "a", "proxy": "1.2.3.4:5"}]}, "sandbox.0.proxy: must be a list"),
        ({"sandbox": {"name": "a"}}, "sandbox: must be a list"),
        ({"sandbox": [{"name": "a", "netns": ""}]}, "sandbox.0.netns: must not be empty"),
        ({"sandbox": [{"name": "a", "netns": "a\0"}]}, "sandbox.0.netns: must not hold a NUL"),
        ({"sandbox": [{"name": "a"}], "output": ""}, "output: must not be empty"),
        ({"sandbox": [{"name": "a"}], "output": "\0"}, "output: must not hold a NUL"),
        ({"sandbox": [{"name": "a"}], "state_dir": ""}, "state_dir: must not be empty"),
        ({"sandbox": [{"name": "a"}], "state_dir": "/a\0"}, "state_dir: must not hold a NUL"),
        ({"sandbox": [{"name": "a", "group": 0}]}, "group"),
        ({"sandbox": [{"name": "a", "transport": "smoke"}]}, "'auto', 'nflog'"),
        ({"sandbox": [{"name": "a", "netns": "a", "pid": 1}]}, "give one"),
        ({"sandbox": [{"name": "a"}, {"name": "a"}]}, "the same name"),
        (_read_by("nflog", "kmsg"), "source nflog, where a fence with transport kmsg logs nothing"),
        (_read_by("nflog", "none"), "give transport nflog, or leave it out"),
        (_read_by("kmsg", "nflog"), "give transport kmsg, or leave it out"),
        (_read_by("journal", "nflog"), "give transport kmsg, or leave it out"),
        (_read_by("journal", "none"), "give transport kmsg, or leave it out"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse(found, where="ocsf-nft.toml")
    message = str(refused.value)
    assert sentence in message
    assert message.startswith("ocsf-nft.toml: ")
    assert "\n" not in message


def test_a_file_that_is_not_there_or_not_toml_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="No such file"):
        config.load(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"sandbox = [", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match="is not TOML"):
            config.load(broken)
