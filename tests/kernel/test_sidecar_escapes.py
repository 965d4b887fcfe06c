"""Escapes from a pod: only the proxy's user gets out; attempts of other users are logged."""

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

#: The gateway's port, allowed to all users: the escapes around a proxy apply to an exception too.
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


class _User(NamedTuple):
    uid: int
    capabilities: frozenset[int]


#: The user that created a user namespace has all capabilities in it, so it can't be tested there.
_OWNER: Final = "root without capabilities"
_USERS: Final = {
    "another user": _User(WORKLOAD_UID, frozenset()),
    "another user with CAP_NET_RAW": _User(WORKLOAD_UID, frozenset({CAP_NET_RAW})),
    _OWNER: _User(0, frozenset()),
    "root with CAP_NET_RAW": _User(0, frozenset({CAP_NET_RAW})),
}


@pytest.mark.parametrize("spec", [SPEC, _EXCEPTION], ids=["no exceptions", "an exception"])
@pytest.mark.parametrize("user", _USERS.values(), ids=_USERS.keys())
async def test_escapes_of_other_users_are_refused_and_logged_with_their_user(
    lab: Lab, state: StateDirectory, spec: FenceSpec, user: _User
) -> None:
    lab.sandbox_namespace.call(sidecar.allow_ping_sockets)
    installer.install(spec, lab.sandbox_namespace, state, "nflog")
    await _attempt_all(lab, user, has_exceptions=spec is _EXCEPTION)


@pytest.mark.parametrize("name", sorted(_USERS.keys() - {_OWNER}))
async def test_escapes_in_a_user_namespace_without_outer_privileges_are_refused_and_logged(
    lab: Lab, state: StateDirectory, name: str
) -> None:
    user = _USERS[name]
    with sidecar.rootless(lab) as (pod, as_root):
        pod.sandbox_namespace.call(sidecar.allow_ping_sockets)
        where = ("--sandbox", sidecar.POD, "--state-dir", str(state.path))
        uid = str(sidecar.PROXY_UID)
        installed = command.run(
            "install", *where, "--profile", "sidecar", "--proxy-uid", uid, under=as_root
        )
        assert installed.code == 0, installed.stderr
        # Root of the namespace is also user 0 outside.
        here = user if user.uid == 0 else user._replace(uid=sidecar.FIRST + user.uid)
        await _attempt_all(pod, here, has_exceptions=False)


async def _attempt_all(pod: Lab, user: _User, *, has_exceptions: bool) -> None:
    missed: dict[str, str] = {}
    attempted: list[Escape] = []
    async with Nflog(pod.sandbox_namespace, DEFAULT_GROUP) as source:
        with far_side.watch(pod, has_proxy=has_exceptions) as far:
            far.strays()
            for escape in map(_without_sysctl, ESCAPES):

                def is_expected(record: Record, escape: Escape = escape) -> bool:
                    protocol = record.ethertype if record.protocol is None else record.protocol
                    uid = user.uid if escape.is_owned else None
                    expected = escape.rule, escape.protocol, uid
                    return (record.rule, protocol, record.uid) == expected

                if not escape.is_owned:
                    conftest.fresh_budgets(pod.sandbox_namespace)
                attempt = as_user(user.uid, escape.attempt, capabilities=user.capabilities)
                try:
                    pod.sandbox_namespace.call(attempt)
                except PermissionError:  # from the creation of the socket
                    assert CAP_NET_RAW not in user.capabilities
                else:
                    attempted.append(escape)
                    if not any(map(is_expected, await until_found(source, is_expected))):
                        missed[escape.name] = "not logged"
                if far.strays():
                    missed[escape.name] = "got out"
    assert not missed
    expected = ESCAPES if CAP_NET_RAW in user.capabilities else _UNPRIVILEGED
    assert [escape.name for escape in attempted] == [escape.name for escape in expected]


def _without_sysctl(escape: Escape) -> Escape:
    """Return the escape without its write of a sysctl, which only root may do: it is set."""
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
