from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.attribution.containers import Placement, parse_cgroups
from ocsf_nft.process import Container

ONE = "3726184226f5d3147c25fdeab5b60097e378e8a720503a5e19ecfdf29f869860"
TWO = "e8ac3efec3322d7f13cfa0cdee4344754d01bd4e50fea44e0753e83fdb74cab3"
POD = "98005c3b-b650-4efe-8b91-2164d784397f"
POD_ = POD.replace("-", "_")
STATIC = "3d6beaa3004913efb68ce073d73494b0"
BURSTABLE = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{POD_}.slice"
MANAGER = "/user.slice/user-1000.slice/user@1000.service"


def docker(uid: str = ONE) -> Container:
    return Container(uid=uid, runtime="docker")


def podman(uid: str = ONE) -> Container:
    return Container(uid=uid, runtime="podman")


def containerd(uid: str = ONE, pod: str | None = POD) -> Container:
    return Container(uid=uid, runtime="containerd", pod_uid=pod)


#: Paths of cgroups, from the top, as runtimes and systemd make them.
PATHS = {
    # Docker: cgroupfs; systemd; a --cgroup-parent; what systemd inside makes; builds on old Debian.
    f"/docker/{ONE}": Placement(docker()),
    f"/system.slice/docker-{ONE}.scope": Placement(docker()),
    f"/agents.slice/agents-a.slice/docker-{ONE}.scope": Placement(docker()),
    f"/docker-ce/docker/{ONE}": Placement(docker()),
    f"/system.slice/docker-{ONE}.scope/system.slice/nginx.service": Placement(docker()),
    f"/{ONE}": Placement(Container(uid=ONE)),
    f"/ecs/55091c13-b8cf-4801-b527-f4601742204d/{ONE}": Placement(Container(uid=ONE)),
    # Docker in Docker, Kubernetes in Docker: the host's.
    f"/docker/{ONE}/docker/{TWO}": Placement(docker()),
    f"/system.slice/docker-{ONE}.scope/docker/{TWO}": Placement(docker()),
    f"/docker/{ONE}/kubelet/kubepods/burstable/pod{POD}/{TWO}": Placement(docker()),
    (
        f"/system.slice/docker-{ONE}.scope/kubelet.slice/kubelet-kubepods.slice/"
        f"kubelet-kubepods-pod{POD_}.slice/cri-containerd-{TWO}.scope"
    ): Placement(docker()),
    # Kubernetes: each driver of cgroups, each quality of service, each runtime.
    f"{BURSTABLE}/cri-containerd-{ONE}.scope": Placement(containerd()),
    f"/kubepods.slice/kubepods-pod{POD_}.slice/cri-containerd-{ONE}.scope": Placement(containerd()),
    f"{BURSTABLE}/docker-{ONE}.scope": Placement(Container(uid=ONE, runtime="docker", pod_uid=POD)),
    f"{BURSTABLE}/crio-{ONE}.scope": Placement(Container(uid=ONE, runtime="cri-o", pod_uid=POD)),
    f"{BURSTABLE}/crio-{ONE}.scope/container": Placement(
        Container(uid=ONE, runtime="cri-o", pod_uid=POD)
    ),
    f"/kubepods/besteffort/pod{POD}/crio-{ONE}": Placement(
        Container(uid=ONE, runtime="cri-o", pod_uid=POD)
    ),
    f"/kubepods/burstable/pod{POD}/{ONE}": Placement(Container(uid=ONE, pod_uid=POD)),
    f"/kubepods/pod{POD}/{ONE}": Placement(Container(uid=ONE, pod_uid=POD)),
    f"/kubepods/besteffort/pod{STATIC}/{ONE}": Placement(Container(uid=ONE, pod_uid=STATIC)),
    f"/kubepods-burstable-pod{POD_}.slice:cri-containerd:{ONE}": Placement(containerd()),
    f"/kubepods-burstable-pod{POD_}.slice:crio:{ONE}": Placement(
        Container(uid=ONE, runtime="cri-o", pod_uid=POD)
    ),
    (
        f"/system.slice/containerd.service/kubepods-besteffort-pod{POD_}.slice:cri-containerd:{ONE}"
    ): Placement(containerd(), "containerd.service"),
    (
        "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/"
        f"kubelet-kubepods-besteffort-pod{POD_}.slice/cri-containerd-{ONE}.scope"
    ): Placement(containerd()),
    # A pod is the first one of the path.
    f"{BURSTABLE}/kubepods-pod{STATIC}.slice/cri-containerd-{ONE}.scope": Placement(containerd()),
    # In a pod, but in none of its containers: Kata's machine, CRI-O's monitor.
    f"/kubepods/pod{POD}/kata_{ONE}": Placement(),
    f"{BURSTABLE}/crio-conmon-{ONE}.scope": Placement(None, f"crio-conmon-{ONE}.scope"),
    # containerd without Kubernetes.
    f"/system.slice/nerdctl-{ONE}.scope": Placement(containerd(pod=None)),
    f"{MANAGER}/user.slice/nerdctl-{ONE}.scope": Placement(
        containerd(pod=None), "user@1000.service"
    ),
    f"/default/{ONE}": Placement(Container(uid=ONE)),
    # Podman: root's, with crun, in a pod, with cgroupfs; a user's; in a unit (Quadlet).
    f"/machine.slice/libpod-{ONE}.scope": Placement(podman()),
    f"/machine.slice/libpod-{ONE}.scope/container": Placement(podman()),
    f"/machine.slice/machine-libpod_pod_{TWO}.slice/libpod-{ONE}.scope/container": Placement(
        podman()
    ),
    f"/libpod_parent/libpod-{ONE}": Placement(podman()),
    f"/libpod_parent/libpod-{ONE}/ctr": Placement(podman()),
    f"{MANAGER}/user.slice/libpod-{ONE}.scope/container": Placement(podman(), "user@1000.service"),
    f"/system.slice/web.service/libpod-payload-{ONE}": Placement(podman(), "web.service"),
    f"{MANAGER}/app.slice/web.service/libpod-payload-{ONE}": Placement(
        podman(), "user@1000.service/web.service"
    ),
    f"/machine.slice/libpod-conmon-{ONE}.scope": Placement(None, f"libpod-conmon-{ONE}.scope"),
    "/system.slice/web.service/runtime": Placement(None, "web.service"),
    f"{MANAGER}/user.slice/docker-{ONE}.scope": Placement(docker(), "user@1000.service"),
    # LXC, LXD, Incus, Proxmox.
    "/lxc.payload.agent-1": Placement(Container(name="agent-1", runtime="lxc")),
    "/lxc.payload.agent-1/system.slice/ssh.service": Placement(
        Container(name="agent-1", runtime="lxc")
    ),
    f"/lxc.payload.agent-1/docker/{ONE}": Placement(Container(name="agent-1", runtime="lxc")),
    "/lxc.monitor.agent-1": Placement(),
    "/lxc/101/ns/init.scope": Placement(Container(name="101", runtime="lxc")),
    # systemd-nspawn; a virtual machine is no container.
    "/machine.slice/systemd-nspawn@web.service/payload/init.scope": Placement(
        Container(name="web", runtime="systemd-nspawn"), "systemd-nspawn@web.service"
    ),
    "/machine.slice/systemd-nspawn@web.service/supervisor": Placement(
        None, "systemd-nspawn@web.service"
    ),
    r"/machine.slice/machine-web\x2d1.scope/payload": Placement(
        Container(name="web-1", runtime="systemd-nspawn"), r"machine-web\x2d1.scope"
    ),
    r"/machine.slice/machine-qemu\x2d1\x2dwin11.scope/libvirt/emulator": Placement(
        None, r"machine-qemu\x2d1\x2dwin11.scope"
    ),
    # systemd's units, by the names that systemctl has for them.
    "/": Placement(),
    "/init.scope": Placement(None, "init.scope"),
    "/system.slice/nginx.service": Placement(None, "nginx.service"),
    r"/system.slice/system-getty.slice/getty@tty1.service": Placement(None, "getty@tty1.service"),
    r"/system.slice/my\x2dagent.service": Placement(None, r"my\x2dagent.service"),
    "/system.slice/_cpu.service": Placement(None, "cpu.service"),
    "/system.slice/delegated.service/whatever/x.service": Placement(None, "delegated.service"),
    "/user.slice/user-1000.slice/session-3.scope": Placement(None, "session-3.scope"),
    f"{MANAGER}/init.scope": Placement(None, "user@1000.service/init.scope"),
    f"{MANAGER}/app.slice/app-agent.slice/agent@1.service": Placement(
        None, "user@1000.service/agent@1.service"
    ),
    "/system.slice": Placement(),
    "/process_api/77567cdf64d862f122deaf0c139e18d7": Placement(),
    # Seen from a cgroup namespace further down.
    f"/../cri-containerd-{ONE}.scope": Placement(containerd(pod=None)),
    f"/../../../..{BURSTABLE}/cri-containerd-{ONE}.scope": Placement(containerd()),
    f"/../../pod{POD}/{ONE}": Placement(Container(uid=ONE)),
    "/..": Placement(),
    "/../app.slice/nginx.service": Placement(),
}
#: Names that make no container, chosen by any process.
NAMES = [
    f"docker-{TWO}.scope",
    f"libpod-payload-{TWO}",
    f"kubepods-pod{POD_}.slice:cri-containerd:{TWO}",
    f"kubepods-pod{POD_}.slice",
    f"pod{POD}",
    "kubepods",
    "docker",
    TWO,
    "lxc.payload.other",
    "payload",
    "systemd-nspawn@other.service",
    "containerd.service",
    "user@0.service",
    "sshd.service",
    "a b",
    "a:b",
    "(deleted)",
]
BELOW = st.lists(st.sampled_from(NAMES), max_size=4)


