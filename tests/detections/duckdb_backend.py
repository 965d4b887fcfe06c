"""Conversion of Sigma rules to SQL of DuckDB, whose columns are nested as the events are.

The SQLite backend of pySigma makes one column name of ``metadata.event_code``, in backticks. Its
comparison of text with LIKE depends on case in DuckDB. pysigma-backend-duckdb 0.1.4 does not escape
wildcards in values.
"""

from __future__ import annotations

from typing import ClassVar, Final

from sigma.backends.sqlite.sqlite import sqliteBackend

#: Columns with JSON: a view has no column for the attributes inside.
_JSON: Final = frozenset({"unmapped"})


class DuckDbBackend(sqliteBackend):
    """Converter of rules to queries of the view ``events``."""

    table = "events"
    null_safe_expression: ClassVar[str] = "COALESCE({expr}, FALSE)"

    def escape_and_quote_field(self, field_name: str) -> str:
        """Return the expression of an attribute, for example ``"metadata"."event_code"``."""
        first, *inner = field_name.split(".")
        if first in _JSON and inner:
            return f"json_extract_string({first}, '$.{'.'.join(inner)}')"
        return ".".join(f'"{name}"' for name in (first, *inner))
