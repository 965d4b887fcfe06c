from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ocsf_nft import rtnetlink
from ocsf_nft.errors import AbsentError, FenceError, SourceError, UnsupportedError
from ocsf_nft.fence import (
    installer,
    links,
    nft,
    restore_batch,
    ruleset,
    table_changes,
    table_query,
    verification,
)
from ocsf_nft.fence.spec import TRANSPORTS, Surroundings
from ocsf_nft.fence.state import StateDirectory
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import ip
from ocsf_nft.netns import Namespace, named, of_process
from tests.descriptors import no_more_descriptors
from tests.fence.test_state import _is_waited_for, _until
from tests.kernel import conftest

if TYPE_CHECKING:
    from collections.abc import Callable

    from ocsf_nft.fence.spec import FenceSpec, LogTransport
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_HERE = Path(__file__).parent


def test_ruleset_with_an_error_leaves_the_fence_unchanged(
    fenced: Lab, state: StateDirectory, spec: FenceSpec
) -> None:
    around = installer._survey(spec, fenced.sandbox_namespace)
    text = ruleset.fence(spec, around, "nflog") + "add rule inet ocsf_nft nowhere accept\n"
    with pytest.raises((FenceError, UnsupportedError)) as refused:
        nft.load(fenced.sandbox_namespace, text)
    assert "add rule inet ocsf_nft nowhere accept" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_installing_the_same_fence_again_changes_nothing(
    fenced: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    counters: Callable[[Namespace], dict[str, int]],
) -> None:
    conftest.nft(fenced.sandbox_namespace, "add rule inet ocsf_nft forward counter")
    handle = conftest.nft(
        fenced.sandbox_namespace, "-a", "-s", "-t", "list", "table", "inet", "ocsf_nft"
    )
    # Changed by another process: the same installation restores it.
    installer.install(spec, fenced.sandbox_namespace, state)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    restored = conftest.nft(
        fenced.sandbox_namespace, "-a", "-s", "-t", "list", "table", "inet", "ocsf_nft"
    )
    assert restored != handle
    # As installed: the same rules (by their handles) stay.
    installer.install(spec, fenced.sandbox_namespace, state)
    again = conftest.nft(
        fenced.sandbox_namespace, "-a", "-s", "-t", "list", "table", "inet", "ocsf_nft"
    )
    assert again == restored
    assert set(counters(fenced.sandbox_namespace)) == {
        f"{counter}_{rule}"
        for counter in ("refused", "overflow", "logged")
        for rule in ("egress", "forward", "ingress", "link")
    } | {"seen_link", "stopped_link"}


@pytest.mark.parametrize(
    "tampering",
    [
        ("insert", "rule", "inet", "ocsf_nft", "output", "accept"),
        ("flush", "chain", "netdev", "ocsf_nft", "egress"),
        ("delete", "table", "netdev", "ocsf_nft"),
        ("add", "element", "inet", "ocsf_nft", "allowed4", "{ 203.0.113.7 . tcp . 443 }"),
        ("add", "table", "inet", "ocsf_nft", "{ flags dormant; }"),
    ],
    ids=lambda tampering: " ".join(tampering[:2]) + " " + tampering[-1],
)
def test_verify_shows_each_change(
    fenced: Lab, state: StateDirectory, tampering: tuple[str, ...]
) -> None:
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"
    conftest.nft(fenced.sandbox_namespace, *tampering)
    found = verification.verify(conftest.SANDBOX, state)
    assert found.verdict == "differs"
    assert found.difference


def test_verify_names_a_new_interface(fenced: Lab, state: StateDirectory) -> None:
    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    found = verification.verify(conftest.SANDBOX, state)
    assert found.verdict == "differs"
    assert "late0" in found.difference


