from __future__ import annotations

import pytest

from tests.ocsf.mapped import event_of


@pytest.mark.parametrize(
    ("name", "technique"),
    [
        ("tcp4", "T1071.001"),
        ("udp dns", "T1071.004"),
        ("udp port 0", "T1571"),
        ("icmp echo", "T1095"),
        ("gre", "T1095"),
        ("link 88b5", "T1095"),
        ("metadata4", "T1552.005"),
        ("ingress", None),
        ("router solicitation", None),
        ("foreign", None),
        ("foreign, no prefix", None),
    ],
)
def test_attack_names_the_attempt(name: str, technique: str | None) -> None:
    attacks = event_of(name).get("attacks")
    if attacks is None:
        assert technique is None
    else:
        (attack,) = attacks
        assert attack.get("sub_technique", attack["technique"])["uid"] == technique
