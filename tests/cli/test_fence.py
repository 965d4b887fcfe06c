"""Commands install, verify and remove."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ocsf_nft.cli.fence import _sentence, _summary
from ocsf_nft.fence.spec import FenceSpec, Tap, Uplink
from ocsf_nft.fence.values import endpoint, exception, subnet
from ocsf_nft.netns import Namespace
from tests.cli import forked
from tests.standing import INSTALLED

_PINNED = replace(
    INSTALLED.around, uplinks=("sb0",), pins=(Uplink(name="sb0", ifindex=2),), uplink_indexes=(2,)
)


def test_summary_names_the_sandbox_its_tables_its_proxy_and_the_next_commands() -> None:
    installed = replace(
        INSTALLED,
        namespace=Namespace(Path("/run/netns/agent")),
        listings={"inet ocsf_nft": "", "netdev ocsf_nft": ""},
        spec=replace(INSTALLED.spec, exceptions=(exception("udp:10.0.0.53:53"),)),
        around=_PINNED,
    )
    assert list(_summary(installed, ["--state-dir", "/a b"])) == [
        "sandbox sb1 is fenced; refused packets are logged to nflog",
        "  namespace: /run/netns/agent",
        "  tables: inet ocsf_nft, netdev ocsf_nft",
        "  proxy: 10.200.0.1:3128",
        "  uplinks: sb0",
        "  also allowed: udp:10.0.0.53:53",
        "  next: ocsf-nft run --sandbox sb1 --state-dir '/a b'     reports each refused packet",
        "        ocsf-nft remove --sandbox sb1 --state-dir '/a b'  removes the fence",
    ]


@pytest.mark.parametrize(
    ("spec", "line"),
    [
        (FenceSpec(sandbox="pod", proxy_uids=(63128, 7)), "  users of the proxy: 63128, 7"),
        (
            FenceSpec(
                sandbox="vm",
                proxies=(endpoint("172.16.0.1:3128"),),
                tap=Tap(device="tap0", subnets=(subnet("172.16.0.1/30"),)),
            ),
            "  VM behind: tap0",
        ),
    ],
)
def test_summary_of_a_profile_has_its_values(spec: FenceSpec, line: str) -> None:
    assert line in list(_summary(replace(INSTALLED, spec=spec), []))


@pytest.mark.parametrize(
    ("is_strict", "line"),
    [
        (True, "  strict: the VM reaches the proxy, the exceptions, and nothing else"),
        (False, "  not strict: the VM also reaches the internet and the host's networks"),
    ],
)
def test_summary_of_a_vm_names_what_it_reaches(is_strict: bool, line: str) -> None:
    tap = Tap(device="tap0", subnets=(subnet("172.16.0.1/30"),), is_strict=is_strict)
    spec = FenceSpec(sandbox="vm", proxies=(endpoint("172.16.0.1:3128"),), tap=tap)
    (found,) = (each for each in _summary(replace(INSTALLED, spec=spec), []) if "strict:" in each)
    assert found.startswith(line)


@pytest.mark.parametrize("profile", ["sandbox", "sidecar"])
def test_strict_is_for_a_vm_alone(profile: str) -> None:
    given = ("--proxy-uid", "7") if profile == "sidecar" else ("--proxy", "10.0.0.1:3128")
    done = forked.run("install", "--sandbox", "a", "--profile", profile, *given, "--strict")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ocsf-nft: --strict has no meaning for a fence of profile {profile}: leave it out\n"
    )


def test_summary_names_missing_and_unknown_uplinks() -> None:
    missing = replace(INSTALLED, around=replace(_PINNED, missing=("sb0",)))
    assert "  uplinks: missing: sb0; install the fence again" in list(_summary(missing, []))
    unknown = "not known, for no route leads to an allowed destination: a later check pins them"
    assert f"  uplinks: {unknown}" in list(_summary(INSTALLED, []))
    pod = replace(INSTALLED, spec=FenceSpec(sandbox="pod", proxy_uids=(7,)))
    unknown = "not known, for there is no route: a later check pins them"
    assert f"  uplinks: {unknown}" in list(_summary(pod, []))


def test_permissive_fence_is_called_permissive() -> None:
    installed = replace(INSTALLED, spec=replace(INSTALLED.spec, is_permissive=True))
    assert _sentence(installed).startswith("sandbox sb1 has a permissive fence: it refuses nothing")


def test_json_of_a_dry_run_is_refused() -> None:
    done = forked.run("install", "--sandbox", "a", "--dry-run", "--json")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("ocsf-nft: --dry-run and --json can't be combined: give one of them\n")
