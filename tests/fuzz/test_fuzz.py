"""A small part of the fuzz campaign, with fixed inputs, and the driver of the campaign."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft import netlink
from tests.fuzz import __main__ as command
from tests.fuzz import campaign, parts, registry, worker
from tests.fuzz.mutator import BLOCK, Mutator
from tests.fuzz.targets import self_test

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fuzz.target import Target

#: Seed and number of the inputs of each run of the tests, some seconds.
_SEED: Final = 1
_INPUTS: Final = 30_000
_SELF: Final = {target.name: target for target in self_test.TARGETS}


def _targets() -> list[Target]:
    return list(registry.targets().values())


def test_fixed_part_of_the_campaign_finds_no_fault() -> None:
    planned = campaign.chunks(_targets(), _SEED, _INPUTS, 0)
    result = campaign.run_here(_targets(), planned)
    assert not result.faults, "\n".join(
        line for fault in result.faults for line in campaign.describe(fault)
    )
    assert result.total >= _INPUTS * 0.99
    assert result.inputs.keys() == registry.targets().keys()


@pytest.mark.parametrize("target", _targets(), ids=lambda target: target.name)
def test_seeds_of_a_target_are_real_records(target: Target) -> None:
    accepted = 0
    assert list(target.seeds()) == list(target.seeds())  # none is random
    for seed in target.seeds():
        assert len(seed) <= target.limit
        try:
            target.parse(seed)
        except target.documented:
            continue
        accepted += 1
    assert accepted >= len(target.seeds()) / 3


def test_input_depends_only_on_target_seed_and_number() -> None:
    target = registry.targets()["nflog"]
    whole = list(target.block(7, 3))
    assert len(whole) == BLOCK
    assert target.input(7, 3 * BLOCK + 5) == whole[5]
    assert list(target.block(8, 3)) != whole
    assert list(target.block(7, 4)) != whole
    assert len(set(whole)) > BLOCK * 0.9


def test_inputs_have_the_limit_of_their_target_and_some_are_large() -> None:
    target = registry.targets()["log-text"]
    sizes = [len(data) for block in range(4) for data in target.block(1, block)]
    assert max(sizes) <= target.limit
    assert max(sizes) > target.limit / 4


def test_changed_netlink_attributes_have_right_lengths_around_them() -> None:
    inner = netlink.attribute(1, b"abc") + netlink.attribute(2, b"defg")
    seed = netlink.message(16, 0, b"\0" * 4 + netlink.attribute(9, inner))
    mutator = Mutator([seed], parts.netlink_messages, [b"x" * 9], 4096)
    whole = 0
    for data in mutator.inputs("state"):
        for _, payload in netlink.messages(memoryview(data)):
            values = dict(netlink.attributes(payload[4:]))
            if data != seed and 9 in values and dict(netlink.attributes(values[9])):
                whole += 1
    assert whole > BLOCK / 3


def test_parts_of_json_are_its_values_and_members() -> None:
    data = b'{"a": [1, "x,y"], "b": {}}'
    found = {data[part.start : part.end] for part in parts.json_values(data)}
    assert found >= {data, b'"a": [1, "x,y"],', b'[1, "x,y"]', b"1,", b'"x,y"', b'"b": {}', b"{}"}


def test_chunks_have_all_inputs_once_and_mix_the_targets() -> None:
    targets = _targets()
    planned = campaign.chunks(targets, 1, 10_000_000, 5)
    assert abs(sum(chunk.inputs for chunk in planned) - 10_000_000) < len(targets)
    last: dict[str, int] = {}
    for chunk in planned:
        assert chunk.first == last.get(chunk.target, 5)
        last[chunk.target] = chunk.first + chunk.inputs
    half = {chunk.target for chunk in planned[: len(planned) // 2 + len(targets)]}
    assert half == registry.targets().keys()


def test_undocumented_error_and_hang_are_faults_with_their_inputs() -> None:
    for name, expected in (("self-error", "IndexError: planted"), ("self-hang", "TooSlow: took")):
        target = _SELF[name]
        result = campaign.run_here([target], [worker.Chunk(name, 1, 0, 60)])
        (fault,) = result.faults
        assert fault.error.startswith(expected)
        assert target.input(1, fault.number) == bytes.fromhex(fault.data)


def test_stored_fault_is_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(registry, "targets", lambda: _SELF)
    planned = [worker.Chunk("self-error", 1, 0, 60)]
    result = campaign.run_here(_SELF.values(), planned)
    command._store(result.faults, tmp_path)
    (path,) = tmp_path.iterdir()
    assert f"--replay {path}" in capsys.readouterr().out
    assert command._replay(path) == 1
    assert "FAULT self-error: IndexError: planted" in capsys.readouterr().out
    repaired = replace(_SELF["self-error"], documented=(IndexError,))
    monkeypatch.setattr(registry, "targets", lambda: {"self-error": repaired})
    assert command._replay(path) == 0


def test_campaign_reports_growth_of_memory_and_the_death_of_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OCSF_NFT_FUZZ_SELF_TEST", "1")  # the worker inherits it
    monkeypatch.setattr(campaign, "_MOST_DEATHS", 1)
    monkeypatch.setattr(campaign, "_CHUNK", 200)
    targets = [_SELF["self-death"], _SELF["self-memory"], registry.targets()["link"]]
    totals: list[int] = []
    result = campaign.run(
        campaign.chunks(targets, 1, 1200, 0), 1, None, lambda _, total: totals.append(total)
    )
    faults = {fault.target: fault for fault in result.faults}
    assert faults.keys() == {"self-memory", "self-death"}
    assert faults["self-memory"].error.startswith("memory grew by 1")
    assert faults["self-death"].error == "the process ended with code -9"
    assert self_test._FATAL in targets[0].input(1, faults["self-death"].number)
    assert (result.inputs["self-death"], result.inputs["self-memory"]) == (0, 200)
    assert result.inputs["link"] == 800
    assert set(totals) == {1200}
