"""Fences that are turned off before their removal."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ocsf_nft.errors import AbsentError, FenceError
from ocsf_nft.fence import installer, table_changes, turn_off, verification
from ocsf_nft.fence.spec import FenceSpec
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import endpoint
from ocsf_nft.lab import ip
from ocsf_nft.netns import HOST, named
from tests.kernel import conftest, namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from ocsf_nft.fence.spec import TableId
    from ocsf_nft.netns import Namespace
    from ocsf_nft.nfnetlink import Generation

pytestmark = pytest.mark.kernel

_PROXIES = (endpoint(namespaces.PROXY),)


@pytest.fixture
def names() -> Iterator[tuple[str, ...]]:
    """Yield the names of two namespaces with a link between them; the second is the host."""
    with namespaces.names(2) as found:
        inside, host = found
        ip("netns", "add", host)
        ip("netns", "add", inside)
        ip("-n", inside, "link", "add", "eth0", "type", "veth", "peer", "guard0", "netns", host)
        yield found


def test_guard_is_turned_off_before_the_fence_and_on_with_it(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guard counts what the fence does not refuse any more."""
    inside, host = map(named, names)
    state, order = StateDirectory(tmp_path), []
    turn = table_changes.turn_off

    def recording(namespace: Namespace, tables: Sequence[TableId]) -> Generation | None:
        order.append(namespace)
        return turn(namespace, tables)

    monkeypatch.setattr(table_changes, "turn_off", recording)
    spec = FenceSpec(sandbox="lab", proxies=_PROXIES, guard_device="guard0")
    host.call(lambda: installer.install(spec, inside, state, "nflog"))
    assert host.call(lambda: turn_off.turn_off("lab", state)) is not None
    assert order == [HOST, inside]
    for where, tables in ((inside, 2), (host, 1)):
        assert conftest.nft(where, "list", "ruleset").count("flags dormant") == tables
    host.call(lambda: turn_off.turn_on("lab", state))
    assert host.call(lambda: verification.verify("lab", state)).verdict == "as installed"


def test_fence_of_an_ended_namespace_or_without_a_record_is_not_turned_off(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    state = StateDirectory(tmp_path)
    assert turn_off.turn_off("lab", state) is None
    turn_off.turn_on("lab", state)
    spec = FenceSpec(sandbox="lab", proxies=_PROXIES)
    installer.install(spec, named(names[0]), state, "nflog")
    ip("netns", "del", names[0])
    for turn in (turn_off.turn_off, turn_off.turn_on):
        with pytest.raises(AbsentError, match="the network namespace of sandbox lab has ended"):
            turn("lab", state)


def test_table_that_names_another_sandbox_is_not_turned_off(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    state, namespace = StateDirectory(tmp_path), named(names[0])
    spec = FenceSpec(sandbox="lab", proxies=_PROXIES)
    installer.install(spec, namespace, state, "nflog")
    conftest.nft(namespace, "delete table inet ocsf_nft")
    conftest.nft(namespace, 'add table inet ocsf_nft { comment "fence of sandbox other"; }')
    with pytest.raises(FenceError, match="is that of sandbox other"):
        turn_off.turn_off("lab", state)
    assert "dormant" not in conftest.nft(namespace, "list", "ruleset")
