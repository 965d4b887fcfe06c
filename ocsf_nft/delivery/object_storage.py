"""Storage of whole files by key (a relative path): in a directory, or in a bucket of S3.

A file appears under its key only with its complete content.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import PurePath
from typing import TYPE_CHECKING, Final, TypeAlias

from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.error_text import printable
from ocsf_nft.delivery.sinks.line_writer import WriterThread
from ocsf_nft.delivery.sinks.safe_open import DIRECTORY_MODE, MODE, sync_directory
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obstore.store import ClientConfig, S3Config, S3Credential, S3Store


#: File that is written to test a directory.
_PROBE_FILE: Final = ".ocsf-nft.part"

_CONNECT_TIMEOUT: Final = timedelta(seconds=10)
#: Limit for a whole request; the forwarder cancels it far earlier.
_TIMEOUT: Final = timedelta(hours=2)
#: Missing object, requested to check that the bucket exists.
_PROBE: Final = ".ocsf-nft"

# Parts of the library's error texts: a message, then a dump of its error values. S3's own errors
# are XML: "Error responses", Amazon S3 API Reference.
_STATUS: Final = re.compile(r"non-2xx status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")
_CERTIFICATE: Final = re.compile(r"InvalidCertificate\(\s*(\w+)")
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]*)"')
_KIND: Final = re.compile(r"HttpError \{\s*kind: (\w+)")
#: URLs that the library requests credentials from: those of a container's agent, and of the machine
#: ("Use the Instance Metadata Service", Amazon EC2 User Guide).
_INSTANCE: Final = re.compile(r"://169\.254\.|/latest/(?:api/token|meta-data)")

_TOO_LARGE: Final = "EntityTooLarge"
_MISSING: Final = "NoSuchKey"
#: Answer for a missing object if the credentials only permit writing.
_NOT_READABLE: Final = "AccessDenied"
_REMEDIES: Final = {
    "AccessDenied": "allow these credentials to put objects there",
    "InvalidAccessKeyId": "correct access_key",
    "NoSuchBucket": "create the bucket, or name another",
    "SignatureDoesNotMatch": "correct the secret of access_key",
}
_KINDS: Final = {"Timeout": "there was no answer in time", "Request": "the connection was cut"}
_CERTIFICATES: Final = {
    "UnknownIssuer": "is of an unknown authority: name that authority's certificate in tls.ca",
    "NotValidForName": "is of another host: name the certificate's host in endpoint",
    "NotValidForNameContext": "is of another host: name the certificate's host in endpoint",
    "Expired": "has expired: renew it",
    "ExpiredContext": "has expired: renew it",
}


# Not obstore's: it acknowledges files that are not on the disk yet, and leaves partial files.
class Directory:
    """Storage of whole files below the directory ``path``.

    If ``path`` is missing, :meth:`open` creates it. Its parent directory must exist. On a file
    system that can't sync directories, the name of a new file may not survive a power cut.
    """

    def __init__(self, *, path: Path) -> None:
        self._path = path
        # Sinks of other classes may have the same directory.
        self._writer = WriterThread("directory", path, is_shared=True)

    async def open(self, prefix: str) -> None:
        """Create the directory if it is missing, and check that files can be written in it.

        If :meth:`close` left a write running, first wait until that write has ended. Raises
        DeliveryError if no file can be written. ``prefix`` is ignored.
        """
        del prefix
        await self._writer.start()
        await self._writer.run(self._try)

    async def close(self) -> None:
        """Close the storage without waiting for a running write, which continues."""
        await self._writer.stop()

    async def put(self, key: str, content: bytes) -> None:
        """Store ``content`` as the file ``key`` (a relative path); replace an existing file.

        Raises DeliveryError if the file can't be written.
        """
        await self._writer.run(lambda: self._put(PurePath(key), content))

    def _try(self) -> None:
        with contextlib.suppress(FileExistsError):
            self._path.mkdir(mode=DIRECTORY_MODE)
        probe = self._path / _PROBE_FILE
        _write(probe, b"")
        probe.unlink(missing_ok=True)  # another sink may have removed it

    def _put(self, key: PurePath, content: bytes) -> None:
        path = self._path / key
        # Readers of a data lake ignore this name: Hive and Athena skip hidden files, others only
        # read ``*.parquet``.
        part = path.with_name(f".{path.name}.part")
        _make_directory(path.parent)
        try:
            _write(part, content)
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


@dataclass(kw_only=True, eq=False, repr=False)
class Bucket:
    """Storage of objects below ``prefix`` in the S3 bucket ``name``, or of a like server.

    One request stores an object. A failed request is not retried, because the caller retries it.
    Without ``access_key`` or ``secret``, the credentials come from the environment, the container
    or the machine, as for Amazon's tools.
    """

    name: str
    prefix: str = ""
    region: str
    #: URL of the S3 server; None means Amazon's server.
    endpoint: str | None = None
    access_key: str | None = None
    secret: Secret | None = None
    #: File of certificates to trust in addition to the system's.
    ca: Path | None = None
    _store: S3Store | None = field(init=False, default=None)

    async def open(self, prefix: str) -> None:
        """Read the secret and the certificates, and check that the S3 bucket exists.

        For the check, an object below ``prefix`` is requested; the object need not exist. The
        permission to store objects is not checked. Raises DeliveryError.
        """
        from obstore.exceptions import BaseError  # noqa: PLC0415 - only an open sink needs it

        try:
            self._store = await asyncio.to_thread(self._create_store)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"{self._url} can't be used: {printable(error)}") from error
        try:
            await self._store.get_async(f"{prefix}/{_PROBE}")
        except (BaseError, FileNotFoundError) as error:
            code = _first_group(_CODE, str(error))
            if code not in {_MISSING, _NOT_READABLE}:
                raise self._failure(error) from error

    async def close(self) -> None:
        """Close the connections to the bucket."""
        self._store = None

    async def put(self, key: str, content: bytes) -> None:
        """Store ``content`` as the object ``key``; replace an object with the same key.

        Raises RefusedError if the object is too large, DeliveryError if it can't be stored for
        another reason.
        """
        from obstore.exceptions import BaseError  # noqa: PLC0415 - as in open

        if self._store is None:
            raise DeliveryError(f"{self._url} is not open")
        try:
            await self._store.put_async(key, content, use_multipart=False)
        except (BaseError, FileNotFoundError) as error:
            raise self._failure(error) from error

    def _create_store(self) -> S3Store:
        from obstore.store import S3Store  # noqa: PLC0415 - as in open

        options: ClientConfig = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT}
        config: S3Config = {"region": self.region}
        if self.endpoint is not None:
            # The library prefers the second key, and would else take it from the environment.
            config["endpoint"] = config["aws_endpoint_url_s3"] = self.endpoint
            options["allow_http"] = self.endpoint.startswith("http:")
        if self.ca is not None:
            Tls(ca=self.ca).context()  # raises the usual error if the file is not valid
            options["root_certificate"] = self.ca.read_bytes()
        return S3Store(
            self.name,
            prefix=self.prefix or None,
            config=config,
            client_options=options,
            retry_config={"max_retries": 0},
            credential_provider=self._credentials(),
        )

    def _credentials(self) -> Callable[[], S3Credential] | None:
        if self.access_key is None or self.secret is None:
            return None  # the library finds credentials itself
        credential: S3Credential = {
            "access_key_id": self.access_key,
            "secret_access_key": self.secret.read(),
            "expires_at": None,
        }
        return lambda: credential

    @property
    def _url(self) -> str:
        return f"s3://{self.name}" + (f" at {self.endpoint}" if self.endpoint else "")

    def _failure(self, error: Exception) -> DeliveryError:
        text, _, dump = str(error).partition("\n\nDebug source:")
        if self.access_key is None and _INSTANCE.search(text):
            return DeliveryError(
                f"there are no credentials for {self._url}: give access_key and secret, set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            )
        if status := _first_group(_STATUS, text):
            return self._refusal(status, _first_group(_CODE, text), _first_group(_MESSAGE, text))
        if kind := _first_group(_CERTIFICATE, dump):
            fault = _CERTIFICATES.get(kind, f"is not valid ({kind})")
            return DeliveryError(f"{self._url} can't be reached: its certificate {fault}")
        cause = (
            _first_group(_CAUSE, dump)
            or _KINDS.get(_first_group(_KIND, dump))
            or text.rpartition(" - ")[2]
        )
        return DeliveryError(f"{self._url} can't be reached: {printable(cause)}")

    def _refusal(self, status: str, code: str, message: str) -> DeliveryError:
        answer = printable(" ".join(filter(None, (status, code, message))))
        remedy = f": {_REMEDIES[code]}" if code in _REMEDIES else ""
        sentence = f"{self._url} answers {answer}{remedy}"
        is_too_large = code == _TOO_LARGE or status == "413"
        return RefusedError(sentence) if is_too_large else DeliveryError(sentence)


#: Where a sink stores its files.
Storage: TypeAlias = Bucket | Directory


def _write(path: Path, content: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(path, flags, MODE), "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())


def _make_directory(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_directory(folder.parent)
    # The sync makes the new name safe from a power cut.
    folder.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
    sync_directory(folder.parent)


def _first_group(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""
