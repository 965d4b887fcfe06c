"""Watch of the soak: it reads the service's health and metrics each second."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_INTERVAL_S: Final = 1.0
_MISMATCH: Final = "ocsf_nft_counter_mismatch_packets{"


class Watch:
    """Thread that asks a service for ``/readyz`` and ``/metrics``; it has the newest answers."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self.port = _free_port()
        #: Number of answers so far.
        self.answers = 0
        self._mismatches: dict[str, list[str]] = {}
        self._end = threading.Event()
        self._is_paused = False
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.forget()

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Ask nothing meanwhile: each answer needs a reading of all counters."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def forget(self) -> None:
        """Forget the answers of a service that has been killed."""
        self.is_ready = False
        self._health = ""
        self._metrics: dict[str, float] = {}

    def says(self, word: str) -> bool:
        """Return True if ``/readyz`` has a word."""
        return word in self._health

    @property
    def mismatches(self) -> tuple[str, ...]:
        """Return the answers in which counters and events did not agree: the first and the last."""
        return tuple(
            f"{name}: {len(found)} times, from {found[0]} to {found[-1]}"
            for name, found in self._mismatches.items()
        )

    @property
    def is_sink_up(self) -> bool:
        """Return True if the HTTP sink is up."""
        return self._metrics.get('ocsf_nft_sink_up{sink="receiver"}') == 1

    @property
    def waiting(self) -> float | None:
        """Return the number of events that wait for a sink; None if it is not known."""
        found = [
            value
            for name, value in self._metrics.items()
            if name.startswith("ocsf_nft_sink_waiting_events{")
        ]
        return sum(found) if found else None

    def is_fence_active(self, name: str) -> bool:
        """Return True if the fence of a sandbox is active."""
        return self._metrics.get(f'ocsf_nft_fence_active{{sandbox="{name}"}}') == 1

    def pending(self, name: str) -> float:
        """Return the number of packets of a sandbox that no event has reported yet."""
        return sum(
            value
            for key, value in self._metrics.items()
            if key.startswith("ocsf_nft_pending_packets{") and f'"{name}"' in key
        )

    def _watch(self) -> None:
        while not self._end.wait(_INTERVAL_S):
            if self._is_paused:
                continue
            try:
                status, health = self._get("/readyz")
                _, text = self._get("/metrics")
            except (OSError, http.client.HTTPException):  # it is being started
                self.forget()
                continue
            self._metrics = dict(_samples(text))
            self._health, self.is_ready = health, status == http.client.OK
            self.answers += 1
            for name, value in self._metrics.items():
                if name.startswith(_MISMATCH) and value:
                    text = f"{value:.0f} at {time.strftime('%H:%M:%S')}"
                    self._mismatches.setdefault(name, []).append(text)

    def _get(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode("utf-8")
        finally:
            connection.close()


def _samples(text: str) -> list[tuple[str, float]]:
    pairs = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return [(name, float(value)) for name, _, value in pairs]


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
