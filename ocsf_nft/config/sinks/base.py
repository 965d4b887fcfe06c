"""Base of all ``[[sink]]`` tables, and their inner tables for secrets and TLS."""

from __future__ import annotations

import importlib.util
import os
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from ocsf_nft.config.base_table import FileName, Table, checked
from ocsf_nft.delivery.receiver_settings import Secret, Tls
from ocsf_nft.delivery.sinks.base import BatchSettings, Sink
from ocsf_nft.errors import UnsupportedError
from ocsf_nft.ocsf.events import CLASS_UIDS
from ocsf_nft.ocsf.versions import STORED, full_version

ClassName: TypeAlias = Literal[
    "network_activity",
    "dns_activity",
    "detection_finding",
    "device_config_state_change",
    "application_lifecycle",
]
Version = Annotated[str, checked(full_version)]
Classes = Annotated[tuple[ClassName, ...], Field(min_length=1)]
#: Name of a sink in the store, in metrics and in our own log.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Text = Annotated[str, Field(min_length=1, pattern=r"^[^\x00-\x1f\x7f]*$")]


class SinkTable(Table):
    """Destination of events, with its own OCSF version and its own selection of event classes.

    With ``detail = "lean"``, events lack captions, raw data and repetitions.

    The default ``name`` is a short text for the destination, such as a path or a URL. Events are
    sent in batches. A batch has at most ``batch_events`` events and ``batch_bytes`` bytes. A batch
    below these limits waits at most ``batch_seconds`` for more events. A delivery that takes longer
    than ``timeout_seconds`` is stopped and retried. The pause before each retry is at most
    ``retry_seconds``.
    """

    #: Package extra with the libraries of the sink, and modules that this extra installs.
    extra: ClassVar[str] = ""
    modules: ClassVar[tuple[str, ...]] = ()

    type: str
    """Type of the sink."""
    name: Name | None = None
    """Name of the sink in the store, in metrics and in the log."""
    ocsf_version: Version = STORED
    """OCSF version of the events, such as 1.8."""
    detail: Literal["full", "lean"] = "full"
    """Detail of the events: lean has no captions, raw data and repetitions."""
    classes: Classes = ("network_activity", "dns_activity", "detection_finding",
                        "device_config_state_change", "application_lifecycle")  # fmt: skip
    """Event classes that the sink gets."""
    batch_events: Annotated[int, Field(ge=1, le=10_000)] = 500
    """Maximum number of events of a batch."""
    batch_bytes: Annotated[int, Field(ge=1024, le=64 << 20)] = 1 << 20
    """Maximum size of a batch in bytes."""
    batch_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.2
    """Maximum time that a smaller batch waits for more events."""
    timeout_seconds: Annotated[float, Field(gt=0, le=3600)] | None = 30.0
    """Maximum time of a delivery, before it is retried."""
    retry_seconds: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Maximum pause between two tries of a delivery."""

    @property
    def file(self) -> Path | None:
        """Return the path of the file that the sink writes; None if it writes no file.

        Only this process may write to that file, and it must be available when the run starts.
        """
        return None

    @property
    def reads(self) -> frozenset[Path]:
        """Return the files that the sink reads: secrets, certificates and keys."""
        return frozenset(_files_of(self))

    @property
    def writes(self) -> Path | None:
        """Return the file or the directory that the sink writes; None if it writes neither."""
        return self.file

    @property
    def locations(self) -> frozenset[str]:
        """Return locations where a reader would take another sink's events for this sink's."""
        return frozenset()

    @property
    def class_uids(self) -> frozenset[int]:
        """Return the ``class_uid`` of each OCSF event class that the sink gets."""
        return frozenset(CLASS_UIDS[name] for name in self.classes)

    @property
    def has_all_classes(self) -> bool:
        """Return True if the sink gets events of every class."""
        return self.class_uids == frozenset(CLASS_UIDS.values())

    @property
    def other_version(self) -> str | None:
        """Return the OCSF version to which events are converted; None if it is the stored one."""
        return None if self.ocsf_version == STORED else self.ocsf_version

    @property
    def called(self) -> str:
        """Return the name of the sink in the store, in metrics and in the service's log.

        This is the configured ``name``, or else the destination without secrets, such as
        ``unix:/run/siem.sock``.
        """
        return self.name or self._target

    @property
    def batch_settings(self) -> BatchSettings:
        """Return the sink's settings for batches of events, timeouts and retries."""
        return BatchSettings(
            events=self.batch_events,
            bytes=self.batch_bytes,
            seconds=self.batch_seconds,
            timeout_seconds=self.timeout_seconds,
            retry_seconds=self.retry_seconds,
        )

    def sink(self) -> Sink:
        """Create the sink that this table configures.

        Raises UnsupportedError if the sink needs a package extra that is not installed.
        """
        self._require(*self.modules)
        return self._sink()

    def _require(self, *modules: str) -> None:
        if any(importlib.util.find_spec(module) is None for module in modules):
            raise UnsupportedError(
                f"a sink of type {self.type} needs the extra ocsf-nft[{self.extra}]: install it"
            )

    @property
    @abstractmethod
    def _target(self) -> str: ...

    @abstractmethod
    def _sink(self) -> Sink: ...


