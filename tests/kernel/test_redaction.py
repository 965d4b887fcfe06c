"""Secrets of processes and packets are in nothing that a run writes."""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.state import redaction_key
from tests.kernel import command, conftest, written
from tests.kernel.attempts import INTERNET4
from tests.kernel.test_delivery import wait_for
from tests.kernel.test_service import get, settings, write
from tests.ports import free_port
from tests.redaction import cases

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = pytest.mark.kernel

_SECRET = "s3cr3t-Value"  # noqa: S105 - of the test
_TOKEN = "glpat-" + "Ab3De6Gh9Jk2Mn5Pq8St"
_ARGUMENTS = (
    f"--password={_SECRET}", "--token", _SECRET, f"Authorization: Bearer {_SECRET}",
    f"https://user:{_SECRET}@host/?sig={_SECRET}", f"x={_TOKEN}", f"mysql -p{_SECRET} db",
)  # fmt: skip
#: A busy machine may find no process of an early packet: so it sends until its input ends.
_SEND = f"""
import select, socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
    for port in (53, *range(443, 543)):
        try:
            sender.sendto(b"token={_SECRET}" * 20, ("{INTERNET4}", port))
        except OSError:
            pass
        if port > 443 and select.select([sys.stdin], [], [], 0.5)[0]:
            break
"""
#: A program that changes nftables while its arguments have a secret.
_TAMPER = f'exec -a "--token={_SECRET}" nft delete table inet ocsf_nft'


@pytest.mark.parametrize("method", ["capture", "socket"])
def test_secrets_of_a_process_are_in_nothing_that_a_run_writes(
    lab: Lab, state: StateDirectory, tmp_path: Path, method: str
) -> None:
    output, port = tmp_path / "events.jsonl", free_port()
    more: dict[str, Any] = {"sink": [{"path": str(output)}], "attribution": {"method": method}}
    found = settings(lab, state, listen=f"127.0.0.1:{port}", **more)
    config = write(tmp_path / "config.toml", found)
    with command.running("--config", str(config)) as running:
        with _started(lab, sys.executable, "-c", _SEND, *_ARGUMENTS):  # has its sockets till then
            wait_for(lambda: _packets(written.so_far(output)) >= 2)
            wait_for(lambda: any(map(_is_redacted, _command_lines(written.so_far(output)))))
        with _started(lab, "bash", "-c", _TAMPER):
            pass
        wait_for(
            lambda: any(
                each["class_uid"] == 5019 and "actor" in each for each in written.so_far(output)
            )
        )
        metrics = get(port, "/metrics")[1]
        status = command.run("status", "--state-dir", str(state.path))
        code, log = running.stop(signal.SIGTERM)
    assert code == 0, log
    files = [path for path in state.path.rglob("*") if path.is_file()]
    key_file = state.path / redaction_key.FILE
    files.remove(key_file)
    content = b"\n".join(
        [*(path.read_bytes() for path in (*files, output)), log.encode(), metrics.encode(),
         status.stdout.encode(), status.stderr.encode()]
    )  # fmt: skip
    key = key_file.read_text().strip()
    for hidden in (_SECRET, _TOKEN, _SECRET.encode().hex(), key):
        assert hidden.encode() not in content
    assert bytes.fromhex(key) not in content
    # All of them were seen: the placeholders of equal secrets are equal.
    lines = set(_command_lines(written.events(output)))
    placeholders = {each[:12] for line in lines for each in line.split("[redacted:")[1:]}
    assert any(map(_is_redacted, lines)), lines
    assert len(placeholders) == 3  # the secret, with its user, and the token


def test_no_form_of_a_secret_is_in_an_event_a_log_the_state_or_a_report(
    lab: Lab, state: StateDirectory, tmp_path: Path
) -> None:
    forms = [
        [word.replace(cases.SECRET, cases.PLAIN) for word in each] for each in cases.BY_POSITION
    ]
    assert len(forms) > 50
    output = tmp_path / "events.jsonl"
    found = settings(lab, state, sink=[{"path": str(output)}])
    config = write(tmp_path / "config.toml", found)
    with command.running("--config", str(config)) as running:
        for port, words in enumerate(forms, 1001):
            send = f"echo >/dev/udp/{INTERNET4}/{port} 2>/dev/null; :"
            with _started(lab, "bash", "-c", send, *words):
                pass
        wait_for(lambda: len(set(_redacted_ports(written.so_far(output)))) == len(forms))
        code, log = running.stop(signal.SIGTERM)
    assert code == 0, log
    where = ("--state-dir", str(state.path))
    shown = [command.run(*each, *where).stdout for each in (("report",), ("incident", "--json"))]
    assert all("[redacted:" in text for text in shown)
    files = [path for path in state.path.rglob("*") if path.is_file()]
    content = b"\n".join([*(path.read_bytes() for path in (*files, output)), log.encode()])
    assert cases.PLAIN.encode() not in content
    assert not any(cases.PLAIN in text for text in shown)


def _is_redacted(line: str) -> bool:
    return line.count("[redacted:") == len(_ARGUMENTS) + 1


def _redacted_ports(events: list[dict[str, Any]]) -> Iterator[int]:
    for event in events:
        line = event.get("actor", {}).get("process", {}).get("cmd_line", "")
        if event["class_uid"] == 4001 and "[redacted:" in line:
            yield event["dst_endpoint"]["port"]


def _command_lines(found: Any) -> Iterator[str]:
    if isinstance(found, dict):
        yield from (text for name, text in found.items() if name == "cmd_line")
        found = list(found.values())
    if isinstance(found, list):
        for each in found:
            yield from _command_lines(each)


def _started(lab: Lab, *words: str) -> subprocess.Popen[bytes]:
    return lab.sandbox_namespace.call(lambda: subprocess.Popen(words, stdin=subprocess.PIPE))


def _packets(events: list[dict[str, Any]]) -> int:
    return sum(
        event["count"]
        for event in events
        if event["class_uid"] == 4001 and event["unmapped"]["sandbox"] == conftest.SANDBOX
    )
