"""Credentials for the login to a NATS server."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.delivery.secrets import Secret

#: Maximum size of a credentials file that is read.
_MAX_BYTES: Final = 1 << 16
#: Parts of a credentials file, as nsc writes it.
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.=-]+)\s+-+END NATS USER JWT-")
_SEED: Final = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\w+)\s+-+END USER NKEY SEED-")
_CREDENTIALS: Final = (
    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n"
    "-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class LoginValues:
    """Credentials for one login to a NATS server, as read from files or environment variables.

    At most one of ``token``, ``password``, ``seed`` and ``credentials`` is set.
    """

    token: str | None = None
    user: str | None = None
    password: str | None = None
    #: Private key, which signs the server's challenge.
    seed: str | None = None
    #: Text of a credentials file.
    credentials: str | None = None
    #: All secret texts, so that they can be masked in errors.
    secrets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Credentials for a NATS server: the user's name, and the locations of the secrets.

    At most one of ``token``, ``password``, ``nkey`` and ``credentials`` is set.
    """

    token: Secret | None = None
    user: str | None = None
    password: Secret | None = None
    #: Location of a user's seed (a private key).
    nkey: Secret | None = None
    #: Credentials file of the tool ``nsc``.
    credentials: Path | None = None

    def read(self) -> LoginValues:
        """Read the current credentials; raises DeliveryError if one is missing or invalid."""
        if self.token is not None:
            token = self.token.read()
            return LoginValues(token=token, secrets=(token,))
        if self.password is not None:
            password = self.password.read()
            return LoginValues(user=self.user, password=password, secrets=(password,))
        if self.nkey is not None:
            seed = self.nkey.read()
            _check_seed(seed, f"{self.nkey.kind} {self.nkey.location}")
            return LoginValues(seed=seed, secrets=(seed,))
        if self.credentials is not None:
            return _credentials(self.credentials)
        return LoginValues()


def _credentials(path: Path) -> LoginValues:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise DeliveryError(f"the credentials in {path} can't be read: {error.strerror}") from error
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise DeliveryError(
            f"{path} holds no credentials of a user: create some with `nsc generate creds`"
        )
    _check_seed(seed[1], str(path))
    return LoginValues(
        credentials=_CREDENTIALS.format(jwt=jwt[1], seed=seed[1]), secrets=(jwt[1], seed[1])
    )


def _check_seed(seed: str, source: str) -> None:
    import nkeys  # type: ignore[import-untyped]  # noqa: PLC0415 - it ships no types; only a login needs it

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    # ValueError comes from base32 or from the text encoding.
    except (nkeys.NkeysError, ValueError):
        # Not `from error`: it may show the secret.
        raise DeliveryError(
            f"{source} holds no seed of an nkey: nsc and nk make seeds that begin with SU"
        ) from None
