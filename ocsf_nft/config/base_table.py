"""What the tables of a configuration have in common: closed, immutable, each value checked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ocsf_nft.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class Table(BaseModel):
    """A table of the file; a key that it doesn't know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def checked(check: Callable[[str], Any]) -> BeforeValidator:
    """A check of a text, its UsageError as pydantic's ValueError."""

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {value!r}")  # noqa: TRY004 - pydantic wants ValueError
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(validate)


def _file_name(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty: leave the key out for its default")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"must not hold a NUL character, which {value!r} does")
    return value


FileName = BeforeValidator(_file_name)
