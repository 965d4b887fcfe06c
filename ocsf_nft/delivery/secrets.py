"""Secrets: named in the configuration, read where they are kept, never shown."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ocsf_nft.errors import DeliveryError

_MOST_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Secret:
    """Where a secret is kept.

    ``place`` is a ``file``'s path, the name of a variable of the ``environment``, or that of a
    ``credential`` which systemd hands over (systemd.exec(5), LoadCredential=).
    """

    kind: Literal["file", "environment", "credential"]
    place: str

    def read(self) -> str:
        """The secret, without white space at its end; raises DeliveryError without saying it.

        It is read anew each time, so that one that was renewed is found.
        """
        if self.kind == "environment":
            found = os.environ.get(self.place)
            if found is None:
                raise DeliveryError(f"the environment has no {self.place}, which a secret is in")
        else:
            found = _content(self._path())
        if not (secret := found.rstrip()):
            raise DeliveryError(f"the secret in {self.kind} {self.place} is empty")
        if any(character in secret for character in "\r\n\0"):
            raise DeliveryError(f"the secret in {self.kind} {self.place} is more than one line")
        return secret

    def _path(self) -> Path:
        if self.kind == "file":
            return Path(self.place)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise DeliveryError(
                f"systemd handed over no credential {self.place}: give the unit LoadCredential="
            )
        return Path(folder, self.place)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise DeliveryError(f"the secret in {path} can't be read: {error.strerror}") from error
    if len(content) > _MOST_BYTES:
        raise DeliveryError(
            f"the secret in {path} has more than {_MOST_BYTES} bytes: name the file of the secret"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DeliveryError(f"the secret in {path} is not text in UTF-8") from error
