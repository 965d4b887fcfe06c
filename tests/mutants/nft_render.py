"""Render a mutated policy file with the installer's code, and check the ruleset with nft."""

from __future__ import annotations

import dataclasses
import importlib.resources
import subprocess
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Final
from unittest import mock

from ocsf_nft.fence import policy_file, ruleset
from ocsf_nft.fence.spec import FenceSpec, Surroundings, Tap, Uplink
from ocsf_nft.fence.values import endpoint, exception, subnet

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.mutants.nft_mutations import Mutant

_PROXIES: Final = (endpoint("10.0.0.1:3128"), endpoint("[fd00::1]:3128"))
_TAP: Final = Tap(device="lo", subnets=(subnet("10.0.0.1/29"), subnet("fd00::1/64")))
_MAC: Final = "02:00:00:00:00:07"
_AROUND: Final = Surroundings(
    links=("lo",),
    uplinks=("lo",),
    neighbours=tuple(end.address for end in _PROXIES),
    link_networks=(ip_network("10.0.0.0/24"), ip_network("fd00::/64")),
    addresses=(ip_address("10.0.0.2"), ip_address("fd00::2")),
    macs=(_MAC,),
    pins=(Uplink(name="lo", ifindex=1, mac=_MAC),),
    link_locals=(ip_address("fe80::ff:fe00:7"),),
    uplink_indexes=(1,),
    outer_indexes=(1,),
    ifindex=1,
)
_EXCEPTIONS: Final = (exception("tcp:10.2.0.0/16:80"), exception("udp:[fd00:2::/32]:5-9"))
_SANDBOX: Final = FenceSpec(sandbox="a", proxies=_PROXIES, exceptions=_EXCEPTIONS)
_PERMISSIVE: Final = FenceSpec(sandbox="a", proxies=_PROXIES, is_permissive=True)
#: For each policy file, a fence that contains it.
_SPECS: Final = {
    "accounting.nft": _SANDBOX,
    "guard.nft": FenceSpec(
        sandbox="a", proxies=_PROXIES, exceptions=_EXCEPTIONS, guard_device="lo"
    ),
    "permissive.nft": _PERMISSIVE,
    "permissive_tap.nft": FenceSpec(sandbox="a", proxies=_PROXIES, tap=_TAP, is_permissive=True),
    "sandbox.nft": _SANDBOX,
    "sidecar.nft": FenceSpec(
        sandbox="a", proxies=_PROXIES, exceptions=_EXCEPTIONS, proxy_uids=(3128,)
    ),
    "strict_tap.nft": FenceSpec(
        sandbox="a",
        proxies=_PROXIES,
        exceptions=_EXCEPTIONS,
        tap=dataclasses.replace(_TAP, is_strict=True),
    ),
    "tap.nft": FenceSpec(sandbox="a", proxies=_PROXIES, exceptions=_EXCEPTIONS, tap=_TAP),
}
FILES: Final = tuple(_SPECS)


def policy(file: str) -> str:
    """Return the text of a policy file."""
    return (importlib.resources.files("ocsf_nft.rules") / file).read_text("utf-8")


def rendered(file: str, text: str) -> str:
    """Return the ruleset that the installer renders from a policy file with this text."""

    def read(name: str) -> str:
        return text if name == file else policy(name)

    render = ruleset.guard if file == "guard.nft" else ruleset.fence
    with mock.patch.object(policy_file, "read", read):
        lines = render(_SPECS[file], _AROUND, "nflog").splitlines()
    return "\n".join(line for line in map(str.strip, lines) if line and line[0] != "#")


def valid(mutants: Iterable[Mutant]) -> list[Mutant]:
    """Return the mutants that nft accepts and that change the instructions for the kernel.

    A text that the installer cannot render is no mutant.
    """
    found: dict[tuple[str, str], Mutant] = {}
    originals = {file: _compiled(rendered(file, policy(file))) for file in FILES}
    for mutant in mutants:
        try:
            text = rendered(mutant.file, mutant.applied(policy(mutant.file)))
        except AssertionError:  # the installer refuses the file
            continue
        compiled = _compiled(text)
        if compiled and compiled != originals[mutant.file]:
            found.setdefault((mutant.file, compiled), mutant)
    return list(found.values())


def _compiled(text: str) -> str:
    """Return the instructions and the listing of a ruleset; empty if nft refuses it."""
    script = "nft --debug=netlink --file - && nft list ruleset"
    command = ["unshare", "--net", "sh", "-c", script]
    done = subprocess.run(command, input=text, text=True, capture_output=True, check=False)
    return done.stdout
