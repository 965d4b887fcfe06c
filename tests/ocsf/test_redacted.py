"""Tests of the removal of secrets from records of other firewalls."""

from __future__ import annotations

import json
from dataclasses import replace

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.mapper import Mapper
from ocsf_nft.ocsf.redacted import redacted_record, redacted_reject
from ocsf_nft.record import Reject
from tests.conformance.corpus import RECORDS

_SECRET = "s3cr3t-Value"  # noqa: S105 - of a test
_FOREIGN = RECORDS["foreign, of a sandbox"]


def test_record_without_a_secret_is_the_same_object() -> None:
    for record in RECORDS.values():
        assert redacted_record(record) is record


def test_record_secrets_are_in_no_part_of_the_event() -> None:
    prefix = f"proxy https://host/?token={_SECRET} "
    raw = f"{prefix}IN= OUT=eth0 SRC=10.0.0.1 Authorization: Bearer {_SECRET}"
    record = replace(
        _FOREIGN,
        prefix=prefix,
        rule=prefix.strip(),
        details={**_FOREIGN.details, "unparsed": f"Authorization: Bearer {_SECRET}"},
        origin=replace(_FOREIGN.origin, raw=raw),
    )
    found = redacted_record(record)
    event = json.loads(
        Mapper(Context()).network_activity(Attempt.of(found), processed_ns=1).to_json()
    )
    assert _SECRET not in json.dumps(event)
    assert event["raw_data"].count("[redacted:") == 2
    assert event["raw_data_size"] == len(raw)
    assert found.source == record.source


def test_record_of_a_journal_has_no_secret_in_its_other_fields() -> None:
    raw = json.dumps({"MESSAGE": "IN= OUT=eth0", "_CMDLINE": f"app --password={_SECRET}"})
    record = replace(_FOREIGN, origin=replace(_FOREIGN.origin, raw=raw))
    assert _SECRET not in redacted_record(record).origin.raw


def test_rejected_line_has_no_secret() -> None:
    line = f"ocsf-nft:sb IN= https://u:{_SECRET}@host/"
    found = redacted_reject(Reject(kind="malformed", reason=f"it has {line}", line=line))
    assert _SECRET not in found.line + found.reason


def test_record_has_no_secret_in_the_header_of_its_line() -> None:
    raw = f'<4>1 - host kernel - - [a@1 token="{_SECRET}"] [UFW BLOCK] IN= OUT=eth0 SRC=10.0.0.1'
    record = replace(_FOREIGN, origin=replace(_FOREIGN.origin, raw=raw))
    found = redacted_record(record)
    assert _SECRET not in found.origin.raw
    assert found.origin.raw_bytes == len(raw)
