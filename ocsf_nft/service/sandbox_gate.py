"""Last gate of one sandbox's fence, which follows the fence's policy."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog

from ocsf_nft import netlink, rtnetlink
from ocsf_nft.errors import AbsentError, UnsupportedError
from ocsf_nft.fence.gate import Uplink
from ocsf_nft.fence.gate_policy import gate_policy
from ocsf_nft.flow import Count
from ocsf_nft.netns import call_beside
from ocsf_nft.service.shielded import run_in_pool

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from concurrent.futures import Executor

    from ocsf_nft.fence.gate import Gate
    from ocsf_nft.fence.spec import FenceSpec
    from ocsf_nft.fence.state import InstalledFence
