from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.ocsf.explain_fields import fields
from tests.golden.situations import situations
from tests.strategies import HOSTILE_TEXT

if TYPE_CHECKING:
    import pytest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | HOSTILE_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(HOSTILE_TEXT, inner, max_size=3),
    max_leaves=12,
)


def test_fields_of_our_events_have_a_source(subtests: pytest.Subtests) -> None:
    assert len(situations()) > 10
    for name, event in situations().items():
        with subtests.test(name):
            found = list(fields(event))
            unknown = {field.path for field in found if field.source == "not known to ocsf-nft"}
            # Attributes in the form of an older version are not fields of a model.
            known = (path.endswith((".type", ".tid")) or ".lineage[" in path for path in unknown)
            assert all(known), unknown
            assert len({field.path for field in found}) == len(found)
            uids = [field.value for field in found if field.path == "metadata.uid"]
            assert uids == [event["metadata"]["uid"]]


@given(
    event=st.dictionaries(
        st.sampled_from(["class_uid", "metadata", "src_endpoint", "observables", "unmapped"])
        | HOSTILE_TEXT,
        st.sampled_from([4001, 2004, 5019, 6002, 99]) | JSON,
    )
)
def test_fields_of_any_event_are_printable(event: dict[str, Any]) -> None:
    for field in fields(event):
        assert all(part.isprintable() for part in field)


def test_too_deeply_nested_value_is_one_value() -> None:
    deep: Any = "end"
    for _ in range(60):
        deep = {"x": [deep]}
    _, field = fields({"class_uid": 4001, "unmapped": deep})
    assert field.path.count(".") < 20
    assert field.value == "1 values, nested too deep to be shown"
