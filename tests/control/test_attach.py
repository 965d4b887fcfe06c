"""Decisions about containers by the [[attach]] tables."""

from __future__ import annotations

from typing import Any

import pytest

from ocsf_nft import config
from ocsf_nft.config.attach import AttachConfig
from ocsf_nft.control.attach import decide, matches
from ocsf_nft.control.container_facts import ContainerFacts, sandbox_name
from ocsf_nft.errors import ContainerRefusedError, UsageError
from ocsf_nft.ocsf.context import Context
from ocsf_nft.ocsf.resources import resources_of

_ID = "3f" * 32
_PROXY = ["10.0.0.1:3128"]


def _facts(**given: Any) -> ContainerFacts:
    return ContainerFacts.model_validate({"id": _ID, "pid": 42, "name": "web"} | given)


def _table(name: str = "agents", **given: Any) -> AttachConfig:
    needed = {} if "action" in given else {"proxy": _PROXY}
    return AttachConfig.model_validate({"name": name} | needed | given)


def _every(**given: Any) -> AttachConfig:
    return _table("every", match={"container": ["*"]}, **given)


@pytest.mark.parametrize(
    ("match", "given"),
    [
        ({"image": ["agent:*"]}, {"image": "agent"}),
        ({"image": ["agent:latest"]}, {"image": "localhost/agent:latest"}),
        ({"image": ["agent:1"]}, {"image": "docker.io/library/agent:1"}),
        ({"image": ["org/agent:?"]}, {"image": "docker.io/org/agent:1"}),
        ({"image": ["*/agent@sha256:*"]}, {"image": "registry.example:5000/agent@sha256:12"}),
        ({"image": ["agent:*"]}, {"image": "docker.io/library/agent@sha256:12"}),
        ({"image": ["agent:1*"]}, {"image": "agent:1@sha256:12"}),
        (
            {"image": ["registry.example:5000/agent:latest"]},
            {"image": "registry.example:5000/agent"},
        ),
        ({"container": ["we?"]}, {}),
        ({"container": ["other", "web"]}, {}),
        ({"container": ["[a-w]eb"]}, {"name": "[a-w]eb"}),
        ({"runtime": ["docker"]}, {"runtime": "docker"}),
        ({"namespace": ["team-*"], "pod": ["a"]}, {"pod": {"namespace": "team-1", "name": "a"}}),
        ({"label": {"role": "agent"}}, {"labels": {"role": "agent"}}),
        ({"label": {"role": "agent"}}, {"annotations": {"role": "agent"}}),
        ({"label": {"role": "*", "team": "x"}}, {"labels": {"role": "1", "team": "x"}}),
    ],
)
def test_table_matches_the_facts_of_its_patterns(
    match: dict[str, Any], given: dict[str, Any]
) -> None:
    assert matches(_table(match=match), _facts(**given))


@pytest.mark.parametrize(
    ("match", "given"),
    [
        ({"image": ["*"]}, {}),
        ({"image": ["agent"]}, {"image": "agent"}),
        ({"image": ["agent:latest"]}, {"image": "agent@sha256:12"}),
        ({"image": ["agent:*"]}, {"image": "registry.example/agent:1"}),
        ({"container": ["[a-w]eb"]}, {}),
        ({"container": ["WEB"]}, {}),
        ({"runtime": ["*"]}, {}),
        ({"namespace": ["*"]}, {}),
        ({"container": ["web"], "runtime": ["docker"]}, {"runtime": "podman"}),
        ({"label": {"role": "agent"}}, {"labels": {"role": "agents"}}),
        ({"label": {"role": "*", "team": "*"}}, {"labels": {"role": "agent"}}),
        ({}, {}),
        ({}, {"policy": "other"}),
    ],
)
def test_table_does_not_match_other_facts(match: dict[str, Any], given: dict[str, Any]) -> None:
    assert not matches(_table(match=match), _facts(**given))


def test_first_table_that_matches_decides() -> None:
    tables = [_table(match={"image": ["agent:*"]}), _every(permissive=True)]
    for image, expected in (("agent:1", "agents"), ("other", "every")):
        decision = decide(_ID, _facts(image=image), tables)
        assert decision is not None
        assert decision.table == expected
        assert decision.sandbox.permissive is (expected == "every")


