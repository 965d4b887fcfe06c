"""Paths of Parquet files, as Amazon Security Lake reads those of custom sources."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ocsf_nft.delivery.parquet_files import File


class Layout(NamedTuple):
    """Facts in the paths of files.

    Source: "Collecting data from custom sources", Amazon Security Lake User Guide. The path is
    ``ext/<source>-<class>/<version>/region=<region>/accountId=<account>/eventDay=<YYYYMMDD>/<name>``.
    """

    #: Name of the custom source, and its version; empty without a version.
    source: str
    source_version: str
    region: str
    account: str

    def location(self, class_uid: int) -> str:
        """Return the directory of all files with events of a class."""
        # Security Lake requires a separate custom source for each class.
        location = f"ext/{self.source}-{class_uid}"
        return f"{location}/{self.source_version}" if self.source_version else location

    def key(self, file: File) -> str:
        """Return the path of a file."""
        folder = f"region={self.region}/accountId={self.account}/eventDay={file.day}"
        return f"{self.location(file.class_uid)}/{folder}/{file.name}"
