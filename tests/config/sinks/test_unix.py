from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.unix import UnixSink
from ocsf_nft.delivery.sinks.unix import Unix


def _sink(**facts: Any) -> UnixSink:
    return UnixSink.model_validate({"type": "unix", "path": "/run/vector/in.sock"} | facts)


def test_a_path_is_enough() -> None:
    made = _sink().sink()
    assert isinstance(made, Unix)
    assert (made._path, made._until_read) == (Path("/run/vector/in.sock"), True)
    assert _sink().target == "unix:/run/vector/in.sock"


def test_path_has_at_most_the_bytes_of_a_socket_address() -> None:
    assert len(str(_sink(path="/" + "x" * 106).path)) == 107
    for longer in ("/" + "x" * 107, "/" + "\u00e4" * 54):
        with pytest.raises(ValidationError, match="must have at most 107 bytes"):
            _sink(path=longer)


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("@vector", "a name that begins with @ has no permissions"),
        ("", "must be the absolute path of a socket"),
        ("in.sock", "must be the absolute path of a socket"),
        ("/run/\0", "must be the absolute path of a socket"),
        (7, "must be text"),
    ],
)
def test_invalid_path_of_a_socket_is_one_sentence(path: object, sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        _sink(path=path)
