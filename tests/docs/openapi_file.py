"""Generator of the OpenAPI document of the control API, a file of the reference.

To write the file, run ``make reference``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ocsf_nft.control.openapi import openapi

if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(openapi())
