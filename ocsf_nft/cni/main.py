"""Program ``ocsf-nft-cni``: a chained CNI plugin that fences a pod before its containers start."""

from __future__ import annotations

import json
import os
import sys

from ocsf_nft.cni import commands
from ocsf_nft.cni.errors import CniError
from ocsf_nft.cni.request import VERSIONS, parse


def main() -> None:
    """Run one command of CNI, and exit with 1 after an error, which is JSON on standard output."""
    version = VERSIONS[-1]
    try:
        # A person who starts it gets the error at once.
        is_given = "CNI_COMMAND" in os.environ and sys.stdin is not None
        request = parse(os.environ, sys.stdin.buffer.read() if is_given else b"")
        version = request.version
        result = commands.run(request)
    except CniError as error:
        failure = {"cniVersion": version, "code": error.code, "msg": f"ocsf-nft: {error}"}
        sys.stdout.write(f"{json.dumps(failure)}\n")
        sys.exit(1)
    if result is not None:
        sys.stdout.write(f"{json.dumps(result)}\n")
