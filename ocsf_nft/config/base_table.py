"""Base of all tables in a configuration file: tables are immutable, and unknown keys are errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict

from ocsf_nft.errors import UsageError
from ocsf_nft.quoted import quoted

if TYPE_CHECKING:
    from collections.abc import Callable


class Table(BaseModel):
    """Base of all tables in a configuration file; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def checked(check: Callable[[str], Any]) -> BeforeValidator:
    """Return a pydantic validator that accepts only a text, and converts it with ``check``.

    ``check`` is a function that takes the text and returns the final value. If it raises
    UsageError, the validator reports a configuration error with the same message.
    """

    def validate(value: object) -> object:
        if not isinstance(value, str):
            raise ValueError(f"must be text, not {_kind(value)}")  # noqa: TRY004 - for pydantic
        try:
            return check(value)
        except UsageError as error:
            raise ValueError(str(error)) from error

    return BeforeValidator(validate, json_schema_input_type=str)


def _kind(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list):  # not shown, as it may contain a secret
        return "a list"
    return "a table" if isinstance(value, dict) else "a date"


def _file_name(value: object) -> object:
    if value == "":
        raise ValueError("must not be empty: leave the key out for its default")
    if isinstance(value, str) and "\0" in value:
        raise ValueError(f"must not hold a NUL character, which {quoted(value)} does")
    return value


FileName = BeforeValidator(_file_name)