@pytest.mark.parametrize(
    "given",
    [
        {"annotations": {"org.ocsf-nft.policy": "agents"}},
        {"labels": {"org.ocsf-nft.policy": "agents"}},
        {"policy": "agents"},
        {"policy": "agents", "labels": {"org.ocsf-nft.policy": "agents"}},
    ],
)
def test_container_can_ask_for_a_table_without_patterns(given: dict[str, Any]) -> None:
    decision = decide(_ID, _facts(**given), [_table(), _every(action="allow")])
    assert decision is not None
    assert decision.table == "agents"


@pytest.mark.parametrize(
    ("given", "tables", "reason"),
    [
        ({}, [], r"no \[\[attach\]\] table matches it"),
        ({"image": "x"}, [_table()], r"matches it \(image x\): add one"),
        ({}, [_every(action="refuse")], "the .* table every refuses it"),
        ({"policy": "missing"}, [_every()], 'policy "missing", and no'),
        ({"policy": "agents"}, [_every(), _table()], "but the table every matches it first"),
        ({"policy": "every"}, [_table("every", match={"pod": ["x"]})], "but none matches it first"),
        (
            {"policy": "a", "labels": {"org.ocsf-nft.policy": "b"}},
            [_table("a"), _table("b")],
            r"several policies \(a, b\)",
        ),
        ({"network": "host"}, [_every()], "network namespace of the host"),
        ({"network": "shared"}, [_every()], "joins a network namespace of other processes"),
    ],
)
def test_container_is_refused_with_the_reason(
    given: dict[str, Any], tables: list[AttachConfig], reason: str
) -> None:
    with pytest.raises(ContainerRefusedError, match=reason):
        decide(_ID, _facts(**given), tables)


@pytest.mark.parametrize("network", ["own", "shared", "host"])
def test_container_starts_without_a_fence_if_a_table_allows_it(network: str) -> None:
    assert decide(_ID, _facts(network=network), [_every(action="allow")]) is None


def test_container_in_a_fenced_namespace_is_covered() -> None:
    for tables in ([], [_table()], [_every()], [_every(action="allow")]):
        assert decide(_ID, _facts(network="shared"), tables, is_covered=True) is None


def test_container_in_a_fenced_namespace_can_be_refused() -> None:
    with pytest.raises(ContainerRefusedError):
        decide(_ID, _facts(network="shared"), [_every(action="refuse")], is_covered=True)


def test_sandbox_has_the_policy_and_the_identity_of_the_container() -> None:
    facts = _facts(
        runtime="docker",
        image="agent:1",
        image_id="sha256:77",
        labels={"team": "search", "role": "x", "no label\n": "x", "long": "x" * 257},
        pod={"name": "p", "namespace": "n", "uid": "u"},
        netns="/run/netns/x",
    )
    table = _every(allow=["udp:10.0.0.2:53"], exclusive=True, labels={"role": "agent"})
    decision = decide(_ID, facts, [table])
    assert decision is not None
    assert decision.sandbox.name == "web-3f3f3f3f3f3f"
    assert decision.sandbox.given() == {
        "pid": 42,
        "proxy": _PROXY,
        "allow": ["udp:10.0.0.2:53"],
        "exclusive": True,
        "install": True,
        "container": {
            "uid": _ID,
            "name": "web",
            "runtime": "docker",
            "image_uid": "sha256:77",
            "image_name": "agent:1",
            "pod_uid": "u",
            "orchestrator": "kubernetes",
            "labels": {
                "role": "x",
                "team": "search",
                "io.kubernetes.pod.name": "p",
                "io.kubernetes.pod.namespace": "n",
            },
        },
        "labels": {"role": "agent"},
    }
    decision.sandbox.check()


def test_sandbox_of_a_cni_plugin_has_the_path_of_the_namespace() -> None:
    facts = ContainerFacts.model_validate({"id": _ID, "netns": "/run/netns/cni-1"})
    decision = decide(_ID, facts, [_every()])
    assert decision is not None
    assert decision.sandbox.netns == "/run/netns/cni-1"
    assert decision.sandbox.pid is None


def test_policy_of_a_cni_plugin_is_in_place_of_a_table() -> None:
    facts = _facts(sandbox={"proxy": _PROXY, "permissive": True})
    decision = decide(_ID, facts, [_every(action="refuse")])
    assert decision is not None
    assert decision.sandbox.permissive is True


