"""Data types of the OCSF schema, and the values that each type accepts."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast

from ocsf_nft.validation.fault import describe

if TYPE_CHECKING:
    from collections.abc import Mapping

Primitive: TypeAlias = Literal["boolean_t", "float_t", "integer_t", "json_t", "long_t", "string_t"]

NOT_FINITE: Final = "is a number that JSON doesn't have"
NOT_64_BITS: Final = "doesn't fit 64 bits"
NOT_UTF8: Final = "is no UTF-8: it holds a broken character"
IS_NULL: Final = "is null; what isn't known is left out"

_INT64: Final = range(-(1 << 63), 1 << 63)
_NOUNS: Final = {
    "boolean_t": "boolean",
    "float_t": "number",
    "integer_t": "integer",
    "long_t": "integer",
    "string_t": "string",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DataType:
    """Data type of the OCSF schema, such as ``port_t``: its primitive type and its limits."""

    name: str
    primitive: Primitive
    minimum: int | None = None
    maximum: int | None = None
    max_length: int | None = None
    pattern: re.Pattern[str] | None = None
    observable: int | None = None

    def fault(self, value: Any) -> str | None:
        """Return the reason why a value is not valid for this type; None if it is valid.

        ``value`` must not be null. The reason is a text, for example ``70000 is more than 65535``.
        """
        if self.primitive == "string_t" and isinstance(value, str):
            return self._text_fault(value)
        if self.primitive == "json_t":
            return json_fault(value)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.primitive in {"integer_t", "long_t"} and is_number:
            return self._integer_fault(value)
        if self.primitive == "float_t" and is_number:
            return json_fault(value)
        if self.primitive == "boolean_t" and isinstance(value, bool):
            return None
        return f"{describe(value)} is no {self._noun}"

    @property
    def _noun(self) -> str:
        noun = _NOUNS[self.primitive]
        return noun if self.name == self.primitive else f"{noun} ({self.name})"

    def _text_fault(self, value: str) -> str | None:
        # Check the length first: the time of some patterns grows with the square of the length.
        if self.max_length is not None and len(value) > self.max_length:
            return f"has {len(value)} characters, more than {self.max_length} ({self.name})"
        if not is_utf8(value):
            return NOT_UTF8
        if self.pattern is not None and self.pattern.search(value) is None:
            return f"{describe(value)} is no {self.name}"
        return None

    def _integer_fault(self, value: Any) -> str | None:
        if isinstance(value, float):
            if not math.isfinite(value):
                return NOT_FINITE
            problem = (
                "an integer written as a fraction" if value.is_integer() else f"no {self._noun}"
            )
            return f"{describe(value)} is {problem}"
        if value not in _INT64:
            return NOT_64_BITS
        if self.maximum is not None and value > self.maximum:
            return f"{value} is more than {self.maximum}"
        if self.minimum is not None and value < self.minimum:
            return f"{value} is less than {self.minimum}"
        return None


def from_schema(name: str, published: Mapping[str, Any]) -> DataType:
    """Build the data type ``name`` from ``published``, the schema's map of all data types."""
    own = published[name]
    base = published.get(own.get("type"), own)
    minimum, maximum = own.get("range") or base.get("range") or (None, None)
    regex = own.get("regex") or base.get("regex")
    return DataType(
        name=name,
        primitive=cast("Primitive", own.get("type", name)),
        minimum=minimum,
        maximum=maximum,
        max_length=own.get("max_len") or base.get("max_len"),
        # ASCII, because the patterns are not meant to match digits of other scripts.
        pattern=None if regex is None else re.compile(regex, re.ASCII),
        observable=own.get("observable"),
    )


def json_fault(value: Any) -> str | None:
    """Return the reason why ``value`` is not valid in JSON; None if ``value`` is valid.

    NaN and integers of more than 64 bits are not valid. ``value`` must not be an object or an
    array.
    """
    if isinstance(value, str):
        return None if is_utf8(value) else NOT_UTF8
    if isinstance(value, float):
        return None if math.isfinite(value) else NOT_FINITE
    if isinstance(value, int):
        # JSON readers may not accept more than 64 bits.
        return None if value in _INT64 else NOT_64_BITS
    return None if value is None else f"{describe(value)} is nothing that JSON has"


def is_utf8(text: str) -> bool:
    """Return True if a text can be encoded as UTF-8."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
