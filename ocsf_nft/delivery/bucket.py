"""A bucket of S3, or of what speaks like it, that whole objects are put into.

An object is put by one request, so that there is all of it or nothing. The library is told to try
nothing twice: who delivers does, and knows for how long.
"""

from __future__ import annotations

import asyncio
import re
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from obstore.exceptions import BaseError
from obstore.store import S3Store

from ocsf_nft.delivery.sinks.error_text import printable
from ocsf_nft.delivery.tls import Tls
from ocsf_nft.errors import DeliveryError, RefusedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from obstore.store import ClientConfig, S3Config, S3Credential

    from ocsf_nft.delivery.secrets import Secret

_CONNECT_TIMEOUT: Final = timedelta(seconds=10)
#: Of a whole request: whoever delivers cuts it far earlier.
_TIMEOUT: Final = timedelta(hours=2)
#: An object that is not there, asked for to find out whether the bucket is.
_PROBE: Final = ".ocsf-nft"

# What the library says of a failure, in words and then as a dump of what it had. S3's own errors
# are XML: "Error responses", Amazon S3 API Reference.
_STATUS: Final = re.compile(r"non-2xx status code: (\d{3})")
_CODE: Final = re.compile(r"<Code>\s*(\w+)\s*</Code>")
_MESSAGE: Final = re.compile(r"<Message>([^<]*)</Message>")
_CERTIFICATE: Final = re.compile(r"InvalidCertificate\(\s*(\w+)")
_CAUSE: Final = re.compile(r'(?:message|error): "([^"]*)"')
_KIND: Final = re.compile(r"HttpError \{\s*kind: (\w+)")
#: What the library asks a cloud for credentials: a container's agent, and the machine's own ("Use
#: the Instance Metadata Service", Amazon EC2 User Guide).
_INSTANCE: Final = re.compile(r"://169\.254\.|/latest/(?:api/token|meta-data)")

_TOO_LARGE: Final = "EntityTooLarge"
_NOT_THERE: Final = "NoSuchKey"
#: Who may only write is told this of an object that is not there.
_NOT_TO_BE_READ: Final = "AccessDenied"
_MENDS: Final = {
    "AccessDenied": "let whose credentials these are put objects there",
    "InvalidAccessKeyId": "mend access_key",
    "NoSuchBucket": "make the bucket, or name another",
    "SignatureDoesNotMatch": "mend the secret that goes with access_key",
}
_KINDS: Final = {"Timeout": "there is no answer in time", "Request": "the connection was cut"}
_CERTIFICATES: Final = {
    "UnknownIssuer": "is of no authority that is trusted: name its own in tls.ca",
    "NotValidForName": "is of another host: name the one in endpoint that it is of",
    "NotValidForNameContext": "is of another host: name the one in endpoint that it is of",
    "Expired": "has expired: have it renewed",
    "ExpiredContext": "has expired: have it renewed",
}


class Bucket:
    """Puts objects below ``prefix`` in the bucket ``name``.

    ``endpoint`` is the URL of a server that is not Amazon's. Without ``access_key`` and its
    ``secret``, credentials are those of the environment, of a container or of the machine, as
    Amazon's own tools find them. ``ca`` is a file of certificates to trust beside the system's.
    """

    def __init__(  # noqa: PLR0913 - what a bucket is reached by
        self,
        *,
        name: str,
        prefix: str = "",
        region: str,
        endpoint: str | None = None,
        access_key: str | None = None,
        secret: Secret | None = None,
        ca: Path | None = None,
    ) -> None:
        self._name = name
        self._prefix = prefix
        self._region = region
        self._endpoint = endpoint
        self._access_key = access_key
        self._secret = secret
        self._ca = ca
        self._store: S3Store | None = None

    async def open(self, prefix: str) -> None:
        """Find out whether the bucket is there, below ``prefix``; raises DeliveryError.

        Reads the secret and certificates. Whether objects may be put is known from putting one.
        """
        try:
            self._store = await asyncio.to_thread(self._made)
        except (OSError, ValueError) as error:
            raise DeliveryError(f"{self._place} can't be used: {printable(error)}") from error
        try:
            await self._store.get_async(f"{prefix}/{_PROBE}")
        except (BaseError, FileNotFoundError) as error:
            code = _found(_CODE, str(error))
            if code not in {_NOT_THERE, _NOT_TO_BE_READ}:
                raise self._failure(error) from error

    async def close(self) -> None:
        """Leave it: connections close with the store."""
        self._store = None

    async def put(self, key: str, content: bytes) -> None:
        """Put an object, in place of one that has its key.

        Raises DeliveryError, and RefusedError when it is too large.
        """
        if self._store is None:
            raise DeliveryError(f"{self._place} is not open")
        try:
            await self._store.put_async(key, content, use_multipart=False)
        except (BaseError, FileNotFoundError) as error:
            raise self._failure(error) from error

    def _made(self) -> S3Store:
        options: ClientConfig = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": _TIMEOUT}
        config: S3Config = {"region": self._region}
        if self._endpoint is not None:
            # The latter is what the library would otherwise take from the environment, and prefer.
            config["endpoint"] = config["aws_endpoint_url_s3"] = self._endpoint
            options["allow_http"] = self._endpoint.startswith("http:")
        if self._ca is not None:
            options["root_certificate"] = _certificates(self._ca)
        return S3Store(
            self._name,
            prefix=self._prefix or None,
            config=config,
            client_options=options,
            retry_config={"max_retries": 0},
            credential_provider=self._credentials(),
        )

    def _credentials(self) -> Callable[[], S3Credential] | None:
        """What asks for credentials that are given; the library finds others by itself."""
        if self._access_key is None or self._secret is None:
            return None
        found: S3Credential = {
            "access_key_id": self._access_key,
            "secret_access_key": self._secret.read(),
            "expires_at": None,
        }
        return lambda: found

    @property
    def _place(self) -> str:
        return f"s3://{self._name}" + (f" at {self._endpoint}" if self._endpoint else "")

    def _failure(self, error: Exception) -> DeliveryError:
        said, _, dump = str(error).partition("\n\nDebug source:")
        if self._access_key is None and _INSTANCE.search(said):
            return DeliveryError(
                f"there are no credentials for {self._place}: give access_key and secret, set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
            )
        if status := _found(_STATUS, said):
            return self._refusal(status, _found(_CODE, said), _found(_MESSAGE, said))
        if kind := _found(_CERTIFICATE, dump):
            fault = _CERTIFICATES.get(kind, f"is not valid ({kind})")
            return DeliveryError(f"{self._place} can't be reached: its certificate {fault}")
        cause = _found(_CAUSE, dump) or _KINDS.get(_found(_KIND, dump)) or said.rpartition(" - ")[2]
        return DeliveryError(f"{self._place} can't be reached: {printable(cause)}")

    def _refusal(self, status: str, code: str, message: str) -> DeliveryError:
        answer = printable(" ".join(filter(None, (status, code, message))))
        mend = f": {_MENDS[code]}" if code in _MENDS else ""
        sentence = f"{self._place} answers {answer}{mend}"
        is_too_large = code == _TOO_LARGE or status == "413"
        return RefusedError(sentence) if is_too_large else DeliveryError(sentence)


def _certificates(path: Path) -> bytes:
    Tls(ca=path).context()  # says what is wrong with the file, as everywhere else
    return path.read_bytes()


def _found(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    return match[1] if match else ""
