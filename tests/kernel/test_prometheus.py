"""A real Prometheus with the rules of deploy/grafana: an alert fires for a real attempt."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from tests.deploy.manifests import ROOT
from tests.kernel import command, conftest
from tests.kernel.test_delivery import wait_for
from tests.kernel.test_findings import ask_for_credentials
from tests.kernel.test_service import settings, write
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from ocsf_nft.fence.state import StateDirectory
    from ocsf_nft.lab import Lab

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

_INTERVAL = "500ms"


@contextlib.contextmanager
def _prometheus(folder: Path, target: str) -> Iterator[str]:
    """Run Prometheus with the shipped configuration and another target; yield its address."""
    shipped = ROOT / "deploy/grafana"
    found = yaml.safe_load((shipped / "prometheus.yaml").read_text())
    found["global"] = {"evaluation_interval": _INTERVAL}
    found["rule_files"] = [str(shipped / name) for name in found["rule_files"]]
    (job,) = found["scrape_configs"]
    job |= {"scrape_interval": _INTERVAL, "static_configs": [{"targets": [target]}]}
    job["scrape_timeout"] = _INTERVAL
    config = folder / "prometheus.yaml"
    config.write_text(yaml.safe_dump(found))
    address = f"127.0.0.1:{free_port()}"
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                "prometheus", f"--config.file={config}", f"--web.listen-address={address}",
                f"--storage.tsdb.path={folder / 'data'}",
            ],
            stdout=output, stderr=output,
        )  # fmt: skip
    try:
        yield address
    finally:
        process.terminate()
        process.wait()


def _firing(address: str) -> list[dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"http://{address}/api/v1/alerts", timeout=10) as answer:
            found = json.load(answer)["data"]["alerts"]
    except OSError:  # not yet ready
        return []
    return [alert for alert in found if alert["state"] == "firing"]


def test_alert_fires_for_a_real_attempt(lab: Lab, state: StateDirectory, tmp_path: Path) -> None:
    target = f"127.0.0.1:{free_port()}"
    found = settings(lab, state, listen=target, output=str(tmp_path / "events.jsonl"))
    config = write(tmp_path / "config.toml", found)
    with command.running("--config", str(config)), _prometheus(tmp_path, target) as address:
        lab.sandbox_namespace.call(ask_for_credentials)
        wait_for(lambda: _firing(address))
        (alert,) = _firing(address)
        assert alert["labels"] == {
            "alertname": "OcsfNftCloudMetadata",
            "instance": target,
            "job": "ocsf-nft",
            "sandbox": conftest.SANDBOX,
            "severity": "critical",
        }
        assert alert["annotations"]["runbook"].endswith("/metadata-credentials.md")
