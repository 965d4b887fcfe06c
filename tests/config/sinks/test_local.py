"""Configuration of sinks on this host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from ocsf_nft.config.sinks.local import FileSink, StdoutSink, UnixSink
from ocsf_nft.delivery.sinks.file import File
from ocsf_nft.delivery.sinks.rotation import Rotation
from ocsf_nft.delivery.sinks.stdout import Stdout
from ocsf_nft.delivery.sinks.unix import Unix

PATH = "/var/log/ocsf-nft/events.jsonl"


def _file_sink(**facts: Any) -> FileSink:
    return FileSink.model_validate({"type": "file", "path": PATH} | facts)


def _made(**facts: Any) -> File:
    made = _file_sink(**facts).sink()
    assert isinstance(made, File)
    return made


def test_file_sink_needs_only_a_path() -> None:
    table, made = _file_sink(), _made()
    assert (table.called, table.batch_seconds, table.timeout_seconds) == (PATH, 0.0, None)
    assert (made._path, made._sync, made._rotation) == (Path(PATH), True, None)


def test_rotation_needs_a_limit_for_the_file() -> None:
    rotation = _made(
        sync=False, rotate_bytes=1 << 20, rotate_seconds=3600, keep_files=7, compress=True
    )._rotation
    assert rotation == Rotation(full_bytes=1 << 20, full_seconds=3600, keep_files=7, compress=True)
    assert _made(rotate_seconds=3600, keep_bytes=1 << 30)._rotation == Rotation(
        full_seconds=3600, keep_bytes=1 << 30
    )


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"path": "-"}, 'for standard output, give type = "stdout"'),
        ({"path": ""}, "must not be empty"),
        ({"path": "a\0b"}, "NUL"),
        ({"keep_files": 3}, "never rotates: give rotate_bytes or rotate_seconds"),
        ({"keep_bytes": 3000}, "never rotates"),
        ({"compress": True}, "never rotates"),
        ({"rotate_bytes": 100}, "rotate_bytes"),
        ({"rotate_seconds": 0}, "rotate_seconds"),
        ({"rotate_seconds": 60, "keep_files": 0}, "keep_files"),
        ({"rotate_seconds": 60, "path": "/var/log/" + "\u00e4" * 111}, "a name of at most 221"),
        ({"batch_seconds": -1}, "batch_seconds"),
        ({"timeout_seconds": 0}, "timeout_seconds"),
    ],
)
def test_invalid_file_sink_is_one_sentence(facts: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        _file_sink(**facts)


def test_old_files_need_a_name_of_at_most_221_bytes() -> None:
    for name, is_short_enough in (("n" * 221, True), ("n" * 222, False)):
        facts = {"path": f"/var/log/{name}"}
        assert _file_sink(**facts).path.name == name  # without old files every name is valid
        if is_short_enough:
            assert _made(rotate_seconds=60, **facts)._path.name == name
        else:
            with pytest.raises(ValidationError, match="a name of at most 221 bytes"):
                _file_sink(rotate_seconds=60, **facts)


def test_stdout_sink_needs_only_its_type_and_has_no_timeout_for_a_slow_reader() -> None:
    table = StdoutSink.model_validate({"type": "stdout"})
    assert (table.called, table.batch_seconds, table.timeout_seconds) == ("-", 0.0, None)
    assert not table.handshake
    assert isinstance(table.sink(), Stdout)


def _unix_sink(**facts: Any) -> UnixSink:
    return UnixSink.model_validate({"type": "unix", "path": "/run/vector/in.sock"} | facts)


def test_unix_sink_needs_only_a_path() -> None:
    made = _unix_sink().sink()
    assert isinstance(made, Unix)
    assert (made._path, made._until_read) == (Path("/run/vector/in.sock"), True)
    assert _unix_sink().called == "unix:/run/vector/in.sock"


def test_path_has_at_most_the_bytes_of_a_socket_address() -> None:
    assert len(str(_unix_sink(path="/" + "x" * 106).path)) == 107
    for longer in ("/" + "x" * 107, "/" + "\u00e4" * 54):
        with pytest.raises(ValidationError, match="must have at most 107 bytes"):
            _unix_sink(path=longer)


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
        _unix_sink(path=path)
