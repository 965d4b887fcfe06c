from __future__ import annotations

import pytest

from tests.ocsf.mapped import event_of


@pytest.mark.parametrize(
    ("name", "technique"),
    [
        ("tcp4", None),
        ("udp dns", None),
        ("udp port 0", None),
        ("icmp echo", None),
        ("gre", None),
        ("link 88b5", "T1095"),
        ("metadata4", "T1552.005"),
        ("ingress", None),
        ("router solicitation", None),
        ("foreign", None),
        ("foreign, no prefix", None),
    ],
)
def test_attack_needs_a_behaviour_that_shows_it(name: str, technique: str | None) -> None:
    attacks = event_of(name).get("attacks")
    if attacks is None:
        assert technique is None
    else:
        (attack,) = attacks
        assert attack.get("sub_technique", attack["technique"])["uid"] == technique
