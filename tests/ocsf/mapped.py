"""Records of the corpus, mapped to events and read as JSON."""

from __future__ import annotations

import json
from typing import Any, Final

from ocsf_nft.attempt import Attempt
from ocsf_nft.ocsf.mapper import Mapper
from tests.conformance.corpus import CONTEXT, NOW_NS, RECORDS

MAPPER: Final = Mapper(CONTEXT)


def event_of(name: str, mapper: Mapper = MAPPER) -> Any:
    return json.loads(
        mapper.network_activity(Attempt.of(RECORDS[name]), processed_ns=NOW_NS).to_json()
    )
