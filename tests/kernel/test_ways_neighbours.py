"""Neighbours of a sandbox on a bridge: what they receive from it, and what they bring in."""

from __future__ import annotations

import secrets
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pytest

from ocsf_nft.netns import named
from tests.kernel import command
from tests.kernel.ways import bridge, far, matrix
from tests.kernel.ways.variant import DEVICE, PROXY_PORT
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

_KEYS: Final = [key for key, each in VARIANTS.items() if each.attacker == "raw"]


@pytest.fixture(scope="module")
def unfenced() -> Iterator[bridge.Site]:
    with bridge.site() as made:
        yield made


@pytest.fixture(scope="module")
def served(
    unfenced: bridge.Site, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[bridge.Site]:
    """Fence the sandboxes of the site, each with a guard."""
    folder: Path = tmp_path_factory.mktemp("neighbours")
    config = folder / "config.toml"
    lines = [
        f'state_dir = "{folder}/state"',
        f'output = "{folder}/events"',
        'control = "/run/no.sock"',
    ]
    for seat in (unfenced.seat, unfenced.second):
        lines += matrix.table(replace(seat, number=0), "host")
    config.write_text("\n".join(lines))
    with command.running("--config", str(config), inside=unfenced.host):
        yield unfenced


def _magic() -> bytes:
    return b"\x02" + secrets.token_bytes(1) + bytes([100, 64 + secrets.randbelow(64)])


def _sent(site: bridge.Site) -> set[str]:
    """Return the ways of a sandbox that bring chosen bytes to a neighbour."""
    jobs = [matrix.Job(number, key, site.seat, 0.0) for number, key in enumerate(_KEYS)]
    short = frozenset(job.number for job in jobs if VARIANTS[job.variant].is_short)
    magic = _magic()
    arrivals = far.Arrivals(magic, short)
    second = named(site.second.namespace)
    with bridge.watch(arrivals, {"neighbour": site.neighbour, "second": second}):
        assert len(matrix.attacked(jobs, magic)) == len(jobs)
        far.wait_until_quiet(arrivals, 0.3)
    return {_KEYS[number] for number, _point in arrivals.frames}


def _brought_in(site: bridge.Site) -> set[str]:
    """Return the frames of a neighbour that bring chosen bytes into a sandbox."""
    names = list(bridge.into(site.seat))
    magic = _magic()
    arrivals = far.Arrivals(magic, frozenset())

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((DEVICE, 0))
        return sock

    with (
        bridge.watch(arrivals, {"sandbox": named(site.seat.namespace)}),
        site.neighbour.call(open_socket) as sock,
    ):
        for number, name in enumerate(names):
            seat = replace(site.seat, magic=magic, job=number)
            sock.send(bridge.into(seat)[name]())
        time.sleep(0.1)
        far.wait_until_quiet(arrivals, 0.3)
    return {names[number] for number, _point in arrivals.frames}


def test_ways_reach_the_neighbours_without_a_fence(unfenced: bridge.Site) -> None:
    """The other tests find nothing because of the fence, and not because nothing is sent."""
    assert len(_sent(unfenced)) > len(_KEYS) // 3
    assert _brought_in(unfenced) == set(bridge.into(unfenced.seat))


def test_neighbours_receive_no_chosen_byte_of_a_sandbox(served: bridge.Site) -> None:
    assert _sent(served) == set()


def test_neighbour_brings_no_chosen_byte_into_a_sandbox(served: bridge.Site) -> None:
    assert _brought_in(served) == set()


def test_proxy_on_the_bridge_is_reached(served: bridge.Site) -> None:
    """The neighbours receive nothing because of the fence, and not because nothing works."""
    with served.host.call(
        lambda: socket.create_server((served.seat.gateway4, PROXY_PORT))
    ) as server:
        inside = named(served.seat.namespace)
        with inside.call(
            lambda: socket.create_connection((served.seat.gateway4, PROXY_PORT), 30)
        ) as ours:
            theirs, _ = server.accept()
            ours.sendall(b"question")
            assert theirs.recv(8) == b"question"
            theirs.close()
