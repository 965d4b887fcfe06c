"""Tests that the validator agrees with the JSON Schema that others make of the same export."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any, Final

import jsonschema
import ocsf_json_schema
import pytest

from ocsf_nft.validation import EventValidator, schema
from tests.validation.events import drawn

HOSTILE: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 99, 70000, 1.5, "", "text", "443", [], {}, [1], [{}], {"engine": 1},
)  # fmt: skip
#: Parts of faults that JSON Schema doesn't detect.
BEYOND = ("class_uid * 100", "metadata.profiles", " but ", "is missing: ", "refer to", "is null")


def positions(value: Any) -> list[tuple[Any, Any]]:
    """Return every container in an event, with each of its keys or indexes."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += positions(value[key])
    return found


def spoil(event: Any, random: Random) -> None:
    """Change one value of an event, except those that select the version and class."""
    where, key = random.choice(
        [
            position
            for position in positions(event)
            if position[1] not in {"class_uid", "profiles", "version"}
        ]
    )
    if random.random() < 0.3:
        del where[key]
    elif random.random() < 0.2 and isinstance(where, dict):
        where["engine"] = "nftables"
    else:
        where[key] = deepcopy(random.choice(HOSTILE))


@pytest.mark.parametrize("version", schema.versions())
def test_validator_and_json_schema_agree_on_random_and_spoilt_events(version: str) -> None:
    random = Random(version)
    ours, validator = schema.load(version), EventValidator(version)
    published = ocsf_json_schema.get_ocsf_schema(version)
    theirs = ocsf_json_schema.OcsfJsonSchemaEmbedded(ocsf_json_schema.OcsfJsonSchema(published))
    spoilt = 0
    for name, one in published["classes"].items():
        table = ours.class_of(one["uid"])
        assert table is not None
        if any("." in name for name in table.at_least_one):
            continue  # a path, which JSON Schema interprets as a name that no attribute has
        listed = sorted(table.profiles)
        profiles = frozenset(random.sample(listed, min(len(listed), random.choice((0, 1, 3)))))
        by_json_schema = jsonschema.Draft202012Validator(
            theirs.get_class_schema(name, sorted(profiles))
        )
        good = drawn(ours, table, profiles, random)
        for changes in (0, 1, 1, 2):
            event = deepcopy(good)
            for _ in range(changes):
                spoil(event, random)
            if not isinstance(event.get("metadata"), dict):
                continue
            refused = [error.message for error in by_json_schema.iter_errors(event)]
            errors = [each for each in validator.faults(event) if each.severity == "error"]
            same = [each for each in errors if not any(text in str(each) for text in BEYOND)]
            assert bool(refused) <= bool(errors), (name, refused, event)
            assert bool(same) <= bool(refused), (name, same, event)
            assert changes or not refused, (name, refused)
            spoilt += bool(refused)
    assert spoilt > len(published["classes"])
