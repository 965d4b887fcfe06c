"""Out of a pod goes what the proxy's user sends. What anybody else tries is refused and told."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

import pytest

from ocsf_nft.fence import installer
from ocsf_nft.fence.spec import DEFAULT_GROUP
from ocsf_nft.fence.values import exception
from ocsf_nft.lab import GATEWAY4, GATEWAY6, INTERNET4, INTERNET6, PROXY_PORT
from ocsf_nft.sources.nflog import Nflog
from tests.kernel import command, conftest, far_side, sidecar
from tests.kernel.escapes import ESCAPES, Escape
from tests.kernel.reading import until_found
from tests.kernel.sidecar import SPEC, WORKLOAD_UID
from tests.kernel.users import CAP_NET_RAW, as_user

if TYPE_CHECKING:
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab
    from ocsf_nft.record import Record

pytestmark = pytest.mark.kernel

#: The gateway's port, for everybody: what `ESCAPES` makes of a proxy there goes for an exception.
_EXCEPTION: Final = dataclasses.replace(
    SPEC,
    exceptions=(
        exception(f"tcp:{GATEWAY4}:{PROXY_PORT}"),
        exception(f"tcp:[{GATEWAY6}]:{PROXY_PORT}"),
    ),
)
_UNPRIVILEGED: Final = tuple(
    itertools.takewhile(lambda escape: escape.name != "raw icmp4", ESCAPES)
)


class _Who(NamedTuple):
    uid: int
    capabilities: frozenset[int]


#: Not so where it is the user that made the user namespace: he has all capabilities in it.
_OWNER: Final = "root without capabilities"
_ANYBODY: Final = {
    "another user": _Who(WORKLOAD_UID, frozenset()),
    "another user with CAP_NET_RAW": _Who(WORKLOAD_UID, frozenset({CAP_NET_RAW})),
    _OWNER: _Who(0, frozenset()),
    "root with CAP_NET_RAW": _Who(0, frozenset({CAP_NET_RAW})),
}


@pytest.mark.parametrize("spec", [SPEC, _EXCEPTION], ids=["no exceptions", "an exception"])
@pytest.mark.parametrize("who", _ANYBODY.values(), ids=_ANYBODY.keys())
async def test_whatever_anybody_else_tries_is_refused_and_told_with_its_user(
    lab: Lab, state: StateDirectory, spec: FenceSpec, who: _Who
) -> None:
    lab.sandbox_namespace.call(sidecar.allow_ping_sockets)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    await _try_all(lab, who, has_exceptions=spec is _EXCEPTION)


@pytest.mark.parametrize("name", sorted(_ANYBODY.keys() - {_OWNER}))
async def test_so_it_is_in_a_user_namespace_whose_root_may_do_nothing_outside_of_it(
    lab: Lab, state: StateDirectory, name: str
) -> None:
    who = _ANYBODY[name]
    with sidecar.rootless(lab) as (pod, as_root):
        pod.sandbox_namespace.call(sidecar.allow_ping_sockets)
        where = ("--sandbox", sidecar.POD, "--state-dir", str(state.path))
        uid = str(sidecar.PROXY_UID)
        installed = command.run(
            "install", *where, "--profile", "sidecar", "--proxy-uid", uid, under=as_root
        )
        assert installed.code == 0, installed.stderr
        # Root there is user 0 here as well.
        here = who if who.uid == 0 else who._replace(uid=sidecar.FIRST + who.uid)
        await _try_all(pod, here, has_exceptions=False)


async def _try_all(pod: Lab, who: _Who, *, has_exceptions: bool) -> None:
    missed: dict[str, str] = {}
    tried: list[Escape] = []
    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(pod, has_proxy=has_exceptions) as far:
            far.strays()
            for escape in map(_as_anybody, ESCAPES):

                def wanted(record: Record, escape: Escape = escape) -> bool:
                    said = record.ethertype if record.protocol is None else record.protocol
                    uid = who.uid if escape.is_owned else None
                    wanted = escape.rule, escape.protocol, uid
                    return (record.rule, said, record.uid) == wanted

                if not escape.is_owned:
                    conftest.fresh_budgets(pod.sandbox_namespace)
                attempt = as_user(who.uid, escape.attempt, capabilities=who.capabilities)
                try:
                    pod.sandbox_namespace.call(attempt)
                except PermissionError:  # at the socket itself
                    assert CAP_NET_RAW not in who.capabilities
                else:
                    tried.append(escape)
                    if not any(map(wanted, await until_found(source, wanted))):
                        missed[escape.name] = "not told"
                if far.strays():
                    missed[escape.name] = "got out"
    assert not missed
    expected = ESCAPES if CAP_NET_RAW in who.capabilities else _UNPRIVILEGED
    assert [escape.name for escape in tried] == [escape.name for escape in expected]


def _as_anybody(escape: Escape) -> Escape:
    """Without the sysctl that only root may set, and that is set already."""
    pings = {
        "ping socket 4": partial(_ping, socket.AF_INET, INTERNET4),
        "ping socket 6": partial(_ping, socket.AF_INET6, INTERNET6),
    }
    if escape.name in pings:
        return dataclasses.replace(escape, attempt=pings[escape.name])
    return escape


def _ping(family: socket.AddressFamily, to: str) -> None:
    with contextlib.suppress(OSError):
        sidecar.ping(family, to, seconds=0.05)
