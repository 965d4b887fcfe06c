from __future__ import annotations

import asyncio
import dataclasses
import threading
from functools import partial
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import config
from ocsf_nft.errors import AbsentError, DeliveryError, UsageError
from ocsf_nft.fence import installer, kernel_log_sysctl, verification
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.netns import named
from ocsf_nft.ocsf.context import Host
from ocsf_nft.ocsf.fence_state_events import FenceState
from ocsf_nft.service import fence_facts, fences
from ocsf_nft.service.policy_changes import change_of_policy
from ocsf_nft.service.shielded import run_shielded
from tests.standing import INSTALLED, PERMISSIVE, verified

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_PROXY = {"proxy": ["10.200.0.1:3128"]}


def test_fence_that_differs_from_its_record_is_altered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)  # empty: the record is not read again
    sandbox = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox[0]
    verified(monkeypatch, "differs", "+accept")
    found = fences.activate(sandbox, state)
    assert (found.state, found.reason) == (
        FenceState.ALTERED,
        "it is not as it was installed: +accept",
    )


def test_permissive_fence_that_differs_from_its_record_was_permissive(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sandbox = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox[0]
    verified(monkeypatch, "differs", "+accept", installed=PERMISSIVE)
    found = fences.activate(sandbox, StateDirectory(tmp_path))
    assert (found.before, found.state) == (FenceState.PERMISSIVE, FenceState.ALTERED)


def test_inspection_of_a_fence_removed_during_its_restore_finds_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)
    verified(monkeypatch, "differs", "+accept")
    assert fences.inspect("sb1", state, lambda: None) is None
    found = fences.inspect("sb1", state, lambda: INSTALLED)
    assert found is not None
    assert (found.was_renewed, found.difference) == (True, "+accept")


def test_inspection_waits_for_an_installation_by_another_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)
    held = threading.Event()
    begun = threading.Event()

    def install() -> None:
        with state.locked("sb1"):
            held.set()
            begun.wait(10)
            verified(monkeypatch, "as installed")  # its record comes after its rules

    def verify(*_: object) -> verification.Verification:
        begun.set()
        return verification.Verification(verdict="differs", installed=INSTALLED)

    monkeypatch.setattr(verification, "verify", verify)
    other = threading.Thread(target=install)
    other.start()
    assert held.wait(10)
    found = fences.inspect("sb1", state, waits=True)
    other.join()
    assert found is not None
    assert found.fence.state is FenceState.ACTIVE


def test_fence_of_a_deleted_namespace_is_absent(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    state.write(dataclasses.replace(INSTALLED, namespace=named("no-such-namespace")))
    sandbox = config.parse({"sandbox": [{"name": "sb1"}]}, where="test").sandbox[0]
    assert sandbox.self_heal
    with pytest.raises(AbsentError, match="sandbox sb1 has no active fence: install one"):
        fences.activate(sandbox, state)


def _activate(
    monkeypatch: pytest.MonkeyPatch,
    path: Path,
    keys: Mapping[str, object],
    *,
    is_initial: bool = True,
    was_active: bool = False,
) -> None:
    """Activate a fence, as far as the call that would install it."""

    def install(*_: object, **__: object) -> None:
        raise DeliveryError("it would be installed")

    verified(monkeypatch, "absent")
    monkeypatch.setattr(installer, "install", install)
    monkeypatch.setattr(verification, "is_installed", lambda *_: was_active)
    monkeypatch.setattr(kernel_log_sysctl, "is_initial", lambda _: is_initial)
    sandbox = {"name": "sb1", "install": True, **keys}
    found = config.parse({"sandbox": [sandbox]}, where="test")
    fences.activate(found.sandbox[0], StateDirectory(path))


def test_new_fence_around_the_whole_machine_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"enclose this whole machine.*--whole-machine"):
        _activate(monkeypatch, tmp_path, _PROXY)


def test_other_fences_need_no_confirmation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    vm = {"profile": "tap", "device": "t", "subnet": ["172.16.0.1/30"], "gateway_port": 3128}
    activate = partial(_activate, monkeypatch, tmp_path)
    for activate_one in (
        partial(activate, {"whole_machine": True, **_PROXY}),
        partial(activate, vm),
        partial(activate, _PROXY, was_active=True),
        partial(activate, _PROXY, is_initial=False),
    ):
        with pytest.raises(DeliveryError, match="it would be installed"):
            activate_one()


async def test_started_inspection_ends_before_its_cancelled_watch() -> None:
    begun, may_end, has_reported = threading.Event(), threading.Event(), threading.Event()

    def block() -> None:
        begun.set()
        may_end.wait(60)

    async def inspect() -> None:
        await asyncio.to_thread(block)
        has_reported.set()

    watch = asyncio.ensure_future(run_shielded(inspect()))
    await asyncio.to_thread(begun.wait, 60)
    watch.cancel()
    await asyncio.sleep(0.05)
    assert not watch.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await watch
    assert has_reported.is_set()


async def test_error_of_an_inspection_during_a_cancellation_is_raised() -> None:
    begun = asyncio.Event()

    async def inspect() -> None:
        begun.set()
        await asyncio.sleep(0.05)
        raise DeliveryError("it can't be stored")

    watch = asyncio.ensure_future(run_shielded(inspect()))
    await begun.wait()
    watch.cancel()
    with pytest.raises(DeliveryError, match="can't be stored"):
        await watch


@pytest.mark.parametrize(
    ("source", "transport", "requested"),
    [
        ("auto", "auto", None),
        ("auto", "none", "none"),
        ("nflog", "auto", "nflog"),
        ("kmsg", "auto", "kmsg"),
        ("journal", "auto", "kmsg"),
        ("journal", "kmsg", "kmsg"),
    ],
)
def test_requested_transport_suits_the_selected_source(
    source: str, transport: str, requested: str | None
) -> None:
    sandbox = {"name": "a", "source": source, "transport": transport}
    read = config.parse({"sandbox": [sandbox]}, where="test")
    assert fences.requested_transport(read.sandbox[0]) == requested


def test_context_has_the_labels_and_the_tenant_of_the_sandbox() -> None:
    given = {"name": "sb1", "labels": {"team": "x"}, "tenant_uid": "acme"}
    sandbox = config.parse({"sandbox": [given]}, where="test").sandbox[0]
    context = fence_facts.context(INSTALLED, Host(hostname="h", tenant_uid="other"), sandbox)
    assert (context.labels, context.tenant_uid) == (("team=x",), "acme")
    event = fence_facts.state_event(
        INSTALLED,
        context.host,
        before=FenceState.ABSENT,
        after=FenceState.ACTIVE,
        sandbox=sandbox,
    )
    assert event.metadata.tenant_uid == "acme"


def test_tenant_of_a_sandbox_can_change_while_it_is_watched() -> None:
    before, after = (
        config.parse({"sandbox": [{"name": "sb1", **facts}]}, where="test").sandbox[0]
        for facts in ({}, {"tenant_uid": "acme"})
    )
    change = change_of_policy(before, after)
    assert change.changes == ("tenant_uid: none → acme",)
