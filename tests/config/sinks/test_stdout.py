from __future__ import annotations

from ocsf_nft.config.sinks.stdout import StdoutSink
from ocsf_nft.delivery.sinks.stdout import Stdout


def test_a_type_is_enough_and_a_slow_reader_is_waited_for() -> None:
    table = StdoutSink.model_validate({"type": "stdout"})
    assert (table.target, table.batch_seconds, table.timeout_seconds) == ("-", 0.0, None)
    assert not table.handshake
    assert isinstance(table.sink(), Stdout)
