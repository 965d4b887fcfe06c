"""Reading of secrets, such as passwords and tokens.

The configuration has only the location of a secret, such as the path of a file.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from ocsf_nft.errors import DeliveryError

_MAX_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class Secret:
    """Location of a secret, such as a password or a token.

    If ``kind`` is ``file``, ``location`` is a path. If ``kind`` is ``environment``, ``location`` is
    the name of an environment variable. If ``kind`` is ``credential``, ``location`` is the name in
    LoadCredential= of the systemd unit (systemd.exec(5)).
    """

    kind: Literal["file", "environment", "credential"]
    location: str

    def read(self) -> str:
        """Read and return the secret, without white space at its end.

        Raises DeliveryError if the secret is missing, unreadable, empty, or more than one line. The
        error's text does not contain the secret.
        """
        # Not cached: the secret may have been renewed.
        if self.kind == "environment":
            found = os.environ.get(self.location)
            if found is None:
                raise DeliveryError(
                    f"the environment has no {self.location}, which a secret is read from: set it"
                )
        else:
            found = _content(self._path())
        if not (secret := found.rstrip()):
            raise DeliveryError(f"the secret in {self.kind} {self.location} is empty")
        if any(character in secret for character in "\r\n\0"):
            raise DeliveryError(f"the secret in {self.kind} {self.location} is more than one line")
        return secret

    def _path(self) -> Path:
        if self.kind == "file":
            return Path(self.location)
        folder = os.environ.get("CREDENTIALS_DIRECTORY")
        if folder is None:
            raise DeliveryError(
                f"systemd passed no credential {self.location}: give the unit LoadCredential="
            )
        return Path(folder, self.location)


def _content(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise DeliveryError(f"the secret in {path} can't be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise DeliveryError(
            f"the secret in {path} has more than {_MAX_BYTES} bytes: name the file of the secret"
        )
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DeliveryError(f"the secret in {path} is not text in UTF-8") from error