@pytest.mark.parametrize("path", PATHS)
def test_path_gives_container_and_unit_in_either_version_of_cgroups(path: str) -> None:
    assert parse_cgroups(f"0::{path}\n") == PATHS[path]
    assert parse_cgroups(f"0::{path} (deleted)\n") == PATHS[path]
    assert (
        parse_cgroups(f"12:pids:{path}\n11:cpu,cpuacct:{path}\n1:name=systemd:{path}\n")
        == PATHS[path]
    )


@given(st.sampled_from([path for path, found in PATHS.items() if found.container]), BELOW)
def test_names_below_a_container_change_nothing(path: str, below: list[str]) -> None:
    assert parse_cgroups("0::" + "/".join([path, *below])) == PATHS[path]


@given(st.sampled_from(["/user.slice/user-1000.slice/session-3.scope", "/init.scope"]), BELOW)
def test_cgroup_below_a_unit_is_no_container_of_a_runtime(path: str, below: list[str]) -> None:
    container, unit = parse_cgroups("0::" + "/".join([path, *below]))
    assert unit == path.rpartition("/")[2]
    # If it imitates Podman's container in that unit, the unit shows its source.
    assert container in {None, podman(TWO)}
    assert container is None or below[0] == f"libpod-payload-{TWO}"


@pytest.mark.parametrize(
    "name",
    [
        f"docker-{ONE[1:]}.scope",
        f"docker-{ONE}0.scope",
        f"docker-{ONE.upper()}.scope",
        f"docker-{ONE}.service",
        f"xdocker-{ONE}.scope",
        f"crio-conmon-{ONE}.scope",
        f"docker-{ONE}.scope\t",
        "docker",
        ONE[1:],
        ONE + "\u0660",
        "lxc.payload.",
        "machine-web.scope",
        ".slice:docker:" + ONE,
    ],
)
def test_name_similar_to_a_container_is_none(name: str) -> None:
    assert parse_cgroups(f"0::/system.slice/{name}").container is None


