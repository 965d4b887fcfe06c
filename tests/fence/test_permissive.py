"""A permissive fence refuses nothing, whatever names its values have."""

from __future__ import annotations

import dataclasses
import importlib.resources
import re
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.fence import permissive, ruleset
from ocsf_nft.fence.spec import TRANSPORTS, FenceSpec, LogTransport, Surroundings, Tap
from ocsf_nft.fence.values import endpoint, subnet

_PROXIES: Final = (endpoint("10.0.0.1:3128"), endpoint("[fd00::1]:3128"))
SPECS: Final = {
    "sandbox": FenceSpec(sandbox="drop", proxies=_PROXIES, guard_device="reject"),
    "sidecar": FenceSpec(sandbox="drop", proxies=_PROXIES, proxy_uids=(7, 9)),
    "tap": FenceSpec(
        sandbox="drop",
        proxies=_PROXIES,
        tap=Tap(device="drop", subnets=(subnet("172.16.0.1/30"), subnet("fd00:7::1/64"))),
    ),
    "strict tap": FenceSpec(
        sandbox="drop",
        proxies=_PROXIES,
        tap=Tap(
            device="drop",
            subnets=(subnet("172.16.0.1/30"), subnet("fd00:7::1/64")),
            is_strict=True,
        ),
    ),
    "tap over IPv4": FenceSpec(
        sandbox="drop",
        proxies=_PROXIES,
        tap=Tap(device="drop", subnets=(subnet("172.16.0.1/30"),), mac="02:00:00:00:00:09"),
    ),
}
AROUND: Final = Surroundings(links=("drop", "reject"), uplinks=("drop",))
FILES: Final = ("sandbox.nft", "sidecar.nft", "tap.nft", "guard.nft")


def policy(file: str) -> str:
    return (importlib.resources.files("ocsf_nft.rules") / file).read_text("utf-8")


def refusals(text: str) -> tuple[str, ...]:
    """Return the lines of a policy that refuse packets, without their indentation."""
    return tuple(
        line.strip()
        for line in text.splitlines()
        if permissive._REFUSAL.search(permissive._unquoted(line))
    )


