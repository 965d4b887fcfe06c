"""A sink that is files of Parquet, in a bucket or a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, checked
from ocsf_nft.config.sinks.base import SecretTable, SinkTable, Text, TlsTable
from ocsf_nft.config.sinks.columns import columns
from ocsf_nft.errors import UnsupportedError, UsageError

if TYPE_CHECKING:
    from ocsf_nft.delivery.sinks.base import Sink
    from ocsf_nft.delivery.sinks.parquet import Storage

_EXTRA: Final = "a sink of type parquet needs the extra ocsf-nft[parquet]: install it"


def _endpoint(text: str) -> str:
    try:
        url = urlsplit(text)
        _ = url.port  # raises when it is none
    except ValueError as error:
        raise UsageError(f"{text!r} is no URL: {error}") from error
    # Of itself urlsplit() leaves line ends and tabs out.
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if url.scheme not in {"http", "https"} or not url.hostname or not is_plain:
        raise UsageError("must be a URL of http or https, as https://s3.example.com:9000")
    if url.username is not None or url.password is not None:
        raise UsageError("must not hold a user or a password: give access_key and secret")
    if url.path.strip("/") or url.query or url.fragment:
        raise UsageError(f"{text!r} must be a scheme, a host and a port, without a path")
    return text.rstrip("/")


#: "Bucket naming rules", Amazon S3 User Guide; of a prefix, what needs no escape anywhere.
_Bucket = Annotated[
    str,
    Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[A-Za-z0-9_=-][A-Za-z0-9._=-]*)*/?$"),
]
_PathPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class ParquetSink(SinkTable):
    """Files of Apache Parquet, laid out as Amazon Security Lake wants a custom source's.

    They are put into a ``directory``, or into a ``bucket`` of S3, ``s3://name`` or
    ``s3://name/prefix``; Security Lake's own bucket without a prefix. A bucket that is not
    Amazon's is at ``endpoint``, a URL.

    The path below is ``ext/<source>-<class>/<source_version>/region=<region>/accountId=<account>/
    eventDay=<YYYYMMDD>/``. Each class is a custom source of its own: make one for each, as
    ``ocsf-nft-4001`` for Network Activity. ``source`` is what they have in common, and
    ``source_version`` by default the version of OCSF, so that a table has one set of columns;
    when the custom source was made without a version, give ``""``. ``account`` is the AWS account
    that the events are about, or ``external`` with anything after it.

    Credentials are found as by Amazon's own tools (environment, container, machine), or given by
    ``access_key`` and ``secret``. They need ``s3:PutObject`` below each source. ``tls.ca`` is
    trusted beside the system's authorities; S3 asks for no certificate of ours. A proxy is that of
    the environment, ``HTTPS_PROXY``.

    Security Lake wants few and large files: a batch, which makes a file for each class and day in
    it, waits for five minutes.
    """

    type: Literal["parquet"]
    directory: Annotated[Path, FileName] | None = None
    bucket: _Bucket | None = None
    endpoint: Annotated[str, checked(_endpoint)] | None = None
    region: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,31}$")]
    account: _PathPart = "external"
    #: With a class after it a custom source's name, which has 20 characters at most.
    source: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$")] = "ocsf-nft"
    source_version: (
        Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,31})?$")] | None
    ) = None
    access_key: Text | None = None
    secret: SecretTable | None = None
    tls: TlsTable | None = None
    batch_events: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    batch_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 16 << 20
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 300.0
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = 120.0

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
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
    def target(self) -> str:
        """The directory or the bucket, and the source there."""
        place = self.bucket or str(self.directory)
        if self.endpoint is not None:
            place = place.replace("s3:/", self.endpoint, 1)
        return "/".join(filter(None, (place.rstrip("/"), "ext", self.source, self._version)))

    @property
    def _version(self) -> str:
        return self.ocsf_version if self.source_version is None else self.source_version

    def sink(self) -> Sink:
        """The sink itself; raises UnsupportedError when its extra is not installed."""
        try:
            from ocsf_nft.delivery.sinks.parquet import Parquet  # noqa: PLC0415 - if configured

            storage = self._storage()
        except ImportError as error:
            raise UnsupportedError(_EXTRA) from error
        wanted = self.class_uids
        return Parquet(
            storage=storage,
            columns={uid: of for uid, of in columns(self.ocsf_version).items() if uid in wanted},
            source=self.source,
            source_version=self._version,
            region=self.region,
            account=self.account,
        )

    def _storage(self) -> Storage:
        if self.directory is not None:
            from ocsf_nft.delivery.object_directory import Directory  # noqa: PLC0415 - the same

            return Directory(path=self.directory)
        from ocsf_nft.delivery.bucket import Bucket  # noqa: PLC0415 - the same

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
