from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft import config
from ocsf_nft.errors import AbsentError, UsageError
from ocsf_nft.netns import Namespace, named, of_process
from ocsf_nft.privileges import Capability
from ocsf_nft.record import Prefix
from ocsf_nft.service.startup import capabilities

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


PREFIXES = """
[[prefix]]
begins = "MYFW-DROP "
verdict = "drop"

[[prefix]]
begins = "[UFW"
sandbox = "vm-1"
rule = "ufw"
verdict = "log"
"""


def _of_profile(profile: str, **given: object) -> dict[str, Any]:
    return {"sandbox": [{"name": "a", "profile": profile, "install": True, **given}]}


_VM = {"device": "vmtap-0", "subnet": ["172.16.0.0/30", "fd00:7::/64"], "gateway_port": 3128}


def _prefixes(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"sandbox": [{"name": "a"}], "prefix": rows}


def _read_by(source: str, transport: str) -> dict[str, Any]:
    return {"sandbox": [{"name": "a", "source": source, "transport": transport}]}


def test_a_file_is_read_into_checked_values(tmp_path: Path) -> None:
    path = tmp_path / "ocsf-nft.toml"
    path.write_text(FILE)
    read = config.load(path)
    assert [sink.called for sink in read.sinks] == ["/var/log/ocsf-nft/events.jsonl"]
    first, second = read.sandbox
    assert first.namespace == named("agent-1")
    assert [str(each) for each in first.spec().allowed] == [
        "10.0.0.1:3128",
        "10.0.0.53:53",
        "[fd00::1]:3128",
    ]
    assert first.spec().guard_device == "veth-1"
    assert second.namespace == of_process(4242)


def test_only_the_name_of_a_sandbox_is_required() -> None:
    read = config.parse({"sandbox": [{"name": "a"}]}, where="test")
    assert [sink.called for sink in read.sinks] == ["-"]
    assert read.sandbox[0].namespace is None
    assert Namespace() != of_process(1)


def test_host_log_needs_no_sandbox_and_only_the_privilege_to_read_it() -> None:
    read = config.parse({"host_log": "kmsg"}, where="test")
    assert not read.sandbox
    assert capabilities(read) == {Capability.SYSLOG}
    assert not capabilities(config.parse({"host_log": "journal"}, where="test"))
    fenced = {"sandbox": [_FENCED_HERE], "attribution": {"method": "user"}}
    both = config.parse({"host_log": "kmsg"} | fenced, where="test")
    assert capabilities(both) == {Capability.NET_ADMIN, Capability.SYSLOG}


_FENCED_HERE = {"name": "a", "proxy": ["1.2.3.4:5"], "install": True, "transport": "nflog"}


def test_prefixes_are_read_with_or_without_a_sandbox(tmp_path: Path) -> None:
    path = tmp_path / "ocsf-nft.toml"
    for content in (f"{PREFIXES}[[sandbox]]\nname = 'a'", PREFIXES):
        path.write_text(content)
        table = config.read(path).prefixes
        assert table.of("MYFW-DROP in: ") == Prefix(None, "MYFW-DROP in:", "drop")
        assert table.of("[UFW BLOCK] ") == Prefix("vm-1", "ufw", "log")
        assert table.of("REJECT ") == Prefix(None, "REJECT", "reject")
    with pytest.raises(UsageError, match=r"there is nothing to watch: give a \[\[sandbox\]\]"):
        config.load(path)


def test_default_prefixes_are_the_built_in_ones() -> None:
    table = config.parse({"sandbox": [{"name": "a"}]}, where="test").prefixes
    assert table.of("[UFW BLOCK] ") == Prefix(None, "UFW BLOCK", "reject")


def test_a_vms_proxy_is_its_gateway() -> None:
    (vm,) = config.parse(_of_profile("tap", **_VM), where="test").sandbox
    spec = vm.spec()
    assert [str(each) for each in spec.proxies] == ["172.16.0.1:3128", "[fd00:7::1]:3128"]
    assert spec.tap is not None
    assert (spec.tap.device, spec.tap.mac) == ("vmtap-0", None)


