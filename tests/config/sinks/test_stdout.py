from __future__ import annotations

from ocsf_nft.config.sinks.stdout import StdoutSink
from ocsf_nft.delivery.sinks.stdout import Stdout


def test_only_the_type_is_required_and_a_slow_reader_has_no_timeout() -> None:
    table = StdoutSink.model_validate({"type": "stdout"})
    assert (table.target, table.batch_seconds, table.timeout_seconds) == ("-", 0.0, None)
    assert not table.handshake
    assert isinstance(table.sink(), Stdout)
