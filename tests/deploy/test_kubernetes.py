"""Tests of the manifests against the API's own schemas and against their guarantees."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING

import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import all_versions

from ocsf_nft.cli import options
from tests.cli.parsed import parsed
from tests.deploy.manifests import (
    EXAMPLE,
    KUBERNETES,
    PROXY_UID,
    Container,
    Object,
    Pod,
    example_pod,
    pod_of,
    rendered,
    with_components,
)

if TYPE_CHECKING:
    from pathlib import Path

#: All versions since the first that enables native sidecars.
_VERSIONS = sorted({tuple(map(int, each.split(".")[:2])) for each in all_versions()})
_WITH_SIDECARS = [f"{major}.{minor}" for major, minor in _VERSIONS if (major, minor) >= (1, 29)]

_GROUPS = {"Job": "batch/v1"}
_KINDS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job")
_FENCE = ("fence-install", "fence")


def _users_object(kind: str) -> str:
    """Return an object with its own init container and volume, on the node's network."""
    spec: Object = {
        "template": {
            "metadata": {"labels": {"app": "own"}},
            "spec": {
                "hostNetwork": True,
                "restartPolicy": "Never" if kind == "Job" else "Always",
                "initContainers": [{"name": "own-init", "image": "own:1"}],
                "containers": [{"name": "own", "image": "own:1"}],
                "volumes": [{"name": "own", "emptyDir": {}}],
            },
        }
    }
    if kind != "Job":
        spec["selector"] = {"matchLabels": {"app": "own"}}
    if kind == "StatefulSet":
        spec["serviceName"] = "own"
    found = {
        "apiVersion": _GROUPS.get(kind, "apps/v1"),
        "kind": kind,
        "metadata": {"name": "own"},
        "spec": spec,
    }
    return yaml.safe_dump(found)


@pytest.fixture(scope="module")
def example() -> list[Object]:
    return rendered(EXAMPLE)


@pytest.fixture(scope="module")
def pod() -> Pod:
    return example_pod()


def test_schemas_of_each_version_since_native_sidecars_are_installed() -> None:
    assert _WITH_SIDECARS[0] == "1.29"
    assert len(_WITH_SIDECARS) >= 7


@pytest.mark.parametrize("version", _WITH_SIDECARS)
def test_api_accepts_each_object_of_the_example(example: list[Object], version: str) -> None:
    assert {found["kind"] for found in example} == {"Namespace", "ConfigMap", "Deployment"}
    for found in example:
        assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("kind", _KINDS)
def test_api_accepts_each_kind_with_the_fence(tmp_path: Path, kind: str) -> None:
    (found,) = with_components(tmp_path, _users_object(kind), "base", "userns")
    for version in (_WITH_SIDECARS[0], _WITH_SIDECARS[-1]):
        kubernetes_validate.validate(found, version, strict=True)


@pytest.mark.parametrize(
    ("field", "key"),
    [
        ("containers", "securityContex"),
        ("initContainers", "restartpolicy"),
    ],
)
def test_validation_finds_an_unknown_key(example: list[Object], field: str, key: str) -> None:
    spoilt = copy.deepcopy(next(found for found in example if found["kind"] == "Deployment"))
    pod_of(spoilt).spec[field][0][key] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match=key):
        kubernetes_validate.validate(spoilt, _WITH_SIDECARS[-1], strict=True)


