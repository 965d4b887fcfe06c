from __future__ import annotations

import errno
import os

import pytest

from ocsf_nft.errors import FenceError, UnsupportedError
from ocsf_nft.fence.nft_monitor import ruleset_error


@pytest.mark.parametrize(
    ("error", "kind", "sentence"),
    [
        (OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP)), UnsupportedError,
         "this kernel can't do what the fence needs (Operation not supported)"),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), UnsupportedError,
         "this kernel can't do what the fence needs (No such file or directory)"),
        (OSError(errno.EPERM, os.strerror(errno.EPERM)), FenceError,
         "the fence's tables can't be changed: another process owns them exclusively"),
        (OSError(errno.EINVAL, os.strerror(errno.EINVAL)), FenceError,
         "the kernel refused the fence: Invalid argument"),
        (TimeoutError("timed out"), FenceError, "the kernel refused the fence: timed out"),
    ],
)  # fmt: skip
def test_each_kernel_error_has_a_message(error: OSError, kind: type, sentence: str) -> None:
    found = ruleset_error(error)
    assert (type(found), str(found)) == (kind, sentence)
