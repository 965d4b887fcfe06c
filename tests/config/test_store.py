"""Configuration of the store, and of the address at which a run listens."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from ocsf_nft import config
from ocsf_nft.errors import UsageError

WATCHED: dict[str, Any] = {"sandbox": [{"name": "a"}]}


def parsed(**found: Any) -> config.Config:
    return config.parse(WATCHED | found, where="test")


@pytest.mark.parametrize(
    ("size", "number"),
    [(1 << 20, 1 << 20), ("64MiB", 64 << 20), ("2 GB", 2_000_000_000), ("1048576", 1 << 20),
     ("2048KiB", 2 << 20), ("1TiB", 1 << 40), ("5000000B", 5_000_000)],
)  # fmt: skip
def test_a_size_is_a_number_of_bytes_or_has_a_unit(size: str | int, number: int) -> None:
    assert parsed(store={"max_bytes": size}).store.max_bytes == number


@pytest.mark.parametrize(
    ("age", "seconds"), [(90, 90), ("90s", 90), ("15m", 900), ("12 h", 43_200), ("30d", 2_592_000)]
)
def test_an_age_is_a_number_of_seconds_or_has_a_unit(age: str | int, seconds: int) -> None:
    assert parsed(store={"max_age": age}).store.max_age == seconds


def test_store_waits_for_a_sink_by_default() -> None:
    store = parsed().store
    assert (store.max_bytes, store.max_age, store.when_full) == (1 << 30, 2_592_000, "wait")
    assert parsed(store={"when_full": "drop", "path": "/x"}).store.path == Path("/x")


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("127.0.0.1:9469", "127.0.0.1", 9469),
        ("[::1]:1", "::1", 1),
        ("0.0.0.0:65535", "0.0.0.0", 65_535),
    ],
)
def test_a_run_listens_at_an_address_and_port(text: str, address: str, port: int) -> None:
    found = parsed(listen=text).listen
    assert found is not None
    assert (found.address, found.port, str(found)) == (ip_address(address), port, text)


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"store": {"max_bytes": "lots"}}, '"lots" is no size: write 512MiB'),
        ({"store": {"max_bytes": "1KiB"}}, "store.max_bytes"),
        ({"store": {"max_bytes": "-1MiB"}}, "is no size"),
        ({"store": {"max_age": "1y"}}, '"1y" is no time: write 90s'),
        ({"store": {"max_age": 1}}, "store.max_age"),
        ({"store": {"when_full": "panic"}}, "store.when_full"),
        ({"store": {"maxbytes": 1}}, "did you mean max_bytes?"),
        ({"listen": "localhost:80"}, "no address to listen at"),
        ({"listen": "127.0.0.1"}, "no address to listen at"),
        ({"listen": "127.0.0.1:0"}, "no address to listen at"),
        ({"listen": "127.0.0.1:65536"}, "no address to listen at"),
        ({"listen": "::1:80"}, "no address to listen at"),
        ({"listen": "127.0.0.1:٣"}, "no address to listen at"),
        (
            {"sink": [{"type": "pigeon"}]},
            "there is no sink of this type: give one of file, stdout",
        ),
        ({"sink": [{"path": "-"}, {"type": "stdout"}]}, "give each a name"),
        ({"handshake": True, "output": "/x"}, "test: a handshake needs a pipe or a socket"),
        ({"output": "./-"}, "test: output: must be a file, or - for standard output"),
        ({"handshake": True, "sink": [{"path": "/x"}]}, "replace a single [[sink]]"),
    ],
)
def test_a_fault_is_one_sentence(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as refused:
        parsed(**found)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