def test_a_sidecars_proxy_is_known_by_its_user() -> None:
    (pod,) = config.parse(_of_profile("sidecar", proxy_uid=[3128, 0]), where="test").sandbox
    assert pod.spec().proxy_uids == (3128, 0)


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
        ({"sandbox": []}, "there is nothing to watch: give a [[sandbox]], host_log, or control"),
        ({"host_log": "syslog"}, "host_log: must be kmsg or journal"),
        ({"host_lg": "kmsg"}, "there is no key host_lg: did you mean host_log?"),
        (_prefixes({"verdict": "drop"}), "prefix.0.begins: field required"),
        (_prefixes({"begins": "x"}), "prefix.0.verdict: field required"),
        (_prefixes({"begins": "x", "verdict": "deny"}), "reject, drop, accept or log"),
        (_prefixes({"begins": "x", "verdict": "permit"}), "reject, drop, accept or log"),
        (_prefixes({"begins": "", "verdict": "drop"}), 'prefix.0.begins: "" is no log prefix'),
        (_prefixes({"begins": "x" * 128, "verdict": "drop"}), "must have 1 to 127 bytes"),
        (_prefixes({"begins": "a\0", "verdict": "drop"}), "it has a NUL character"),
        (_prefixes({"begins": 3, "verdict": "drop"}), "prefix.0.begins: must be text"),
        (_prefixes({"begins": "ocsf-nft:a:", "verdict": "drop"}), "a prefix of ocsf-nft"),
        (_prefixes({"begins": "x", "verdict": "drop", "sandbox": "a/b"}), "no sandbox name"),
        (_prefixes({"begins": "x", "verdict": "drop", "rule": ""}), "prefix.0.rule: "),
        (_prefixes({"begns": "x", "verdict": "drop"}), "prefix.0.begns: did you mean begins?"),
        (_prefixes(*2 * [{"begins": "x", "verdict": "drop"}]), 'two prefixes begin with "x"'),
        ({"prefix": {"begins": "x"}}, "prefix: must be a list"),
        ({"sandbx": [{"name": "a"}]}, "there is no key sandbx: did you mean sandbox?"),
        ({"sandbox": [{"name": "a", "prxy": []}]}, "sandbox.0.prxy: did you mean proxy?"),
        ({"sandbox": [{"name": "a/b"}]}, "no sandbox name"),
        ({"sandbox": [{"name": 3}]}, "must be text"),
        ({"sandbox": [{"name": "a", "install": True}]}, "needs --proxy"),
        ({"sandbox": [{"name": "a", "proxy": ["1.2.3.4"]}]}, "no ADDR:PORT"),
        ({"sandbox": [{"name": "a", "proxy": [3]}]}, "must be text"),
        ({"sandbox": [{"name": "a", "proxy": "1.2.3.4:5"}]}, "sandbox.0.proxy: must be a list"),
        ({"sandbox": {"name": "a"}}, "sandbox: must be a list"),
        ({"sandbox": ["a"]}, "sandbox.0: must be one table, such as { key = value }"),
        ({"sandbox": [{"name": "a"}], "sink": ["/a"]}, "sink.0: must be one table"),
        ({"sandbox": [{"name": "a"}], "store": 3}, "store: must be one table"),
        ({"sandbox": [{"name": "a", "netns": ""}]}, "sandbox.0.netns: must not be empty"),
        ({"sandbox": [{"name": "a", "netns": "a\0"}]}, "sandbox.0.netns: must not hold a NUL"),
        ({"sandbox": [{"name": "a", "netns": "/a\udcff"}]}, "sandbox.0.netns: must be UTF-8"),
        ({"sandbox": [{"name": "a"}], "output": "/a\udcff"}, "output: must be UTF-8"),
        ({"sandbox": [{"name": "a"}], "output": ""}, "output: must not be empty"),
        ({"sandbox": [{"name": "a"}], "output": "\0"}, "output: must not hold a NUL"),
        ({"sandbox": [{"name": "a"}], "state_dir": ""}, "state_dir: must not be empty"),
        ({"sandbox": [{"name": "a"}], "state_dir": "/a\0"}, "state_dir: must not hold a NUL"),
        ({"sandbox": [{"name": "a", "group": 0}]}, "group"),
        ({"sandbox": [{"name": "a", "transport": "smoke"}]}, "auto, nflog"),
        ({"sandbox": [{"name": "a", "netns": "a", "pid": 1}]}, "give one"),
        ({"sandbox": [{"name": "a"}, {"name": "a"}]}, "the same name"),
        (_of_profile("vm"), "sandbox, sidecar or tap"),
        (_of_profile("sidecar"), "profile sidecar needs --proxy-uid"),
        (_of_profile("sidecar", proxy_uid=[-1]), "sandbox.0.proxy_uid.0"),
        (_of_profile("sidecar", proxy_uid=[1], host_guard="v"), "--host-guard has no meaning for"),
        (
            _of_profile("sandbox", proxy=["1.2.3.4:5"], mac="02:00:00:00:00:01"),
            "--mac has no meaning",
        ),
        (_of_profile("tap"), "profile tap needs --device"),
        (_of_profile("tap", device="vmtap-0"), "profile tap needs --subnet CIDR"),
        (_of_profile("tap", **_VM, proxy=["1.2.3.4:5"]), "--proxy has no meaning for"),
        (_of_profile("tap", **{**_VM, "subnet": ["172.16.0.1"]}), "no room for a gateway"),
        (_of_profile("tap", **{**_VM, "gateway_port": 0}), "sandbox.0.gateway_port"),
        (_of_profile("tap", **_VM, mac="x"), "is no link address"),
        (
            _read_by("nflog", "kmsg"),
            "source nflog, which has no records of a fence with transport kmsg",
        ),
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


def test_missing_or_invalid_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(AbsentError, match="No such file"):
        config.load(tmp_path / "nowhere.toml")
    broken = tmp_path / "broken.toml"
    for content in (b"sandbox = [", b"\xff\xfe"):
        broken.write_bytes(content)
        with pytest.raises(UsageError, match="is not TOML"):
            config.load(broken)


def test_schema_needs_no_docstrings() -> None:
    command = [sys.executable, "-OO", "-m", "ocsf_nft", "config", "--schema"]
    found = json.loads(subprocess.check_output(command))
    assert "sandbox" in found["properties"]
