"""User ids of a user namespace, and their ids in the initial namespace."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ocsf_nft import userns
from ocsf_nft.userns import UserIdMap


@pytest.mark.parametrize(
    ("there", "here"),
    [(0, 1000), (1, 100_000), (100, 100_099), (101, 65534), (499, 65534), (500, 7), (501, 65534)],
)
def test_user_id_is_mapped_by_its_range(there: int, here: int) -> None:
    assert UserIdMap(((0, 1000, 1), (1, 100_000, 100), (500, 7, 1))).to_local(there) == here


@pytest.mark.kernel
def test_users_belong_to_the_owner_of_the_network_namespace() -> None:
    program = "from ocsf_nft import userns; print(userns.user_id_map())"
    map_of_root = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", program]
    shown = subprocess.run(map_of_root, capture_output=True, text=True, check=True).stdout
    assert shown == "None\n"  # its own user namespace


def test_user_lookup_leaves_no_descriptor_open() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - shorter
    for _ in range(10):
        userns.user_id_map()
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208 - shorter
