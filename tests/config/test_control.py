"""Configuration keys of the control API, labels, and the keys that were given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft import config
from ocsf_nft.config import SandboxConfig
from ocsf_nft.errors import UsageError
from ocsf_nft.privileges import Capability
from ocsf_nft.service.startup import capabilities

SOCKET = "/run/ocsf-nft/control.sock"
POLICY: dict[str, Any] = {
    "netns": "agent",
    "proxy": ["10.0.0.1:3128", "[fd00::1]:3128"],
    "allow": ["udp:10.0.0.53:53"],
    "subnet": ["172.16.0.1/30"],
    "proxy_uid": [0],
    "container": {"uid": "1", "name": "c"},
    "labels": {"a/b": "c"},
    "install": False,
}


def test_control_needs_no_sandbox() -> None:
    read = config.parse({"control": SOCKET}, where="test")
    assert (read.control, read.control_mode, read.control_group) == (Path(SOCKET), 0o660, None)
    given = {"control": SOCKET, "control_mode": "600", "control_group": 0}
    read = config.parse(given, where="test")
    assert (read.control_mode, read.control_group) == (0o600, 0)
    named = config.parse({"control": SOCKET, "control_group": "ops-1"}, where="test")
    assert named.control_group == "ops-1"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"control": "control.sock"}, 'control: "control.sock" is no path of a socket'),
        ({"control": ""}, 'control: "" is no path of a socket'),
        ({"control": "/"}, 'control: "/" is no path of a socket'),
        ({"control": "/a\0"}, "is no path of a socket"),
        ({"control": "/" + "a" * 107}, "is too long for a socket: use at most 107 bytes"),
        ({"control": 3}, "control: must be text"),
        ({"control": SOCKET, "control_mode": 660}, "control_mode: must be text"),
        ({"control": SOCKET, "control_mode": "0o660"}, "is no mode of a socket: write it in octal"),
        ({"control": SOCKET, "control_mode": "4660"}, "is no mode of a socket"),
        ({"control": SOCKET, "control_mode": "0666"}, "lets every user of this host change"),
        ({"control": SOCKET, "control_mode": "0661"}, "lets every user of this host change"),
        ({"control": SOCKET, "control_group": "a b"}, '"a b" is no group'),
        ({"control": SOCKET, "control_group": -1}, '"-1" is no group'),
        ({"control": SOCKET, "control_group": True}, "must be the name or the number"),
        ({"control_mode": "0660", "host_log": "kmsg"}, "control_mode and control_group need"),
        ({"control_group": "a", "host_log": "kmsg"}, "control_mode and control_group need"),
    ],
)
def test_wrong_socket_is_one_sentence(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        config.parse(given, where="test")
    assert sentence in str(refused.value)


def test_control_needs_the_privileges_of_any_sandbox() -> None:
    assert capabilities(config.parse({"control": SOCKET}, where="test")) == set(Capability)
    by_user = {"control": SOCKET, "attribution": {"method": "user"}}
    assert capabilities(config.parse(by_user, where="test")) == {
        Capability.NET_ADMIN, Capability.SYS_ADMIN, Capability.SYS_PTRACE, Capability.SYSLOG,
    }  # fmt: skip


def test_given_keys_make_the_same_sandbox_again() -> None:
    made = SandboxConfig.model_validate({"name": "a"} | POLICY)
    assert made.given() == POLICY
    assert SandboxConfig.model_validate({"name": "a"} | made.given()) == made
    assert SandboxConfig(name="a").given() == {}


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({str(number): "" for number in range(33)}, "there are 33 labels: use at most 32"),
        ({"": "x"}, '"" is no key of a label'),
        ({"é": "x"}, "is no key of a label"),
        ({"a" * 64: "x"}, "is no key of a label"),
        ({"a": "x" * 257}, "the label a has a value that is too long or can't be printed"),
        ({"a": "\u202e"}, "the label a has a value that is too long or can't be printed"),
        ({"a": 1}, 'the label "a" must be text'),
        ([], "must be a table of texts"),
    ],
)
def test_wrong_labels_are_one_sentence(labels: object, sentence: str) -> None:
    with pytest.raises(ValidationError) as refused:
        SandboxConfig.model_validate({"name": "a", "labels": labels})
    assert sentence in str(refused.value)


def test_as_many_and_as_long_labels_as_allowed() -> None:
    labels = {f"{number:063}": "é" * 256 for number in range(32)}
    assert SandboxConfig.model_validate({"name": "a", "labels": labels}).labels == labels


def test_no_text_or_number_becomes_a_boolean_or_an_integer() -> None:
    for key, value in {"pid": "1", "group": 1.0, "permissive": "yes", "install": 1}.items():
        with pytest.raises(ValidationError):
            SandboxConfig.model_validate({"name": "a", key: value})
