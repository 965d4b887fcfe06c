"""Tests of the DaemonSet that fences the pods of a node, against the API's schemas."""

from __future__ import annotations

import os
import subprocess
import tomllib
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
from kubernetes_validate.utils import all_versions

from ocsf_nft import config
from ocsf_nft.cni import install
from ocsf_nft.control.attach import decide
from ocsf_nft.control.container_facts import ContainerFacts
from tests.cli.parsed import parsed
from tests.deploy.manifests import KUBERNETES, Object, Pod, pod_of, rendered
from tests.engines.engine import PROGRAM

if TYPE_CHECKING:
    from ocsf_nft.config import Config

_NODE = KUBERNETES / "node"
_VERSIONS = sorted({tuple(map(int, each.split(".")[:2])) for each in all_versions()})
_SINCE_1_29 = [f"{major}.{minor}" for major, minor in _VERSIONS if (major, minor) >= (1, 29)]


@pytest.fixture(scope="module")
def objects() -> list[Object]:
    return rendered(_NODE)


@pytest.fixture(scope="module")
def pod(objects: list[Object]) -> Pod:
    return pod_of(next(each for each in objects if each["kind"] == "DaemonSet"))


@pytest.fixture(scope="module")
def settings(objects: list[Object]) -> Config:
    """Return the configuration in the ConfigMap."""
    (found,) = (each for each in objects if each["kind"] == "ConfigMap")
    return config.parse(tomllib.loads(found["data"]["ocsf-nft.toml"]), where="ConfigMap")


@pytest.mark.parametrize("version", _SINCE_1_29)
@pytest.mark.parametrize("folder", ["node", "node-removal"])
def test_api_accepts_each_object(folder: str, version: str) -> None:
    found = rendered(KUBERNETES / folder)
    assert {each["kind"] for each in found} == {"Namespace", "ConfigMap", "DaemonSet"}
    for each in found:
        assert kubernetes_validate.validate(each, version, strict=True) == version


def test_daemonset_starts_on_each_node_without_the_plugin(pod: Pod) -> None:
    assert pod.spec["hostNetwork"] is True  # no plugin is called for it
    assert pod.spec["hostPID"] is True
    assert pod.spec["tolerations"] == [{"operator": "Exists"}]
    assert pod.spec["automountServiceAccountToken"] is False


def test_service_has_the_capabilities_for_namespaces_of_others(pod: Pod) -> None:
    security = pod["service"].security
    assert security["capabilities"] == {
        "drop": ["ALL"],
        "add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE", "BPF", "PERFMON"],
    }
    assert security["privileged"] is False
    assert security["readOnlyRootFilesystem"] is True


def test_plugin_container_has_no_capability_and_three_folders_of_the_node(pod: Pod) -> None:
    plugin = pod["plugin"]
    assert plugin.security["capabilities"] == {"drop": ["ALL"]}
    assert plugin.security["allowPrivilegeEscalation"] is False
    paths = {each["name"]: each["hostPath"]["path"] for each in pod.spec["volumes"][1:]}
    mounted = {path: paths[name] for path, name in plugin.mounts().items()}
    assert mounted == {
        f"/host{folder}": folder
        for folder in ("/opt/cni/bin", "/opt/ocsf-nft-cni", "/etc/cni/net.d")
    }


def test_commands_accept_their_arguments(pod: Pod) -> None:
    arguments = pod["service"].arguments
    assert str(parsed(arguments[0], arguments[1:])["config"]).startswith("/etc/ocsf-nft/")
    program, *words = pod["plugin"].arguments
    assert (program, words[:2]) == ("/opt/ocsf-nft/bin/python", ["-m", "ocsf_nft.cni.install"])
    given = install._parser().parse_args(words[2:])
    assert (str(given.host), given.watch, given.remove) == ("/host", True, False)


def test_plugin_and_service_have_the_same_socket_in_a_folder_of_the_node(
    pod: Pod, settings: Config
) -> None:
    given = install._parser().parse_args([])
    assert given.control == str(settings.control)
    assert "/run/ocsf-nft" in pod["service"].mounts()


def test_service_sees_namespaces_that_are_mounted_later(pod: Pod) -> None:
    mounts = {each["name"]: each for each in pod["service"].spec["volumeMounts"]}
    assert mounts["netns"]["mountPropagation"] == "HostToContainer"


@pytest.mark.parametrize("kind", ["readinessProbe", "startupProbe"])
def test_probe_fails_while_the_service_is_down(pod: Pod, kind: str) -> None:
    done = subprocess.run(
        pod["service"].probe(kind),
        env={"PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert '"code": 50' in done.stdout


@pytest.mark.parametrize(
    ("namespace", "table"),
    [("kube-system", None), ("agents", "agents"), ("agents-1", "agents"), ("shop", None)],
)
def test_configuration_fences_only_the_namespaces_of_agents(
    settings: Config, namespace: str, table: str | None
) -> None:
    facts = ContainerFacts.model_validate(
        {"id": "x", "netns": "/run/netns/x", "pod": {"name": "p", "namespace": namespace}}
    )
    decision = decide("x", facts, settings.attach)
    assert (decision and decision.table) == table


def test_removal_takes_the_plugin_away_and_leaves_the_service(pod: Pod) -> None:
    found = rendered(KUBERNETES / "node-removal")
    removal = pod_of(next(each for each in found if each["kind"] == "DaemonSet"))
    assert removal["service"] == pod["service"]
    shell, option, script, name, *words = removal["plugin"].arguments
    assert (shell, option, name) == ("sh", "-c", "sh")
    assert script == '"$@" && exec sleep infinity'
    given = install._parser().parse_args(words[3:])
    assert (str(given.host), given.watch, given.remove) == ("/host", False, True)