def statements(text: str) -> list[str]:
    """Return the lines that nft reads, without quoted text."""
    lines = (re.sub(r'"[^"]*"', '""', line).strip() for line in text.splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def words(text: str) -> set[str]:
    return {word for line in statements(text) for word in re.findall(r"[\w-]+", line)}


def permissive_spec(name: str, *, has_changed: bool = False) -> FenceSpec:
    return dataclasses.replace(SPECS[name], is_permissive=True, has_changed=has_changed)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("has_changed", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_permissive_fence_refuses_nothing_with_any_profile(
    name: str, has_changed: bool, transport: LogTransport
) -> None:
    text = ruleset.fence_and_guard(
        permissive_spec(name, has_changed=has_changed), AROUND, transport
    )
    assert not words(text) & {"drop", "reject", "queue"}
    assert refusals(text) == ()


@pytest.mark.parametrize("name", SPECS)
def test_permissive_fence_changes_refusing_statements_to_accept_and_no_others(name: str) -> None:
    spec = dataclasses.replace(SPECS[name], has_changed=True)
    enforcing = statements(ruleset.fence_and_guard(spec, AROUND, "nflog"))
    converted = iter(
        statements(
            ruleset.fence_and_guard(permissive_spec(name, has_changed=True), AROUND, "nflog")
        )
    )
    changed = 0
    for line in enforcing:
        if (
            re.search(r"\b(refused|overflow|logged|flows[46]|others)_", line)
            or "log prefix" in line
        ):
            continue  # counters and sets have other names
        if line.endswith("counter name stopped_link"):
            continue  # a permissive fence stops no frame
        expected = re.sub(r"(?<![\w-])(drop|reject( with .*)?)(?![\w-])", "accept", line)
        assert expected in converted, line  # in this order
        changed += expected != line
    assert changed >= 5


@pytest.mark.parametrize("name", SPECS)
def test_permissive_fence_counts_and_logs_packets_that_would_be_refused(name: str) -> None:
    text = ruleset.fence_and_guard(permissive_spec(name), AROUND, "nflog")
    prefixes = re.findall(r'log prefix "(ocsf-nft:[^"]*)"', text)
    assert prefixes == [
        prefix.replace("$sandbox", "$sandbox") + "permissive:"
        for prefix in re.findall(
            r'log prefix "(ocsf-nft:[^"]*)"', ruleset.fence_and_guard(SPECS[name], AROUND, "nflog")
        )
    ]
    for rule in re.findall(r"jump account_([\w-]+)$", text, re.MULTILINE):
        assert f"counter name refused_{rule}_permissive" in text
        assert f"counter name refused_{rule}\n" not in text


@pytest.mark.parametrize("name", SPECS)
def test_enforcing_fence_has_no_permissive_rules(name: str) -> None:
    text = ruleset.fence_and_guard(SPECS[name], AROUND, "nflog")
    assert "permissive" not in text
    assert "evaluated" not in text
    assert refusals(text)


@pytest.mark.parametrize("is_permissive", [False, True])
@pytest.mark.parametrize("name", SPECS)
def test_fence_with_a_changed_mode_has_the_counters_of_both_modes_and_uses_one(
    name: str, is_permissive: bool
) -> None:
    spec = dataclasses.replace(SPECS[name], is_permissive=is_permissive, has_changed=True)
    text = ruleset.fence_and_guard(spec, AROUND, "nflog")
    rules = re.findall(r"^\tcounter refused_([\w-]+?)(?:_permissive)? \{ \}$", text, re.MULTILINE)
    assert len(rules) == 2 * len(set(rules)) >= 8
    for rule in set(rules):
        unused, used = f"{rule}_permissive", rule
        if is_permissive:
            unused, used = used, unused
        for kind in ("set flows4", "set flows6", "set others"):
            assert text.count(f"\t{kind}_{unused} {{") == text.count(f"\t{kind}_{used} {{") == 1
        assert f"counter name refused_{used}\n" in text
        assert f"counter name refused_{unused}\n" not in text
        assert f"@flows4_{used} {{" in text
        assert f"@flows4_{unused} {{" not in text


@pytest.mark.parametrize("file", FILES)
def test_make_permissive_converts_a_whole_policy_file(file: str) -> None:
    text = policy(file)
    refusing = refusals(text)
    assert len(refusing) == sum(
        bool({"drop", "reject"} & words(line)) for line in text.splitlines()
    )
    assert refusing
    converted = permissive.make_permissive(text, "")
    assert refusals(converted) == ()
    assert permissive.make_permissive(converted, "") == converted


@pytest.mark.parametrize(
    ("line", "converted"),
    [
        ("\t\tdrop\n", "\t\taccept\n"),
        ("\t\tiifname $uplinks drop\n", "\t\tiifname $uplinks accept\n"),
        ("\t\treject\n", "\t\taccept\n"),
        ("\t\tmeta l4proto tcp reject with tcp reset\n", "\t\tmeta l4proto tcp accept\n"),
        ("\t\treject with icmpx admin-prohibited\n", "\t\taccept\n"),
        ("\t\treject with icmpv6 type no-route\n", "\t\taccept\n"),
        ("\t\ttype filter hook input priority 0; policy drop;\n",
         "\t\ttype filter hook input priority 0; policy accept;\n"),
        ("\t\ttcp dport vmap { 1 : drop, 2 : accept }\n",
         "\t\ttcp dport vmap { 1 : accept, 2 : accept }\n"),
        ('\t\tiif "lo" drop\n', '\t\tiif "lo" accept\n'),
    ],
)  # fmt: skip
def test_make_permissive_changes_a_refusing_statement_to_accept(line: str, converted: str) -> None:
    assert (
        permissive.make_permissive(f"# accounting.nft: inet x\n{line}", "").splitlines(True)[-1]
        == converted
    )


@pytest.mark.parametrize(
    "line",
    [
        "\t\tjump drop_it\n",
        "\t\tjump no-drop\n",
        "\t\tgoto reject.all\n",
        "\t# drop\n",
        '\tcomment "drop"\n',
        "\t\tcounter name dropped\n",
    ],
)
def test_make_permissive_changes_no_name(line: str) -> None:
    assert permissive.make_permissive(f"# accounting.nft: inet x\n{line}", "").endswith(line)


@pytest.mark.parametrize("line", ['\t\toifname "drop" drop\n', "\t\taccept # not drop\n"])
def test_make_permissive_refuses_an_ambiguous_line(line: str) -> None:
    with pytest.raises(AssertionError):
        permissive.make_permissive(f"# accounting.nft: inet x\n{line}", "")


def test_make_permissive_requires_a_mark_for_its_additions() -> None:
    with pytest.raises(AssertionError, match="accounting is inserted"):
        permissive.make_permissive("\t\tdrop\n", "table inet x {\n}\n")


@given(st.text(alphabet='drop reject\t\n;{}"#x-_.', max_size=60))
def test_make_permissive_removes_all_refusals_or_raises(text: str) -> None:
    try:
        converted = permissive.make_permissive(f"# accounting.nft: inet x\n{text}\n", "")
    except AssertionError:
        return
    assert refusals(converted) == ()