@pytest.fixture(scope="module", params=_KINDS)
def fenced(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pod:
    """Return the pod of an object of each kind, with the base."""
    folder = tmp_path_factory.mktemp("fenced")
    (found,) = with_components(folder, _users_object(request.param), "base")
    return pod_of(found)


def test_fence_is_active_and_watched_before_the_pods_own_containers_start(
    fenced: Pod,
) -> None:
    assert [each.name for each in fenced.init_containers] == [*_FENCE, "own-init"]
    # The first ends; its failure stops the start. The second keeps running; the start awaits it.
    assert [each.is_sidecar for each in fenced.init_containers] == [False, True, False]
    assert "startupProbe" in fenced["fence"].spec
    assert {"name": "own", "emptyDir": {}} in fenced.spec["volumes"]


def test_examples_proxy_listens_before_its_workload_starts(pod: Pod) -> None:
    assert [each.name for each in pod.init_containers] == [*_FENCE, "proxy"]
    assert pod["proxy"].is_sidecar
    assert "startupProbe" in pod["proxy"].spec


def test_node_itself_is_never_fenced(fenced: Pod) -> None:
    assert fenced.spec["hostNetwork"] is False


def test_pod_has_its_own_user_namespace_only_with_the_component(tmp_path: Path, pod: Pod) -> None:
    (found,) = with_components(tmp_path, _users_object("Deployment"), "base", "userns")
    assert pod_of(found).spec["hostUsers"] is False
    assert "hostUsers" not in pod.spec


def test_example_uses_no_resources_of_the_node(pod: Pod) -> None:
    for name in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
        assert not pod.spec.get(name)
    assert pod.spec["automountServiceAccountToken"] is False
    for volume in pod.spec["volumes"]:
        assert set(volume) <= {"name", "emptyDir", "configMap"}
    for container in pod.containers:
        assert "ports" not in container.spec
        assert "volumeDevices" not in container.spec
        assert not container.security.get("privileged")


def test_only_the_fence_has_a_capability_and_only_one(pod: Pod) -> None:
    for container in pod.containers:
        capabilities = container.security["capabilities"]
        assert capabilities["drop"] == ["ALL"]
        expected = ["NET_ADMIN"] if container.name in _FENCE else []
        assert capabilities.get("add", []) == expected


def test_containers_gain_no_privileges_have_read_only_roots_and_default_seccomp(pod: Pod) -> None:
    for container in pod.containers:
        assert container.security["allowPrivilegeEscalation"] is False
        assert container.security["readOnlyRootFilesystem"] is True
        assert container.security["seccompProfile"] == {"type": "RuntimeDefault"}


def test_fence_allows_the_proxys_user_and_only_the_proxy_has_it(pod: Pod) -> None:
    allowed_uid = int(pod["fence-install"].environment[PROXY_UID])
    users = {each.name: each.security["runAsUser"] for each in pod.containers}
    assert [name for name, uid in users.items() if uid == allowed_uid] == ["proxy"]
    assert {name for name, uid in users.items() if uid == 0} == set(_FENCE)
    assert f"--proxy-uid={allowed_uid}" in pod["fence-install"].arguments
    for container in pod.containers:
        assert container.security["runAsNonRoot"] is (container.name not in _FENCE)


def test_workload_runs_as_root_only_with_its_own_setting(tmp_path: Path) -> None:
    (found,) = with_components(tmp_path, _users_object("Deployment"), "base")
    pod = pod_of(found)
    assert pod.spec["securityContext"] == {"runAsNonRoot": True}
    assert {name for name in _FENCE if pod[name].security["runAsNonRoot"] is False} == {*_FENCE}


def test_each_container_has_resource_limits(pod: Pod) -> None:
    for container in pod.containers:
        resources = container.spec["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


def test_only_the_containers_of_the_fence_share_its_state_directory(pod: Pod) -> None:
    mounts = {each.name: each.mounts() for each in pod.containers}
    assert mounts["fence-install"] == mounts["fence"] == {"/var/lib/ocsf-nft": "ocsf-nft"}
    assert "ocsf-nft" not in {*mounts["proxy"].values(), *mounts["agent"].values()}
    (volume,) = (each for each in pod.spec["volumes"] if each["name"] == "ocsf-nft")
    assert volume["emptyDir"]["medium"] == "Memory"
    assert volume["emptyDir"]["sizeLimit"]


def test_each_probe_runs_inside_its_container(pod: Pod) -> None:
    kinds = ("startupProbe", "readinessProbe", "livenessProbe")
    probes = [each.spec[kind] for each in pod.containers for kind in kinds if kind in each.spec]
    assert len(probes) >= 4
    for probe in probes:
        assert "exec" in probe
    for container in pod.containers:
        if container.name not in _FENCE[:1]:
            assert {"startupProbe", "livenessProbe"} & set(container.spec)


def test_workload_can_neither_answer_nor_observe_the_probes_of_the_fence(pod: Pod) -> None:
    fence = pod["fence"]
    kinds = [kind for kind in ("startupProbe", "readinessProbe") if kind in fence.spec]
    assert len(kinds) == 2
    for kind in kinds:
        assert fence.probe(kind)[:2] == ["ocsf-nft", "verify"]
    # A liveness probe could not decide whether a restart would help.
    assert "livenessProbe" not in fence.spec
    assert "ports" not in fence.spec
    assert not [word for word in fence.arguments if "listen" in word or "--config" in word]


def _commands(container: Container) -> list[list[str]]:
    probes = ("startupProbe", "readinessProbe")
    return [
        ["ocsf-nft", *container.arguments],
        *(container.probe(kind) for kind in probes if kind in container.spec),
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("fence-install", ["install"]), ("fence", ["run", "verify", "verify"])],
)
def test_command_line_accepts_each_command(pod: Pod, name: str, expected: list[str]) -> None:
    found = []
    for program, command, *arguments in _commands(pod[name]):
        assert program == "ocsf-nft"
        assert not any("$(" in word for word in arguments)
        given = parsed(command, arguments)
        assert given["sandbox"] == "example-agent"
        # The mount path of the volume.
        assert str(given["state_dir"] or options.DEFAULT_STATE_DIR) in pod[name].mounts()
        found.append(command)
    assert found == expected


def test_parsing_finds_an_unknown_option() -> None:
    with pytest.raises(Exception, match="No such option"):
        parsed("verify", ["--sandbx=a"])


def test_run_never_removes_the_fence_and_writes_to_standard_output(pod: Pod) -> None:
    found = parsed("run", pod["fence"].arguments[1:])
    assert found["install"] is False
    assert found["output"] == "-"


def test_installation_fails_on_a_kernel_without_nflog(pod: Pod) -> None:
    found = parsed("install", pod["fence-install"].arguments[1:])
    assert found["transport"] == "nflog"
    assert not found["permissive"]


def test_workload_has_the_proxys_address(pod: Pod) -> None:
    address = pod["fence-install"].environment["PROXY"]
    environment = pod["agent"].environment
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"):
        assert environment[name] == f"http://{address}"


def test_patches_of_the_guide_set_their_values(tmp_path: Path) -> None:
    guide = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", guide, re.DOTALL)]
    patches = [patch for block in blocks for patch in block.get("patches", ())]
    assert len(patches) == 2
    resources = _users_object("Deployment").replace("name: own\nspec", "name: scraper\nspec")
    (found,) = with_components(tmp_path, resources, "base", patches=patches)
    pod = pod_of(found)
    found = parsed("install", pod["fence-install"].arguments[1:])
    assert found["sandbox"] == "scraper"
    assert found["proxy_uid"] == (1337,)
    assert found["proxy"] == ("127.0.0.1:15001",)
    assert found["permissive"] is True
    for arguments in (pod["fence"].arguments[1:], pod["fence"].probe("readinessProbe")[2:]):
        assert "--sandbox=scraper" in arguments
