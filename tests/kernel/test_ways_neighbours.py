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
from tests.kernel.ways import bridge, expected, far, matrix
from tests.kernel.ways.variant import DEVICE, PROXY_PORT
from tests.kernel.ways.variants import VARIANTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

_MAGIC: Final = b"\x02" + secrets.token_bytes(1) + bytes([100, 64 + secrets.randbelow(64)])
_KEYS: Final = [key for key, each in VARIANTS.items() if each.attacker == "raw"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[bridge.Site]:
    """Yield a site with two sandboxes that have a fence and a guard."""
    folder: Path = tmp_path_factory.mktemp("neighbours")
    with bridge.site() as made:
        config = folder / "config.toml"
        lines = [
            f'state_dir = "{folder}/state"',
            f'output = "{folder}/events"',
            'control = "/run/no.sock"',
        ]
        for seat in (made.seat, made.second):
            lines += matrix.table(replace(seat, number=0), "host")
        config.write_text("\n".join(lines))
        with command.running("--config", str(config), inside=made.host):
            yield made


def test_neighbours_receive_no_chosen_byte_of_a_sandbox(served: bridge.Site) -> None:
    jobs = [matrix.Job(number, key, served.seat, 0.0) for number, key in enumerate(_KEYS)]
    short = frozenset(job.number for job in jobs if VARIANTS[job.variant].is_short)
    arrivals = far.Arrivals(_MAGIC, short)
    second = named(served.second.namespace)
    with bridge.watch(arrivals, {"neighbour": served.neighbour, "second": second}):
        results = matrix.attacked(jobs, _MAGIC)
        assert len(results) == len(jobs)
        far.wait_until_quiet(arrivals, 0.3)
    found = {_KEYS[number] for number, _point in arrivals.frames}
    assert found == expected.neighbours()["out"]


def test_neighbour_brings_no_chosen_byte_into_a_sandbox(served: bridge.Site) -> None:
    names = list(bridge.into(served.seat))
    arrivals = far.Arrivals(_MAGIC, frozenset())
    inside = named(served.seat.namespace)

    def open_socket() -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.bind((DEVICE, 0))
        return sock

    with (
        bridge.watch(arrivals, {"sandbox": inside}),
        served.neighbour.call(open_socket) as sock,
    ):
        for number, name in enumerate(names):
            seat = replace(served.seat, magic=_MAGIC, job=number)
            sock.send(bridge.into(seat)[name]())
        time.sleep(0.1)
        far.wait_until_quiet(arrivals, 0.3)
    found = {names[number] for number, _point in arrivals.frames}
    assert found == expected.neighbours()["in"]


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