def test_verify_shows_the_first_of_many_differences_and_their_number(
    fenced: Lab, state: StateDirectory
) -> None:
    ports = ", ".join(map(str, range(1, 400, 2)))
    rules = [f"tcp dport {{ {ports} }} accept", *(f"tcp dport {port} drop" for port in range(99))]
    conftest.nft(
        fenced.sandbox_namespace, ";".join(f"add rule inet ocsf_nft output {r}" for r in rules)
    )
    ip("-n", fenced.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    found = verification.verify(conftest.SANDBOX, state)
    lines = found.difference.splitlines()
    assert "late0" in lines[0]
    assert "tcp dport { 1, 3, 5, 7," in found.difference
    assert max(map(len, lines)) == 200
    # The links; the names of both sides, the position, and one line before and after; a hundred
    # rules.
    assert (len(lines), lines[-1]) == (21, "… and 86 more lines")


def test_verify_finds_a_flushed_or_never_fenced_namespace_absent(
    fenced: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
    assert verification.verify(conftest.SANDBOX, state).verdict == "absent"
    nothing = StateDirectory(tmp_path / "nothing")
    gateway = fenced.gateway_namespace
    assert verification.verify(conftest.SANDBOX, nothing, gateway).verdict == "absent"


def test_installer_leaves_foreign_tables_unchanged(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    conftest.nft(lab.sandbox_namespace, "add", "table", "inet", "foreign")
    installer.install(spec, lab.sandbox_namespace, state)
    installer.install(dataclasses.replace(spec, group=77), lab.sandbox_namespace, state)
    installer.remove(spec.sandbox, state)
    tables = conftest.nft(lab.sandbox_namespace, "list", "tables")
    assert tables == "table inet foreign\n"


@pytest.mark.parametrize("number", [300, 600])
def test_fence_with_many_interfaces_is_installed_replaced_and_restored(
    lab: Lab, spec: FenceSpec, state: StateDirectory, number: int
) -> None:
    ns = lab.sandbox_namespace
    pairs = [f"link add a{each} type veth peer name b{each}" for each in range(number // 2)]
    batch = ["ip", "-n", lab.sandbox, "-batch", "-"]
    subprocess.run(batch, input="\n".join(pairs), text=True, check=True)
    other = dataclasses.replace(spec, exceptions=(exception("tcp:10.200.0.9:80"),))
    for each in (other, spec):
        installed = installer.install(each, ns, state, "nflog")
        assert verification.verify(spec.sandbox, state).verdict == "as installed"
    (prepared,) = restore_batch.prepare(installed).batches
    for tampering in ("flush ruleset", "flush table netdev ocsf_nft"):
        conftest.nft(ns, tampering)
        table_changes.commit(ns, prepared.keeping_counters or prepared.full)
        assert verification.verify(spec.sandbox, state).verdict == "as installed"
    ip("-n", lab.sandbox, "link", "del", "a0")
    ip("-n", lab.sandbox, "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    installer.renew(spec.sandbox, state)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"
    listed = conftest.nft(ns, "list", "table netdev ocsf_nft")
    names = re.findall(r"\w+", listed.partition("devices = {")[2].partition("}")[0])
    assert len(names) == len(set(names)) == number + 1


def _attach_to_many(namespace: Namespace, chain: str, priority: int) -> None:
    """Attach a chain to so many devices that the kernel can't list it."""
    for group in range(15):
        names = ", ".join(f'"device{group:02}{each:06}"' for each in range(128))
        hook = f"type filter hook egress devices = {{ {names} }} priority {priority};"
        conftest.nft(namespace, f"add chain netdev {chain} {{ {hook} }}")


def test_fence_that_the_kernel_cannot_list_differs_and_is_renewed(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    _attach_to_many(fenced.sandbox_namespace, "ocsf_nft egress", 2147483647)
    found = verification.verify(spec.sandbox, state)
    assert (found.verdict, "one of its chains is attached to" in found.difference) == (
        "differs",
        True,
    )
    installer.renew(spec.sandbox, state)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_foreign_chain_that_the_kernel_cannot_list_is_named(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    conftest.nft(lab.sandbox_namespace, "add table netdev large")
    _attach_to_many(lab.sandbox_namespace, "large many", 5)
    with pytest.raises(FenceError, match="a chain of another table is attached to too many"):
        installer.install(spec, lab.sandbox_namespace, state, "nflog")
    conftest.nft(lab.sandbox_namespace, "delete table netdev large")
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_removal_deletes_all_tables_and_records(fenced: Lab, state: StateDirectory) -> None:
    installer.remove(conftest.SANDBOX, state)
    assert conftest.nft(fenced.sandbox_namespace, "list", "ruleset") == ""
    assert not list(state.path.rglob("*.json"))
    with pytest.raises(AbsentError):
        installer.remove(conftest.SANDBOX, state, fenced.sandbox_namespace)


def test_namespace_of_a_process_is_fenced(lab: Lab, spec: FenceSpec, state: StateDirectory) -> None:
    process = lab.sandbox_namespace.call(lambda: subprocess.Popen(["sleep", "30"]))
    try:
        installer.install(spec, of_process(process.pid), state)
        assert verification.verify(spec.sandbox, state, lab.sandbox_namespace).verdict == (
            "as installed"
        )
    finally:
        process.kill()
        process.wait()
    # The process has exited; another process may have its pid now.
    assert verification.verify(spec.sandbox, state).verdict == "absent"


def test_policy_of_another_version_is_reported_and_replaced(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    installed = state.read(spec.sandbox)
    assert installed is not None
    state.write(dataclasses.replace(installed, policy="0" * 64))
    found = verification.verify(spec.sandbox, state)
    assert found.verdict == "differs"
    assert "another version" in found.difference
    before = conftest.nft(
        fenced.sandbox_namespace, "-a", "-s", "-t", "list", "table", "inet", "ocsf_nft"
    )
    installer.install(spec, fenced.sandbox_namespace, state)
    after = conftest.nft(
        fenced.sandbox_namespace, "-a", "-s", "-t", "list", "table", "inet", "ocsf_nft"
    )
    assert _rule_handles(after).isdisjoint(_rule_handles(before))
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def _rule_handles(listing: str) -> set[str]:
    return set(re.findall(r"^\t\t\S.* # handle (\d+)$", listing, re.MULTILINE))


def test_forged_table_comment_does_not_prevent_an_installation(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    disguise = 'table inet ocsf_nft { comment "fence of sandbox other"; }'
    conftest.nft(fenced.sandbox_namespace, f"flush ruleset; {disguise}")
    installer.install(spec, fenced.sandbox_namespace, state)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_fence_of_another_sandbox_is_not_replaced_or_removed(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    stranger = dataclasses.replace(spec, sandbox="stranger")
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        installer.install(stranger, fenced.sandbox_namespace, state)
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        installer.remove("stranger", state, fenced.sandbox_namespace)
    assert verification.verify(conftest.SANDBOX, state).verdict == "as installed"


def test_sandbox_is_not_fenced_in_two_namespaces(
    fenced: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    with pytest.raises(FenceError, match="is installed in"):
        installer.install(spec, fenced.gateway_namespace, state)
    with pytest.raises(FenceError, match="is installed in"):
        installer.remove(spec.sandbox, state, fenced.gateway_namespace)
    assert verification.verify(spec.sandbox, state).verdict == "as installed"


def test_guard_of_another_sandbox_is_not_replaced_and_an_old_guard_is_removed(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    def tables() -> str:
        return conftest.nft(lab.gateway_namespace, "list", "tables", "netdev")

    def install(spec: FenceSpec) -> None:
        lab.gateway_namespace.call(
            lambda: installer.install(spec, lab.sandbox_namespace, state, "nflog")
        )

    guarded = dataclasses.replace(spec, guard_device=lab.gateway_device)
    install(guarded)
    assert "ocsf_nft_gw0" in tables()
    stranger = dataclasses.replace(guarded, sandbox="stranger")
    with pytest.raises(FenceError, match=conftest.SANDBOX):
        lab.gateway_namespace.call(
            lambda: installer.install(stranger, lab.gateway_namespace, state, "nflog")
        )
    install(spec)
    assert tables() == ""


def test_change_during_an_installation_is_an_error(
    lab: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = nft.load

    def tampered(namespace: Namespace, text: str) -> None:
        load(namespace, text)
        if namespace == lab.sandbox_namespace:
            conftest.nft(namespace, "insert", "rule", "inet", "ocsf_nft", "output", "accept")

    monkeypatch.setattr(nft, "load", tampered)
    with pytest.raises(FenceError, match="altered while it was installed") as refused:
        installer.install(spec, lab.sandbox_namespace, state)
    _, _, altered = str(refused.value).partition("installed: ")
    expected = 'type filter hook output priority filter; policy drop; + accept oif "lo" accept'
    assert altered.split() == expected.split()
    monkeypatch.undo()
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""
    assert state.read(spec.sandbox) is None


def test_change_during_a_replacement_leaves_a_fence(
    fenced: Lab, spec: FenceSpec, state: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, before = nft.load, state.read(spec.sandbox)

    def tampered(namespace: Namespace, text: str) -> None:
        load(namespace, text)
        if namespace == fenced.sandbox_namespace:
            conftest.nft(namespace, "insert", "rule", "inet", "ocsf_nft", "output", "accept")

    conftest.nft(fenced.sandbox_namespace, "flush", "ruleset")
    monkeypatch.setattr(nft, "load", tampered)
    with pytest.raises(FenceError, match="altered while it was installed"):
        installer.renew(spec.sandbox, state)
    tables = conftest.nft(fenced.sandbox_namespace, "list", "tables")
    assert tables == "table inet ocsf_nft\ntable netdev ocsf_nft\n"
    assert state.read(spec.sandbox) == before


def test_guard_for_a_missing_interface_is_an_error(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    guarded = dataclasses.replace(spec, guard_device="nowhere0")
    with pytest.raises(AbsentError, match="nowhere0"):
        installer.install(guarded, lab.sandbox_namespace, state)
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


def test_fence_of_a_deleted_namespace_can_be_removed(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    installed = installer.install(spec, lab.sandbox_namespace, state)
    gone = dataclasses.replace(installed, namespace=named("no-such-namespace"))
    state.write(gone)
    with pytest.raises(AbsentError, match="no-such-other"):
        installer.remove(spec.sandbox, state, named("no-such-other"))
    assert state.read(spec.sandbox) == gone
    installer.remove(spec.sandbox, state)
    assert state.read(spec.sandbox) is None


def test_missing_namespace_is_named(spec: FenceSpec, state: StateDirectory) -> None:
    with pytest.raises(AbsentError, match="no-such-namespace"):
        installer.install(spec, named("no-such-namespace"), state)
    assert not state.path.exists()


def test_interface_that_nft_cannot_name_stops_the_installation(
    lab: Lab, spec: FenceSpec, state: StateDirectory
) -> None:
    ip("-n", lab.sandbox, "link", "add", 'a"b', "type", "veth", "peer", "name", "plain")
    with pytest.raises(Exception, match="rename it"):
        installer.install(spec, lab.sandbox_namespace, state)
    assert conftest.nft(lab.sandbox_namespace, "list", "ruleset") == ""


@pytest.mark.kernel_log  # without NFLOG the kernel log is tried
def test_without_nft_nothing_is_installed(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    # An nft that another user owns, or that every user can overwrite, is not run.
    planted = tmp_path / "nft"
    planted.write_text("#!/bin/sh\n")
    planted.chmod(0o777)
    os.chown(planted, 0, 0)
    monkeypatch.setattr(nft, "TRUSTED", (tmp_path,))
    with pytest.raises(UnsupportedError, match="nftables package"):
        installer.install(spec, lab.sandbox_namespace, state)


@pytest.mark.parametrize(
    ("work", "kind"),
    [
        (lambda: links.survey(Namespace(), ()), FenceError),
        (links.names, FenceError),
        (lambda: nft.load(Namespace(), ""), FenceError),
        (lambda: nft.list_table(Namespace(), "inet", "none"), FenceError),
        (lambda: table_query.comment(Namespace(), "inet", "none"), FenceError),
        (rtnetlink.subscribe, SourceError),
    ],
    ids=["survey", "names", "load", "listing", "comment", "subscribe"],
)
def test_shortage_of_descriptors_is_an_error_with_its_cause(
    work: Callable[[], object], kind: type[Exception]
) -> None:
    with no_more_descriptors(), pytest.raises(kind, match="Too many open files"):
        work()


def test_accounting_file_loads_unchanged() -> None:
    path = _HERE.parents[1] / "rules" / "accounting.nft"
    subprocess.run(["unshare", "-n", "nft", "-c", "-f", path], check=True)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_whole_policy_loads_with_every_transport(
    lab: Lab, spec: FenceSpec, transport: LogTransport, tmp_path: Path
) -> None:
    guarded = dataclasses.replace(spec, guard_device=lab.gateway_device)
    path = tmp_path / "composed.nft"
    for compose in (ruleset.fence, ruleset.guard):
        path.write_text(compose(guarded, Surroundings(), transport))
        lab.gateway_namespace.call(lambda: subprocess.run(["nft", "-c", "-f", path], check=True))


@pytest.mark.parametrize(
    ("transport", "waits"),
    [("nflog", False), pytest.param("kmsg", True, marks=pytest.mark.kernel_log)],
)
def test_installation_waits_only_for_a_renewal_that_may_change_shared_sysctls(
    lab: Lab,
    spec: FenceSpec,
    state: StateDirectory,
    transport: LogTransport,
    waits: bool,
) -> None:
    installer.install(spec, lab.sandbox_namespace, state, transport)
    nft.load(lab.sandbox_namespace, "delete table inet ocsf_nft")
    has_begun, may_end = threading.Event(), threading.Event()

    def load_late(namespace: Namespace, text: str) -> None:
        """Load it as late as a process in the sandbox wants, with its own transactions."""
        has_begun.set()
        may_end.wait(60)
        nft.load(namespace, text)

    def renew() -> None:
        with installer.renewal_lock(spec.sandbox, state):
            installer.renew_locked(spec.sandbox, state, load_late)

    def install() -> None:
        other = dataclasses.replace(spec, sandbox="other")
        installer.install(other, lab.gateway_namespace, state, "nflog")

    with ThreadPoolExecutor() as pool:
        renewal = pool.submit(renew)
        try:
            assert has_begun.wait(60)
            installation = pool.submit(install)
            _until(lambda: installation.done() or _is_waited_for(state.path))
            assert installation.done() is not waits
        finally:
            may_end.set()
        renewal.result(60)
        installation.result(60)
    for sandbox in (spec.sandbox, "other"):
        assert verification.verify(sandbox, state).verdict == "as installed"
        installer.remove(sandbox, state)