@pytest.mark.parametrize(
    "pod", [POD[1:], POD + "0", POD.upper(), POD.replace("-", "_", 1), "", STATIC[1:]]
)
def test_name_similar_to_a_pod_is_none(pod: str) -> None:
    assert parse_cgroups(f"0::/kubepods/burstable/pod{pod}/{ONE}").container == Container(uid=ONE)
    slice_ = f"/kubepods.slice/kubepods-pod{pod}.slice/cri-containerd-{ONE}.scope"
    assert parse_cgroups(f"0::{slice_}").container == containerd(pod=None)


def test_pod_counts_only_below_kubepods() -> None:
    assert parse_cgroups(f"0::/pod{POD}/{ONE}").container == Container(uid=ONE)


def test_runtime_that_skips_hierarchies_is_supported() -> None:
    text = f"""\
12:rdma:/
11:pids:/docker/{ONE}
2:misc:/
1:name=systemd:/docker/{ONE}
0::/system.slice/containerd.service
"""
    assert parse_cgroups(text) == Placement(docker())


def test_unit_beside_cgroup_v1_is_that_of_systemds_own_hierarchy() -> None:
    text = "4:memory:/x.service\n1:name=systemd:/system.slice/a.service\n0::/b.service\n"
    assert parse_cgroups(text) == Placement(None, "a.service")


def test_process_in_two_containers_has_none() -> None:
    assert parse_cgroups(f"2:pids:/docker/{ONE}\n1:cpu:/docker/{TWO}\n").container is None


@given(st.text())
def test_any_text_can_be_parsed(text: str) -> None:
    assert isinstance(parse_cgroups(text), Placement)
    assert isinstance(parse_cgroups(f"0::/{text}"), Placement)


@pytest.mark.parametrize("text", ["", "\n", "0", "0:", "0::", "0::docker", "0:/docker", ":::"])
def test_text_without_a_path_gives_nothing(text: str) -> None:
    assert parse_cgroups(text) == Placement()
