"""Tests of the replacement of secrets in command lines and other texts."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocsf_nft.redaction import Redactor
from tests.redaction.cases import BY_POSITION, ORDINARY, PLAIN, SECRET, TOKENS

KEY = bytes(32)
REDACTOR = Redactor(KEY)
PLACEHOLDER = re.compile(r"\[redacted:[0-9a-f]{12}\]")
_QUOTED = ("sh", "bash")


def placed(words: list[str], secret: str) -> list[str]:
    return [word.replace(SECRET, secret) for word in words]


def is_one_word(words: list[str]) -> bool:
    """Return True if no character of the secret can end it: it is the end of its argument."""
    word = next(word for word in words if SECRET in word)
    return (
        word.endswith(SECRET)
        and words[0] not in _QUOTED
        and len(words) > 1
        and not re.search("[?&;]", word)
        and "//" not in word
    )


def test_redaction_has_many_forms() -> None:
    assert len(BY_POSITION) + len(TOKENS) >= 50
    assert len(set(map(tuple, BY_POSITION))) == len(BY_POSITION)


@pytest.mark.parametrize("words", BY_POSITION)
def test_command_line_has_no_secret_that_its_position_shows(words: list[str]) -> None:
    found = REDACTOR.command_line(placed(words, PLAIN))
    assert PLAIN not in found
    assert len(PLACEHOLDER.findall(found)) == 1
    # All other arguments are unchanged.
    (number,) = (number for number, word in enumerate(words) if SECRET in word)
    assert found.startswith(" ".join(words[:number]))
    assert found.endswith(" ".join(words[number + 1 :]))
    assert PLAIN not in REDACTOR.command_line(["sudo", "-E", *placed(words, PLAIN)])
    assert REDACTOR.text(found) == found
    assert REDACTOR.command_line(found.split(" ")) == found


@pytest.mark.parametrize("words", [each for each in BY_POSITION if is_one_word(each)])
@pytest.mark.parametrize(
    "secret",
    ['Xa"Xb', "Xa 'Xb\" Xc", "Xa\\Xb", "Xa;Xb&Xc|Xd", "Xä\u202eXb", "Xa\nXb", "Xa\udcffXb"],
)
def test_command_line_secret_is_redacted_as_a_whole(words: list[str], secret: str) -> None:
    found = REDACTOR.command_line(placed(words, secret))
    assert "X" not in found.replace(" ".join(words).replace(SECRET, ""), "").replace("X-Api", "")
    assert PLACEHOLDER.search(found)


@pytest.mark.parametrize(("start", "rest"), TOKENS)
@pytest.mark.parametrize("words", [["x", "§"], ["x", "--y=§"], ["x", "a/§/b"], ["sh", "-c", "x §"]])
def test_command_line_has_no_known_token(start: str, rest: str, words: list[str]) -> None:
    found = REDACTOR.command_line(placed(words, start + rest))
    assert rest[:8] not in found
    assert rest[-8:] not in found
    assert PLACEHOLDER.search(found)
    assert REDACTOR.text(found) == found


@pytest.mark.parametrize("words", ORDINARY)
def test_ordinary_command_line_is_unchanged(words: list[str]) -> None:
    assert REDACTOR.command_line(words) == " ".join(words)
    assert REDACTOR.text(" ".join(words)) == " ".join(words)
    assert REDACTOR.command_line(["env", *words]) == f"env {' '.join(words)}"


@pytest.mark.parametrize(
    ("words", "start", "rest"),
    [
        *((words, "", "Q9" * 12) for words in BY_POSITION if len(words) > 1),
        *((["x", SECRET], *token) for token in TOKENS),
    ],
)
def test_cut_command_line_has_no_part_of_a_secret(words: list[str], start: str, rest: str) -> None:
    words = placed(words, start + rest)
    begin = " ".join(words).index(start + rest) + len(start)
    for length in range(4, len(rest) + 1):
        left, cut = begin + length, []
        for word in words:
            cut.append(word[: max(0, left)])
            left -= len(word) + 1
            if left <= 0:
                break
        found = REDACTOR.command_line(cut, is_cut=True)
        assert found.endswith("…")
        assert rest[:4] not in found, (length, found)


def test_equal_secrets_have_equal_placeholders() -> None:
    one = REDACTOR.command_line(["a", "--password", "x y"])
    other = REDACTOR.text("b --password='x y' c")
    assert PLACEHOLDER.findall(one) == PLACEHOLDER.findall(other) != []
    assert PLACEHOLDER.findall(one) != PLACEHOLDER.findall(
        REDACTOR.command_line(["a", "--password", "x z"])
    )
    assert Redactor(bytes([1] * 32)).command_line(["a", "--password", "x y"]) != one
    assert Redactor().command_line(["a", "--password", "x y"]) != one
    # printf x | openssl dgst -sha256 -mac HMAC -macopt hexkey:000000…
    assert REDACTOR.command_line(["a", "--password", "x"]) == "a --password [redacted:4cbc96099a64]"


def test_secret_that_occurs_twice_is_redacted_twice() -> None:
    found = REDACTOR.command_line(["a", f"--token={PLAIN}", "--password", PLAIN, "x"])
    assert PLAIN not in found
    assert len(PLACEHOLDER.findall(found)) == 2
    assert len(set(PLACEHOLDER.findall(found))) == 1


def test_more_secrets_than_the_limit_leave_nothing_of_the_rest() -> None:
    found = REDACTOR.command_line(["x", *[f"--token={PLAIN}{n}" for n in range(100)]])
    assert PLACEHOLDER.fullmatch(found)


def test_patterns_of_the_configuration_are_secrets_too() -> None:
    redactor = Redactor(KEY, [re.compile("corp-[0-9]+"), re.compile("pin=([0-9]+)")])
    assert PLACEHOLDER.sub("*", redactor.command_line(["x", "corp-42", "pin=7"])) == "x * pin=*"
    assert Redactor(KEY, [re.compile("")]).command_line(["x"]) == "x"


def test_redaction_that_is_off_changes_nothing() -> None:
    redactor = Redactor(KEY, [re.compile("x")], is_enabled=False)
    assert redactor.command_line(["x", f"--password={PLAIN}"]) == f"x --password={PLAIN}"
    assert redactor.text("token=x") == "token=x"


_PARTS = st.sampled_from([
    "password=", "-p", "mysql ", "://", "@", "?sig=", "eyJ", "sk-", "glpat-", '"', "'", "\\", " ",
    "-----BEGIN PRIVATE KEY", "Q~", "a", ".", "-", "Authorization: ", "Bearer ", "https://a:b", ";",
    "AKIA", "--token", "curl -u ", "[redacted:000000000000]", ",", "{", "=", ":", "\n", "é",
])  # fmt: skip


@given(st.lists(_PARTS, min_size=1, max_size=4), st.lists(_PARTS, max_size=3), st.booleans())
def test_redaction_of_a_hostile_command_line_is_quick(
    repeated: list[str],
    end: list[str],
    is_cut: bool,
) -> None:
    part = "".join(repeated)
    text = (part * 4096)[:4096] + "".join(end)
    for words in ([text], text.split(" "), ["sh", "-c", text]):
        started = time.thread_time()
        REDACTOR.command_line(words, is_cut=is_cut)
        # Usually below 5 ms; a pattern that backtracks takes minutes.
        assert time.thread_time() - started < 0.25


def test_proxy_of_curl_without_a_scheme_has_no_password() -> None:
    found = REDACTOR.command_line(["curl", "-x", f"me:{PLAIN}@proxy:3128", "https://host/"])
    assert PLACEHOLDER.sub("*", found) == "curl -x me:* https://host/"


@pytest.mark.parametrize("part", ["https://a:b", "eyJ--tokenglpat-", "://", "eyJ", "<a password "])
def test_redaction_takes_time_in_proportion_to_the_length(part: str) -> None:
    # 16 times the length: a pattern that takes quadratic time takes 256 times as long.
    short, long = (f"@ {part * 100_000}"[:size] for size in (10_000, 160_000))
    assert _seconds(long) < 100 * max(_seconds(short), 0.0005)


def test_redaction_of_many_backslashes_is_quick() -> None:
    # Usually below 5 ms; a search from each backslash takes seconds.
    assert _seconds('password="' + "\\" * 16_384) < 0.25


def _seconds(text: str) -> float:
    found = []
    for _ in range(3):
        started = time.thread_time()
        REDACTOR.text(text)
        found.append(time.thread_time() - started)
    return min(found)