class SecretTable(Table):
    """Location of a secret: a ``file``, environment variable ``env`` or systemd ``credential``.

    Exactly one of the three keys is given.
    """

    file: Annotated[Path, FileName] | None = None
    """File with the secret."""
    env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Environment variable with the secret."""
    credential: Name | None = None
    """Credential of systemd with the secret."""

    @model_validator(mode="after")
    def _is_one(self) -> Self:
        if sum(each is not None for each in (self.file, self.env, self.credential)) != 1:
            raise ValueError(
                "a secret has one source: give file, env or credential, never the secret itself"
            )
        return self

    def secret(self) -> Secret:
        """Return the location of the secret; the secret itself is not read yet."""
        if self.file is not None:
            return Secret("file", str(self.file))
        if self.env is not None:
            return Secret("environment", self.env)
        return Secret("credential", self.credential or "")

    @property
    def path(self) -> Path | None:
        """Return the path of the secret's file; None if the secret is in no file."""
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if self.credential is not None and folder is not None:
            return Path(folder, self.credential)
        return self.file


class TlsTable(Table):
    """TLS settings for the connection to a receiver.

    ``ca`` is a file of certificates to trust in place of the system's certificates. For a receiver
    that requests a client certificate, ``certificate`` is the file of this certificate. ``key`` is
    the file of its private key.
    """

    ca: Annotated[Path, FileName] | None = None
    """File with the authorities, in place of the system's."""
    certificate: Annotated[Path, FileName] | None = None
    """File with our certificate, for a receiver that requests one."""
    key: Annotated[Path, FileName] | None = None
    """File with the key of our certificate."""

    @model_validator(mode="after")
    def _is_a_pair(self) -> Self:
        if self.key is not None and self.certificate is None:
            raise ValueError("has a key without a certificate: give both")
        return self

    def tls(self) -> Tls:
        """Return the paths of the certificates and the key, as an object for a sink."""
        return Tls(ca=self.ca, certificate=self.certificate, key=self.key)


def _files_of(value: object) -> Iterator[Path]:
    """Yield the files of all secrets and TLS settings in a table."""
    match value:
        case SecretTable():
            found: tuple[Path | None, ...] = (value.path,)
        case TlsTable():
            found = (value.ca, value.certificate, value.key)
        case Table():
            for name in type(value).model_fields:
                yield from _files_of(getattr(value, name))
            return
        case Mapping():
            for each in value.values():
                yield from _files_of(each)
            return
        case _:
            return
    yield from (each for each in found if each is not None)
