"""The judge and JSON Schema, made of the same export by others, come to the same verdict."""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any, Final

import jsonschema
import ocsf_json_schema
import pytest

from ocsf_nft.validation import Judge, schema
from tests.validation.events import drawn

HOSTILE: Final[tuple[Any, ...]] = (
    None, True, 0, -1, 99, 70000, 1.5, "", "text", "443", [], {}, [1], [{}], {"engine": 1},
)  # fmt: skip
#: Of these JSON Schema knows nothing.
BEYOND = ("class_uid * 100", "metadata.profiles", " but ", "is missing: ", "points at", "is null")


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container in an event, with every key or index of it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    found = [(value, key) for key in keys]
    for key in keys:
        if isinstance(value[key], dict | list):
            found += places(value[key])
    return found


def spoil(event: Any, random: Random) -> None:
    """Change something of it, but for what says how it is to be judged."""
    where, key = random.choice(
        [place for place in places(event) if place[1] not in {"class_uid", "profiles", "version"}]
    )
    if random.random() < 0.3:
        del where[key]
    elif random.random() < 0.2 and isinstance(where, dict):
        where["engine"] = "nftables"
    else:
        where[key] = deepcopy(random.choice(HOSTILE))


@pytest.mark.parametrize("version", schema.versions())
def test_events_of_every_class_drawn_and_spoilt_get_the_same_verdict(version: str) -> None:
    random = Random(version)
    ours, judge = schema.load(version), Judge(version)
    published = ocsf_json_schema.get_ocsf_schema(version)
    theirs = ocsf_json_schema.OcsfJsonSchemaEmbedded(ocsf_json_schema.OcsfJsonSchema(published))
    spoilt = 0
    for name, one in published["classes"].items():
        table = ours.class_of(one["uid"])
        assert table is not None
        if any("." in name for name in table.at_least_one):
            continue  # a path, which JSON Schema takes for a name that nothing has
        listed = sorted(table.profiles)
        profiles = frozenset(random.sample(listed, min(len(listed), random.choice((0, 1, 3)))))
        validator = jsonschema.Draft202012Validator(theirs.get_class_schema(name, sorted(profiles)))
        good = drawn(ours, table, profiles, random)
        for changes in (0, 1, 1, 2):
            event = deepcopy(good)
            for _ in range(changes):
                spoil(event, random)
            if not isinstance(event.get("metadata"), dict):
                continue
            refused = [error.message for error in validator.iter_errors(event)]
            errors = [each for each in judge.faults(event) if each.severity == "error"]
            same = [each for each in errors if not any(text in str(each) for text in BEYOND)]
            assert bool(refused) <= bool(errors), (name, refused, event)
            assert bool(same) <= bool(refused), (name, same, event)
            assert changes or not refused, (name, refused)
            spoilt += bool(refused)
    assert spoilt > len(published["classes"])
