"""Supported OCSF versions whose published schema is installed, for tests that compare with it."""

from __future__ import annotations

from typing import Final

from ocsf_json_schema import get_packaged_versions

from ocsf_nft.ocsf.versions import VERSIONS

#: The package has no schema of a version that was released after the package.
PUBLISHED: Final = tuple(each for each in VERSIONS if each in get_packaged_versions())
#: Versions without a published schema here. tests/ocsf/test_newer_versions.py is about them.
UNPUBLISHED: Final = tuple(each for each in VERSIONS if each not in PUBLISHED)
