"""All targets of the campaign, by their names."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING

from tests.fuzz.targets import (
    containers,
    control,
    conversion,
    events,
    files,
    kernel_log,
    netlink,
    packets,
    processes,
    receivers,
    rules,
    self_test,
    texts,
)

if TYPE_CHECKING:
    from types import ModuleType

    from tests.fuzz.target import Target


@cache
def targets() -> dict[str, Target]:
    """Return the targets by name."""
    modules: tuple[ModuleType, ...] = (
        packets,
        kernel_log,
        conversion,
        netlink,
        processes,
        control,
        receivers,
        containers,
        files,
        rules,
        texts,
        events,
    )
    if os.environ.get("OCSF_NFT_FUZZ_SELF_TEST"):
        modules = (*modules, self_test)
    return {target.name: target for module in modules for target in module.TARGETS}