@pytest.mark.parametrize(
    ("sandbox", "reason"),
    [
        ({"proxies": []}, "policy of its CNI plugin is wrong: there is no key proxies"),
        ({"netns": "x", "proxy": _PROXY}, "is wrong: has netns, which is not for containers"),
        ({}, "needs --proxy"),
    ],
)
def test_wrong_policy_of_a_cni_plugin_is_refused(sandbox: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        decide(_ID, _facts(sandbox=sandbox), [])


def test_policy_of_a_cni_plugin_is_given_once() -> None:
    with pytest.raises(ValueError, match="both a policy and a sandbox"):
        _facts(sandbox={"proxy": _PROXY}, policy="x")


def test_number_of_labels_is_limited() -> None:
    facts = _facts(labels={f"label-{number:02}": "x" for number in range(40)})
    decision = decide(_ID, facts, [_every()])
    assert decision is not None
    assert decision.sandbox.container is not None
    assert len(decision.sandbox.container.labels) == 32


@pytest.mark.parametrize(
    ("key", "called", "expected"),
    [
        (_ID, "web", "web-3f3f3f3f3f3f"),
        (_ID, _ID, "3f3f3f3f3f3f"),
        (_ID, "../a b/ü", "..-a-b-3f3f3f3f3f3f"),
        (_ID, "x" * 200, "x" * 51 + "-3f3f3f3f3f3f"),
        (_ID, "/", "3f3f3f3f3f3f"),
        ("web-4fb99aab", "web", "web-4fb99aab"),
    ],
)
def test_name_of_a_sandbox(key: str, called: str, expected: str) -> None:
    assert sandbox_name(key, called) == expected


def test_names_of_sandboxes_with_strange_ids_differ() -> None:
    keys = ["a" * 65, "a" * 66, "a/b", "a b", "..", "."]
    names = {sandbox_name(key, "web") for key in keys}
    assert len(names) == len(keys)
    assert all(name.startswith("web-") for name in names)


@pytest.mark.parametrize("missing", ["id", "pid"])
def test_facts_without_an_id_or_a_namespace_are_refused(missing: str) -> None:
    given: dict[str, Any] = {"id": _ID, "pid": 42}
    del given[missing]
    with pytest.raises(ValueError, match=missing):
        ContainerFacts.model_validate(given)


def test_config_has_attach_tables() -> None:
    found = config.parse(
        {
            "sandbox": [{"name": "a"}],
            "attach": [
                {"name": "agents", "match": {"image": ["agent:*"]}, "proxy": _PROXY},
                {"name": "rest", "match": {"container": ["*"]}, "action": "allow"},
            ],
        },
        where="test",
    )
    assert [table.name for table in found.attach] == ["agents", "rest"]
    assert found.attach[0].policy() == {"proxy": _PROXY}


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"name": "x"}, "a fence of profile sandbox needs --proxy"),
        ({"name": "x", "proxy": _PROXY, "netns": "a"}, "has netns, which is not for containers"),
        ({"name": "x", "proxy": _PROXY, "install": True}, "has install"),
        ({"name": "x", "profile": "tap"}, "profile tap"),
        ({"name": "x", "action": "allow", "proxy": _PROXY}, "action allow and a policy"),
        ({"name": "x", "action": "stop"}, "must be fence, allow or refuse"),
        ({"name": "x", "match": {"images": []}}, "did you mean image"),
        ({"name": "a b"}, "is no sandbox name"),
        ({"match": {}}, "name"),
    ],
)
def test_wrong_table_is_an_error(table: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        config.parse({"sandbox": [{"name": "a"}], "attach": [table]}, where="test")


def test_tables_have_different_names() -> None:
    table = {"name": "x", "proxy": _PROXY}
    with pytest.raises(UsageError, match="same name"):
        config.parse({"sandbox": [{"name": "a"}], "attach": [table, table]}, where="test")


def test_policy_of_containers_may_have_host_names() -> None:
    names = [f"tcp:a{number}.test:1" for number in range(33)]
    _table(proxy=["proxy.test:3128"], allow=names[2:]).check()
    with pytest.raises(
        UsageError, match=r'\[\[attach\]\] "agents": sandbox agents has 33 host nam'
    ):
        _table(allow=names).check()


def test_pod_of_a_container_is_a_resource_of_its_findings() -> None:
    pod = {"name": "agent-0", "namespace": "team-1", "uid": "0b6f1b8e-7d1a-4f0e-9d53-5b5f3c2a9c11"}
    decision = decide(_ID, _facts(pod=pod), [_every(tenant_uid="acme")])
    assert decision is not None
    context = Context(container=decision.sandbox.event_container)
    _, container, found = resources_of(context, decision.sandbox.name)
    assert (found.type, found.name, found.namespace, found.uid) == ("pod", *pod.values())
    assert (container.uid, container.namespace) == (_ID, "team-1")
    assert decision.sandbox.tenant_uid == "acme"
