"""Stack of the BPF programs: kernels before Linux 6.9 round each frame up, and allow 512 bytes."""

from __future__ import annotations

from importlib import resources
from itertools import pairwise

import pytest

from tests.attribution import bpf_stack

#: 32 bytes less than the kernel allows: another version of clang may need some more.
_MOST = 480


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("ocsf_nft.attribution.bpf", "types"),
        ("ocsf_nft.attribution.bpf", "plain"),
        ("ocsf_nft.fence.bpf", "gate"),
    ],
)
def test_stack_of_each_program_is_small_enough_for_old_kernels(package: str, name: str) -> None:
    depths = bpf_stack.depths(resources.files(package).joinpath(f"{name}.bpf.o").read_bytes())
    assert depths
    assert {each: depth for each, depth in depths.items() if depth > _MOST} == {}


def test_depth_of_the_stack_includes_called_functions() -> None:
    content = resources.files("ocsf_nft.attribution.bpf").joinpath("types.bpf.o").read_bytes()
    depths = bpf_stack.depths(content)
    chain = ("refused", "describe_with_ancestors", "describe", "add_path", "add_file")
    for caller, called in pairwise(chain):
        assert depths[caller] >= depths[called] + 32
