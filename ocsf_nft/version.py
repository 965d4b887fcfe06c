"""Version of ocsf-nft."""

from __future__ import annotations

from typing import Final

#: The same as in pyproject.toml. A constant, because importlib.metadata takes half of the time in
#: which a short command starts.
VERSION: Final = "0.2.0"
