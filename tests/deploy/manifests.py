"""The Kubernetes manifests as they are sent to a cluster, and what a kubelet makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy/kubernetes"
EXAMPLE = KUBERNETES / "example"

#: What the proxy's user is called, in the fence's own settings.
PROXY_UID = "PROXY_UID"

Object: TypeAlias = dict[str, Any]

_VARIABLE = re.compile(r"\$\$|\$\(([-._a-zA-Z][-._a-zA-Z0-9]*)\)")


@dataclass(frozen=True, slots=True)
class Container:
    """A container of a pod, as the API has it."""

    spec: Object

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def is_sidecar(self) -> bool:
        """Of an init container: that it goes on, and is started anew when it ends."""
        return self.spec.get("restartPolicy") == "Always"

    @property
    def environment(self) -> dict[str, str]:
        return {each["name"]: each["value"] for each in self.spec.get("env", ())}

    @property
    def security(self) -> Object:
        return dict(self.spec["securityContext"])

    @property
    def arguments(self) -> list[str]:
        return self._expanded([*self.spec.get("command", ()), *self.spec.get("args", ())])

    def probe(self, kind: str) -> list[str]:
        """The command of a probe, whose variables a kubelet replaces too (of ``value`` alone)."""
        return self._expanded(self.spec[kind]["exec"]["command"])

    def mounts(self) -> dict[str, str]:
        """The volumes' names by where they are mounted."""
        return {each["mountPath"]: each["name"] for each in self.spec.get("volumeMounts", ())}

    def _expanded(self, words: list[str]) -> list[str]:
        known = self.environment

        def value(found: re.Match[str]) -> str:
            return "$" if found[1] is None else known.get(found[1], found[0])

        return [_VARIABLE.sub(value, word) for word in words]


@dataclass(frozen=True, slots=True)
class Pod:
    """What an object makes pods of."""

    spec: Object

    @property
    def starting(self) -> list[Container]:
        """The init containers in the order in which they are started."""
        return [Container(each) for each in self.spec.get("initContainers", ())]

    @property
    def containers(self) -> list[Container]:
        """All of them."""
        return [*self.starting, *(Container(each) for each in self.spec["containers"])]

    def __getitem__(self, name: str) -> Container:
        return next(each for each in self.containers if each.name == name)


def rendered(folder: Path) -> list[Object]:
    """What kustomize makes of a folder; it must have nothing to complain of."""
    return list(yaml.safe_load_all(_built(folder)))


@cache
def _built(folder: Path) -> str:
    done = subprocess.run(
        ["kustomize", "build", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def with_components(
    folder: Path, resources: str, *components: str, patches: Sequence[Object] = ()
) -> list[Object]:
    """What the components make of a text of objects, as in somebody's own kustomization."""
    shutil.copytree(KUBERNETES, folder / "kubernetes")
    mine = folder / "mine"
    mine.mkdir()
    (mine / "resources.yaml").write_text(resources, encoding="utf-8")
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": ["resources.yaml"],
        "components": [f"../kubernetes/{name}" for name in components],
        "patches": list(patches),
    }
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization), encoding="utf-8")
    return rendered(mine)


def pod_of(found: Object) -> Pod:
    """The pod template of an object that has one."""
    return Pod(found["spec"]["template"]["spec"])


def example_pod() -> Pod:
    """The pod of the example."""
    return next(pod_of(found) for found in rendered(EXAMPLE) if found["kind"] == "Deployment")
