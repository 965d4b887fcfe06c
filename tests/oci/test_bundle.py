"""Facts in the bundles of engines that the tests do not run, and in strange bundles."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from ocsf_nft.errors import SourceError
from ocsf_nft.oci.bundle import facts, read_config

if TYPE_CHECKING:
    from pathlib import Path

_TASK = "/run/containerd/io.containerd.runtime.v2.task/k8s.io/3f"


def test_facts_of_a_container_of_kubernetes_on_containerd() -> None:
    annotations = {
        "io.kubernetes.cri.container-name": "agent",
        "io.kubernetes.cri.container-type": "container",
        "io.kubernetes.cri.image-name": "registry.example/agent:1",
        "io.kubernetes.cri.sandbox-id": "5c",
        "io.kubernetes.cri.sandbox-name": "agent-1",
        "io.kubernetes.cri.sandbox-namespace": "team",
        "io.kubernetes.cri.sandbox-uid": "1-2",
    }
    assert facts({"annotations": annotations}, _TASK, "3f") == {
        "annotations": annotations,
        "labels": {},
        "runtime": "containerd",
        "name": "agent",
        "image": "registry.example/agent:1",
        "pod": {"name": "agent-1", "namespace": "team", "uid": "1-2"},
    }


def test_facts_of_a_container_of_cri_o() -> None:
    annotations = {
        "io.container.manager": "cri-o",
        "io.kubernetes.container.name": "agent",
        "io.kubernetes.cri-o.ImageName": "registry.example/agent:1",
        "io.kubernetes.cri-o.ImageRef": "77af",
        "io.kubernetes.cri-o.Labels": '{"app": "x", "number": 1}',
        "io.kubernetes.pod.name": "agent-1",
        "io.kubernetes.pod.namespace": "team",
        "io.kubernetes.pod.uid": "1-2",
    }
    found = facts({"annotations": annotations}, "/run/containers/storage/x/userdata", "x")
    del found["annotations"]
    assert found == {
        "labels": {"app": "x"},
        "runtime": "cri-o",
        "name": "agent",
        "image": "registry.example/agent:1",
        "image_id": "77af",
        "pod": {"name": "agent-1", "namespace": "team", "uid": "1-2"},
    }


def test_facts_of_nerdctl() -> None:
    found = facts({"annotations": {"nerdctl/name": "web"}}, _TASK, "3f")
    assert (found["name"], found["runtime"]) == ("web", "containerd")


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"annotations": None, "mounts": None},
        {"annotations": {"a": 1}},
        {"mounts": [{"destination": "/etc/hosts", "source": "/none/hosts"}]},
        {"mounts": [{"destination": "/etc/hosts"}]},
        {"annotations": {"io.kubernetes.cri.container-name": ""}},
    ],
)
def test_unknown_facts_are_left_out(config: dict[str, Any]) -> None:
    found = facts(config, "/bundle", "none")
    del found["annotations"]
    assert found == {"labels": {}}


@pytest.mark.parametrize("labels", ["{", "[]", "1", "[" * 100_000])
def test_labels_of_cri_o_that_are_no_labels_are_left_out(labels: str) -> None:
    annotations = {"io.container.manager": "cri-o", "io.kubernetes.cri-o.Labels": labels}
    assert facts({"annotations": annotations}, "/bundle", "3f")["labels"] == {}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", "{}", '{"ID": "IT", "Config": 1, "Name": "/x", "Image": ""}', "[" * 100_000],
)
def test_file_in_the_folder_of_a_docker_container_may_be_of_another_program(
    tmp_path: Path, content: str
) -> None:
    content = content.replace("IT", tmp_path.name)
    (tmp_path / "config.v2.json").write_text(content, encoding="ascii")
    mounts = [{"destination": "/etc/hosts", "source": f"{tmp_path}/hosts"}]
    assert "runtime" not in facts({"mounts": mounts}, "/bundle", tmp_path.name)


def _docker(folder: Path, image: str) -> list[dict[str, str]]:
    """Write the file of a Docker container; return its mounts."""
    folder.mkdir()
    settings = {"Image": image, "Labels": {"role": "agent", "long": "x" * 100_000}}
    content = {"ID": folder.name, "Name": "/web", "Image": "sha256:77", "Config": settings}
    (folder / "config.v2.json").write_text(json.dumps(content), encoding="ascii")
    return [{"destination": "/etc/hosts", "source": f"{folder}/hosts"}]


def test_facts_of_docker_are_those_of_its_own_file(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    forged = _docker(tmp_path / "home/user", "trusted")
    mounts = [*forged, *_docker(tmp_path / "3f", "agent")]
    annotations = {
        "io.container.manager": "libpod",
        "io.kubernetes.cri.image-name": "trusted",
        "io.kubernetes.pod.namespace": "kube-system",
    }
    found = facts({"mounts": mounts, "annotations": annotations}, "/bundle", "3f")
    assert found == {
        "annotations": annotations,
        "labels": {"role": "agent", "long": "x" * 1024},
        "runtime": "docker",
        "name": "web",
        "image": "agent",
        "image_id": "sha256:77",
    }
    assert "image" not in facts({"mounts": forged}, "/bundle", "3f")


def test_facts_of_docker_are_found_in_the_network_of_another_container(tmp_path: Path) -> None:
    others = _docker(tmp_path / "77", "other")
    _docker(tmp_path / "3f", "agent")
    assert facts({"mounts": others}, "/bundle", "3f")["image"] == "agent"


def test_file_that_docker_did_not_write_has_no_facts(tmp_path: Path) -> None:
    mounts = _docker(tmp_path / "77", "trusted")
    folder = tmp_path / "3f"
    folder.symlink_to("77")  # the file of another container
    assert "image" not in facts({"mounts": mounts}, "/bundle", "3f")
    folder.unlink()
    _docker(folder, "trusted")
    os.chown(folder / "config.v2.json", 65534, -1)
    assert "image" not in facts({"mounts": mounts}, "/bundle", "3f")
    (folder / "config.v2.json").unlink()
    os.mkfifo(folder / "config.v2.json")
    assert "image" not in facts({"mounts": mounts}, "/bundle", "3f")


def test_annotations_of_podman_are_no_facts_of_kubernetes(tmp_path: Path) -> None:
    annotations = {
        "io.container.manager": "libpod",
        "io.kubernetes.cri.image-name": "trusted",
        "io.kubernetes.pod.namespace": "kube-system",
    }
    found = facts({"annotations": annotations}, f"{tmp_path}/3f/userdata", "3f")
    assert found == {"annotations": annotations, "labels": {}, "runtime": "podman"}


@pytest.mark.parametrize(
    ("containers", "expected"),
    [
        (None, {}),
        ("[" * 100_000, {}),
        ("{", {}),
        ("{}", {}),
        ('[1, {"id": "other"}]', {}),
        ('[{"id": "3f", "names": ["web"], "image": "77"}]', {"name": "web", "image_id": "77"}),
        ('[{"id": "3f", "metadata": "{}"}]', {}),
        (json.dumps([{"id": "3f", "names": ["web"], "metadata": "[" * 100_000}]), {"name": "web"}),
        (
            json.dumps(
                [
                    {
                        "id": "3f",
                        "metadata": json.dumps(
                            {"name": "web", "image-name": "agent:1", "image-id": "77"}
                        ),
                    }
                ]
            ),
            {"name": "web", "image": "agent:1", "image_id": "77"},
        ),
    ],
)
def test_facts_of_podman_are_in_the_file_of_its_storage(
    tmp_path: Path, containers: str | None, expected: dict[str, str]
) -> None:
    if containers is not None:
        (tmp_path / "containers.json").write_text(containers, encoding="ascii")
    config = {"annotations": {"io.container.manager": "libpod"}}
    found = facts(config, f"{tmp_path}/3f/userdata", "3f")
    del found["annotations"]
    assert found == {"labels": {}, "runtime": "podman"} | expected


@pytest.mark.parametrize(
    "content",
    [
        None, "{", "[]", "\xff", "[" * 100_000, '{"linux": [1]}', '{"linux": {"namespaces": [1]}}',
        '{"linux": {"namespaces": "x"}}', '{"hooks": [1]}', '{"hooks": {"poststop": {"path": 1}}}',
    ],
)  # fmt: skip
def test_bundle_without_a_usable_configuration_is_an_error(
    tmp_path: Path, content: str | None
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content, encoding="latin-1")
    with pytest.raises(SourceError, match=r"config\.json"):
        read_config(str(tmp_path))


@pytest.mark.parametrize(
    "mounts",
    [
        5,
        "/etc/hosts",
        ["/etc/hosts", None, 7],
        [{"destination": "/etc/hosts", "source": 5}],
        [{"destination": ["/etc/hosts"], "source": "/a/b"}],
    ],
)
def test_mounts_of_another_form_are_no_facts(mounts: Any) -> None:
    assert facts({"mounts": mounts}, "/b", "3f") == {"annotations": {}, "labels": {}}


@pytest.mark.parametrize("names", [0.5, {"a": 1}, [], "", True])
def test_names_of_podman_of_another_form_are_left_out(tmp_path: Path, names: Any) -> None:
    bundle = tmp_path / "3f" / "userdata"
    bundle.mkdir(parents=True)
    containers = [{"id": "3f", "names": names, "image": "77af"}]
    (tmp_path / "containers.json").write_text(json.dumps(containers), encoding="ascii")
    found = facts({"annotations": {"io.container.manager": "libpod"}}, str(bundle), "3f")
    assert found["image_id"] == "77af"
    assert "name" not in found
