"""The cluster of deploy/scale-out on loopback, with its own configuration."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from typing import TYPE_CHECKING, Any, Self

from tests.delivery.sinks.brokers import Certificates
from tests.deploy.manifests import ROOT
from tests.ports import free_ports

if TYPE_CHECKING:
    from pathlib import Path

SCALE_OUT = ROOT / "deploy/scale-out"
#: Passwords of servers that exist for one test.
PASSWORDS = {"host": "of-hosts", "collector": "of-collectors", "operator": "of-operators"}
_START_SECONDS = 30


class NatsCluster:
    """Three servers; each can be killed, and started again with its stored data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificates = Certificates(folder)
        ports = free_ports(6)
        self._ports, self._routes = ports[:3], ports[3:]
        self.urls = [f"tls://127.0.0.1:{port}" for port in self._ports]
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        try:
            for number in range(3):
                self.start(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in tuple(self._processes):
            self.kill(number)

    @staticmethod
    def name(number: int) -> str:
        return f"nats-{number + 1}"

    @staticmethod
    def number(name: str) -> int:
        return int(name.removeprefix("nats-")) - 1

    def kill(self, number: int) -> None:
        process = self._processes.pop(number)
        process.kill()
        process.wait()

    def start(self, number: int) -> None:
        with self.log(number).open("ab") as log:
            process = subprocess.Popen(
                ["nats-server", "-c", SCALE_OUT / "nats.conf"],
                env=os.environ | self._environment(number),
                stdout=log,
                stderr=log,
            )
        self._processes[number] = process
        deadline = time.monotonic() + _START_SECONDS
        while not _listens(self._ports[number]):
            assert process.poll() is None, self.log(number).read_text()
            assert time.monotonic() < deadline, "nats-server does not start"
            time.sleep(0.02)

    def log(self, number: int) -> Path:
        return self._folder / f"{self.name(number)}.log"

    def table(self, user: str) -> dict[str, Any]:
        """Return a configuration: the addresses of the cluster, a user and a password."""
        password = self._folder / f"{user}-password"
        password.write_text(PASSWORDS[user])
        return {
            "servers": self.urls,
            "user": user,
            "password": {"file": str(password)},
            "tls": {"ca": str(self.certificates.ca)},
        }

    def file(self, user: str) -> Path:
        """Write that configuration to a file."""
        return self.written(f"{user}.toml", self.table(user))

    def written(self, name: str, table: dict[str, Any]) -> Path:
        """Write a configuration as TOML; the values used here are the same in JSON."""
        path = self._folder / name
        path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in table.items()))
        return path

    def _environment(self, number: int) -> dict[str, str]:
        """Return the variables of servers.env for a server."""
        routes = ", ".join(f'"nats-route://127.0.0.1:{port}"' for port in self._routes)
        return {
            "NATS_NAME": self.name(number),
            "NATS_LISTEN": f"127.0.0.1:{self._ports[number]}",
            "NATS_CLUSTER_LISTEN": f"127.0.0.1:{self._routes[number]}",
            "NATS_ROUTES": f"[{routes}]",
            "NATS_STORE": str(self._folder / self.name(number)),
            "NATS_CERTIFICATE": str(self.certificates.certificate),
            "NATS_KEY": str(self.certificates.key),
            "NATS_CA": str(self.certificates.ca),
        } | {f"NATS_{user.upper()}_PASSWORD": word for user, word in PASSWORDS.items()}


def _toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True
