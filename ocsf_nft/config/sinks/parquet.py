"""Configuration of a sink of type ``parquet``: files in a bucket or a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.object_storage import Storage
    from ocsf_nft.delivery.sinks.base import Sink


def _endpoint(text: str) -> str:
    try:
        url = urlsplit(text)
        _ = url.port  # raises if it is invalid
    except ValueError as error:
        # Without the text, which may have a password.
        raise UsageError("must be a URL, such as https://s3.example.com:9000") from error
    # urlsplit() silently removes line ends and tabs.
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if url.scheme not in {"http", "https"} or not url.hostname or not is_plain:
        raise UsageError("must be a URL of http or https, as https://s3.example.com:9000")
    if url.username is not None or url.password is not None:
        raise UsageError("must not hold a user or a password: give access_key and secret")
    if url.path.strip("/") or url.query or url.fragment:
        raise UsageError("must be a scheme, a host and a port, without a path")
    return text.rstrip("/")


#: "Bucket naming rules", Amazon S3 User Guide; in a prefix, characters that need no escape.
_Bucket = Annotated[
    str,
    Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?$"),
]
_PathPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ParquetSink(SinkTable):
    """Apache Parquet files, with the layout of a custom source of Amazon Security Lake.

    The files are written to a ``directory``, or to a ``bucket`` of S3 (``s3://name`` or
    ``s3://name/prefix``). For Security Lake's own bucket, give no prefix. ``endpoint`` is the URL
    of the S3 server, if the bucket is not at Amazon.

    The path of a file in the directory or bucket begins with ``ext/<source>-<class>/
    <source_version>/region=<region>/accountId=<account>/eventDay=<YYYYMMDD>/``. In Security Lake,
    create a custom source for each event class, such as ``ocsf-nft-4001`` for Network Activity.
    ``source`` is the beginning of the names of these custom sources, by default ``ocsf-nft``.
    All files of one version of a custom source must have the same columns, and the columns depend
    on the OCSF version. So ``source_version`` is by default the OCSF version. If the custom source
    was created without a version, give ``""``. ``region`` is the AWS region of the bucket; with a
    ``directory``, it is only used in the path. ``account`` is the AWS account of the events. For
    events from outside AWS, it is a text that begins with ``external``.

    The credentials are ``access_key`` and ``secret``. If both are omitted, the credentials come
    from the environment, the container or the machine, as for Amazon's tools. The credentials need
    the permission ``s3:PutObject`` for the paths of each custom source. The certificate
    authorities in the file ``tls.ca`` are trusted in addition to the system's authorities. Client
    certificates are not supported. The environment variable ``HTTPS_PROXY`` sets the proxy.

    Security Lake requires few and large files. So a batch waits up to five minutes for more events
    by default. Each batch becomes one file for each event class and day.
    """

    extra: ClassVar[str] = "parquet"
    modules: ClassVar[tuple[str, ...]] = ("pyarrow",)

    type: Literal["parquet"]
    directory: Annotated[Path, FileName] | None = None
    """Directory of the files; in place of bucket."""
    bucket: _Bucket | None = None
    """Bucket of the files, as s3://NAME/PREFIX."""
    endpoint: Annotated[str, checked(_endpoint)] | None = None
    """URL of the S3 server, if it is not Amazon's."""
    region: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    """Region in the paths of the files."""
    account: _PathPart = "external"
    """Account in the paths of the files."""
    #: The name of a custom source is this and a class, and has at most 20 characters.
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")] = "ocsf-nft"
    """Name of the source in the paths of the files."""
    source_version: (
        Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,31})?$")] | None
    ) = None
    """Version of the source in the paths of the files."""
    access_key: Text | None = None
    """Access key of the bucket."""
    secret: SecretTable | None = None
    """Secret of the access key."""
    tls: TlsTable | None = None
    """TLS settings for the endpoint."""
    batch_events: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    batch_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 16 << 20
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 300.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = 120.0

    @model_validator(mode="after")
    def _has_one_destination(self) -> Self:
        if (self.directory is None) == (self.bucket is None):
            raise ValueError("must have either a directory or a bucket to put files into")
        if (self.access_key is None) != (self.secret is None):
            raise ValueError("must have access_key and secret, or neither")
        of_bucket = (self.endpoint, self.access_key, self.tls)
        if self.directory is not None and of_bucket != (None, None, None):
            raise ValueError("must not have endpoint, access_key, secret or tls for a directory")
        return self

    @model_validator(mode="after")
    def _shows_no_certificate(self) -> Self:
        if self.tls is not None and self.tls.certificate is not None:
            raise ValueError("must not have tls.certificate: S3 asks for credentials instead")
        return self

    @property
    def writes(self) -> Path | None:
        """Return the directory of the files; None for a bucket."""
        return self.directory

    @property
    def locations(self) -> frozenset[str]:
        """Return the directory of the files of each class, without their day."""
        where = f"{self._target}/{self.region}/{self.account}"
        return frozenset(f"{where}/{each}" for each in self.class_uids)

    @property
    def _target(self) -> str:
        root = self.bucket or str(self.directory)
        if self.endpoint is not None:
            root = root.replace("s3:/", self.endpoint, 1)
        return "/".join(filter(None, (root.rstrip("/"), "ext", self.source, self._version)))

    @property
    def _version(self) -> str:
        return self.ocsf_version if self.source_version is None else self.source_version

    def _sink(self) -> Sink:
        from ocsf_nft.delivery.parquet_layout import Layout  # noqa: PLC0415 - if configured
        from ocsf_nft.delivery.sinks.parquet import Parquet  # noqa: PLC0415 - the same

        selected = self.class_uids
        return Parquet(
            storage=self._storage(),
            columns={uid: of for uid, of in columns(self.ocsf_version).items() if uid in selected},
            layout=Layout(self.source, self._version, self.region, self.account),
        )

    def _storage(self) -> Storage:
        from ocsf_nft.delivery.object_storage import Bucket, Directory  # noqa: PLC0415 - the same

        if self.directory is not None:
            return Directory(path=self.directory)
        self._require("obstore")
        name, _, prefix = (self.bucket or "").removeprefix("s3://").partition("/")
        return Bucket(
            name=name,
            prefix=prefix.rstrip("/"),
            region=self.region,
            endpoint=self.endpoint,
            access_key=self.access_key,
            secret=None if self.secret is None else self.secret.secret(),
            ca=None if self.tls is None else self.tls.ca,
        )
