"""Targets: files of container engines and requests to the CNI plugin."""

from __future__ import annotations

import json
import os
from functools import cache
from typing import TYPE_CHECKING, Final

from ocsf_nft.cni import network_file
from ocsf_nft.cni import request as cni
from ocsf_nft.errors import OcsfNftError
from ocsf_nft.oci import bundle, settings
from tests.fuzz import memory_folder, parts
from tests.fuzz.target import HOSTILE_JSON, HOSTILE_TEXT, Target, require

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

_ID: Final = "0123456789abcdef" * 4
_CONFIG: Final = {
    "ociVersion": "1.2.0",
    "annotations": {
        "io.container.manager": "cri-o",
        "io.kubernetes.cri.container-name": "web",
        "io.kubernetes.cri-o.Labels": '{"a":"b"}',
        "io.kubernetes.pod.name": "pod",
        "org.ocsf-nft.policy": "web",
    },
    "mounts": [
        {
            "destination": "/etc/hosts",
            "type": "bind",
            "source": f"/var/lib/docker/containers/{_ID}/hosts",
        }
    ],
    "linux": {"namespaces": [{"type": "network", "path": "/proc/1/ns/net"}, {"type": "pid"}]},
}
_DOCKER: Final = {
    "ID": _ID,
    "Name": "/web",
    "Image": "sha256:0",
    "Config": {"Image": "nginx", "Labels": {"a": "b"}},
}
_PODMAN: Final = [
    {
        "id": _ID,
        "names": ["web"],
        "image": "0",
        "metadata": '{"name":"web","image-name":"i","image-id":"0"}',
    },
    {"id": _ID, "names": ["web"], "image": "0"},
]
_NETWORK: Final = {
    "cniVersion": "1.1.0",
    "name": "net",
    "type": "ocsf-nft-cni",
    "policy": "web",
    "timeout": 5,
    "control": "/run/ocsf-nft/control.sock",
    "sandbox": {"proxy": ["10.0.0.1:3128"]},
    "prevResult": {"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.0.0.2/24"}]},
    "plugins": [{"type": "bridge"}, {"type": "ocsf-nft-cni"}],
}
_SETTINGS: Final = b'runtime = "/bin/true"\ncontrol = "/run/a.sock"\ntimeout = 5.5\n'


@cache
def _folder() -> Path:
    folder = memory_folder.folder() / "engine"
    for path in (folder / _ID, folder / "storage" / _ID / "userdata"):
        path.mkdir(parents=True)
    return folder


def _config(data: bytes) -> None:
    (_folder() / "config.json").write_bytes(data)
    config = bundle.read_config(str(_folder()))
    _check(bundle.facts(config, "/run/io.containerd.runtime.v2.task/ns/id", _ID))


def _docker(data: bytes) -> None:
    (_folder() / _ID / "config.v2.json").write_bytes(data)
    config = {"mounts": [{"destination": "/etc/hosts", "source": f"{_folder()}/{_ID}/hosts"}]}
    _check(bundle.facts(config, "/b", _ID))


def _podman(data: bytes) -> None:
    (_folder() / "storage" / "containers.json").write_bytes(data)
    config = {"annotations": {"io.container.manager": "libpod"}}
    _check(bundle.facts(config, f"{_folder()}/storage/{_ID}/userdata", _ID))


def _check(facts: dict[str, Any]) -> None:
    json.dumps(facts)
    require(all(isinstance(each, str) for each in facts["labels"].values()), "a label is no text")


def _cni(data: bytes) -> None:
    found = cni.parse({"CNI_COMMAND": "ADD", "CNI_CONTAINERID": _ID, "CNI_NETNS": "/n"}, data)
    _ = found.network, found.policy, found.sandbox, found.previous_result
    require(0 < found.service.seconds <= cni._MOST_SECONDS, "a time limit is out of range")


def _network(data: bytes) -> None:
    path = _folder() / "net.conflist"
    path.write_bytes(data)
    network_file.add_plugin(path, {"policy": "web"})
    network_file.remove_plugin(path)


def _settings(data: bytes) -> None:
    path = _folder() / "oci.toml"
    path.write_bytes(data)
    settings.settings({"config": os.fspath(path)})


def _seed(*values: object) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


TARGETS: Final = (
    Target(
        name="oci-config",
        parse=_config,
        seeds=lambda: _seed(_CONFIG),
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=2,
    ),
    Target(
        name="docker-config",
        parse=_docker,
        seeds=lambda: _seed(_DOCKER),
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=1,
    ),
    Target(
        name="podman-containers",
        parse=_podman,
        seeds=lambda: _seed(_PODMAN, _PODMAN[:1], _PODMAN[1:]),
        parts=parts.json_values,
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=1,
    ),
    Target(
        name="cni-request",
        parse=_cni,
        seeds=lambda: _seed(_NETWORK),
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=4,
    ),
    Target(
        name="cni-network",
        parse=_network,
        seeds=lambda: _seed(_NETWORK),
        parts=parts.json_values,
        documented=(OcsfNftError,),
        hostile=HOSTILE_JSON,
        limit=65_536,
        share=1,
    ),
    Target(
        name="oci-settings",
        parse=_settings,
        seeds=lambda: (_SETTINGS,),
        parts=parts.lines,
        documented=(OcsfNftError,),
        hostile=(*HOSTILE_TEXT, *HOSTILE_JSON),
        limit=16_384,
        share=1,
    ),
)
