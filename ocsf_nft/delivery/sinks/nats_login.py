"""How a NATS server is told who we are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import nkeys  # type: ignore[import-untyped]  # it ships no types

from ocsf_nft.errors import DeliveryError

if TYPE_CHECKING:
    from pathlib import Path

    from ocsf_nft.delivery.secrets import Secret

_MOST_BYTES: Final = 1 << 16
#: The two parts of a credentials file, as nsc writes it.
_JWT: Final = re.compile(r"-BEGIN NATS USER JWT-+\s+([\w.=-]+)\s+-+END NATS USER JWT-")
_SEED: Final = re.compile(r"-BEGIN USER NKEY SEED-+\s+(\w+)\s+-+END USER NKEY SEED-")
_CREDENTIALS: Final = (
    "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n"
    "-----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Proof:
    """What is shown to a server: nothing, one of three, or ``user`` and ``password``.

    ``seed`` signs what the server asks to be signed, and is not sent itself; nor is that of
    ``credentials``, the text of a credentials file. ``hidden`` is what of it is secret.
    """

    token: str | None = None
    user: str | None = None
    password: str | None = None
    seed: str | None = None
    credentials: str | None = None
    hidden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Login:
    """Where that is kept; ``nkey`` is a user's seed, ``credentials`` a file as nsc makes it."""

    token: Secret | None = None
    user: str | None = None
    password: Secret | None = None
    nkey: Secret | None = None
    credentials: Path | None = None

    def read(self) -> Proof:
        """What it is now; raises DeliveryError."""
        if self.token is not None:
            token = self.token.read()
            return Proof(token=token, hidden=(token,))
        if self.password is not None:
            password = self.password.read()
            return Proof(user=self.user, password=password, hidden=(password,))
        if self.nkey is not None:
            seed = self.nkey.read()
            _check(seed, f"{self.nkey.kind} {self.nkey.location}")
            return Proof(seed=seed, hidden=(seed,))
        if self.credentials is not None:
            return _credentials(self.credentials)
        return Proof()


def _credentials(path: Path) -> Proof:
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES).decode("ascii", "replace")
    except OSError as error:
        raise DeliveryError(f"the credentials in {path} can't be read: {error.strerror}") from error
    jwt, seed = _JWT.search(text), _SEED.search(text)
    if jwt is None or seed is None:
        raise DeliveryError(
            f"{path} holds no user's credentials: make some with `nsc generate creds`"
        )
    _check(seed[1], str(path))
    return Proof(
        credentials=_CREDENTIALS.format(jwt=jwt[1], seed=seed[1]), hidden=(jwt[1], seed[1])
    )


def _check(seed: str, place: str) -> None:
    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    # ValueError is base32's, and that of an encoding.
    except (nkeys.NkeysError, ValueError):
        # Not `from error`: what it is about is a secret.
        raise DeliveryError(
            f"what {place} holds is no nkey's seed: it begins with SU, as nsc or nk made it"
        ) from None
