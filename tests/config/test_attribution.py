"""Configuration of attribution, and the privileges that it needs."""

from __future__ import annotations

from typing import Any, Final

import pytest

from ocsf_nft import config
from ocsf_nft.errors import UsageError
from ocsf_nft.privileges import Capability
from ocsf_nft.service.startup import capabilities

_WATCHED: Final[dict[str, Any]] = {
    "sandbox": [{"name": "a", "proxy": ["1.2.3.4:5"], "install": True, "transport": "nflog"}]
}
_OF_A_VM: Final[dict[str, Any]] = {
    "sandbox": [
        {
            "name": "vm", "profile": "tap", "device": "vmtap-0", "subnet": ["172.16.0.0/30"],
            "gateway_port": 3128, "install": True, "transport": "nflog",
        }
    ]
}  # fmt: skip


def _parsed(**found: Any) -> config.Config:
    return config.parse(_WATCHED | {"attribution": found}, where="ocsf-nft.toml")


def test_default_is_capture_without_hashes() -> None:
    found = config.parse(_WATCHED, where="test").attribution
    assert (found.method, found.wait_ms, found.hash_max_bytes) == ("capture", 50, 0)


@pytest.mark.parametrize(
    ("size", "number"),
    [("64MiB", 64 << 20), ("2 GB", 2_000_000_000), (1 << 20, 1 << 20), ("0", 0), (0, 0)],
)
def test_settings_are_read_and_a_size_may_have_a_unit(size: str | int, number: int) -> None:
    found = _parsed(method="socket", wait_ms=200, hash_max_bytes=size).attribution
    assert (found.method, found.wait_ms, found.hash_max_bytes) == ("socket", 200, number)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"method": "ebpf"}, "attribution.method: must be capture, socket or user"),
        (
            {"method": ["capture"]},
            "attribution.method: must be capture, socket or user",
        ),
        ({"wait_ms": 0}, "attribution.wait_ms: input should be greater than or equal to 1"),
        ({"wait_ms": 10_001}, "attribution.wait_ms: input should be less than or equal to 10000"),
        ({"wait_ms": "50ms"}, "attribution.wait_ms: input should be a valid integer"),
        ({"hash_max_bytes": "64 MiBs"}, 'attribution.hash_max_bytes: "64 MiBs" is no size: write'),
        ({"hash_max_bytes": "-1"}, 'attribution.hash_max_bytes: "-1" is no size: write'),
        ({"hash_max_bytes": -1}, "attribution.hash_max_bytes: input should be greater than or"),
        ({"hash_max": 1}, "no key attribution.hash_max: did you mean hash_max_bytes?"),
    ],
)
def test_a_fault_is_one_sentence_that_names_the_key(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        _parsed(**found)
    message = str(refused.value)
    assert sentence in message
    assert message.startswith("ocsf-nft.toml: ")
    assert "\n" not in message


def test_attribution_must_be_one_table() -> None:
    with pytest.raises(UsageError, match="attribution: must be one table"):
        config.parse(_WATCHED | {"attribution": [{"method": "user"}]}, where="test")


@pytest.mark.parametrize(
    ("method", "takes"),
    [
        ("capture", {Capability.BPF, Capability.PERFMON, Capability.SYS_PTRACE}),
        ("socket", {Capability.SYS_PTRACE}),
        ("user", set()),
    ],
)
def test_run_keeps_the_privileges_of_its_attribution_method(
    method: str, takes: set[Capability]
) -> None:
    assert capabilities(_parsed(method=method)) == {Capability.NET_ADMIN} | takes
    # Processes of a VM belong to the guest's kernel: no attribution.
    of_a_vm = config.parse(_OF_A_VM | {"attribution": {"method": method}}, where="test")
    assert capabilities(of_a_vm) == {Capability.NET_ADMIN}


def test_one_sandbox_of_this_kernel_is_enough_for_the_privileges() -> None:
    both = {"sandbox": _WATCHED["sandbox"] + _OF_A_VM["sandbox"]}
    assert Capability.BPF in capabilities(config.parse(both, where="test"))
