from __future__ import annotations

from ocsf_nft.delivery.backoff import Backoff


def test_backoff_doubles_up_to_its_limit_with_jitter() -> None:
    backoff = Backoff(max_seconds=30.0)
    waits = [backoff.wait_seconds(None) for _ in range(12)]
    for wait, most in zip(
        waits, [0.25 * 2**number for number in range(7)] + [30.0] * 5, strict=True
    ):
        assert most / 2 <= wait <= most
    assert len(set(waits)) == len(waits)


def test_backoff_grants_requests_of_at_most_an_hour_and_never_waits_less() -> None:
    backoff = Backoff(max_seconds=30.0)
    assert [backoff.wait_seconds(requested) for requested in (17.0, 1e9)] == [17.0, 3600.0]
    assert backoff.wait_seconds(0.0) >= 0.5
    assert backoff.wait_seconds(-1.0) >= 1.0


def test_backoff_limit_below_the_first_wait_applies_at_once() -> None:
    assert Backoff(max_seconds=0.01).wait_seconds(None) <= 0.01
