"""Secrets by their position among the words of a command: values of options such as ``-u``."""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Final, NamedTuple

from ocsf_nft.redaction import forms

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: Commands in quotes in commands in quotes, and so on.
_MOST_DEPTH: Final = 3


class Word(NamedTuple):
    """Word of a command, and its position in the whole text."""

    text: str
    start: int


class _Options(NamedTuple):
    """Options of a program whose value is a secret.

    ``separate`` matches an option whose value is the next word, ``attached`` one that begins with
    the option. If ``needs`` is given, a value with none of its characters is no secret.
    """

    separate: str | None = None
    attached: str | None = None
    needs: str = ""

    def is_secret(self, value: str) -> bool:
        """Return True if the value of one of the options is a secret."""
        return not self.needs or not set(self.needs).isdisjoint(value)


_PASSWORD: Final = _Options("-p", "-p")
_ATTACHED: Final = _Options(None, "-p")
_LARGE_PASSWORD: Final = _Options("-P", "-P")
#: Options of curl without a value, which may stand before another one: ``curl -su user:password``.
_FLAGS: Final = "[0-9aBfgGiIjJklLMnNOpqRsSvVZ#]*"
#: Options by program. ``login`` after a name: only for this subcommand.
_PROGRAMS: Final = {
    "curl": _Options(
        rf"-{_FLAGS}[uUbE]|--user|--proxy-user|--cert",
        rf"-{_FLAGS}[uUbE]|[\w.-]{{1,64}}:(?=[^/@]{{1,256}}@)",
        ":=@",
    ),
    "mysql|mysqldump|mysqlimport|mysqlsh|mysqlcheck|mysqlpump|mysqlslap|mysqlshow": _ATTACHED,
    "mysqlbinlog|mysql_upgrade|mariadb|mariadb-dump|mariadb-import|mariadb-check": _ATTACHED,
    "mycli|mydumper|myloader": _PASSWORD,
    "mysqladmin|mariadb-admin": _Options("password", "-p"),
    "mongo|mongosh|mongodump|mongorestore|mongoexport|mongoimport|sshpass": _PASSWORD,
    "useradd|usermod|psexec|twine|cqlsh|cypher-shell|impala-shell|beeline|rabbitmqadmin": _PASSWORD,
    "hydra|nxc|netexec|crackmapexec|evil-winrm|ncftp|ncftpput|ncftpget|rdesktop|yt-dlp": _PASSWORD,
    "docker login|podman login|buildah login|skopeo login|nerdctl login|helm login": _PASSWORD,
    "oras login|crane login|regctl login|az login|oc login|cf login|poetry publish": _PASSWORD,
    "vault login|cargo login": _Options("login"),
    "ngrok authtoken": _Options("authtoken"),
    "vault put": _Options(None, r"[\w.-]{1,64}="),
    "kubectl secret": _Options("--from-literal", "--from-literal=[^=]{1,256}="),
    "gh secret": _Options("-b|--body", "-b|--body="),
    "aws put-parameter": _Options("--value", "--value="),
    "aws create-secret|aws put-secret-value|aws update-secret": _Options(
        "--secret-string", "--secret-string="
    ),
    "etcdctl|ctr pull|ctr push": _Options("-u|--user", "--user=", ":"),
    "redis-cli|valkey-cli": _Options("-a"),
    "http|https|xh|xhs": _Options("-a|--auth", "-a", ":"),
    "ldapsearch|ldapadd|ldapmodify|ldapdelete|ldapwhoami|ldappasswd": _Options("-w", "-w"),
    "smbclient|rpcclient|smbget|winexe|wmic": _Options("-U|--user", "-U|--user=", "%"),
    "smbmap": _PASSWORD,
    "zip|unzip|ipmitool|sqlcmd|bcp|mosquitto_pub|mosquitto_sub": _LARGE_PASSWORD,
    "7z|7za|7zr|rar|unrar": _Options(None, "-h?p"),
    "snmpget|snmpwalk|snmpset|snmpbulkwalk": _Options("-[cAX]", "-[cAX]"),
    "xfreerdp|xfreerdp3": _Options(None, "/p:"),
    "sqlplus|sqlldr|expdp|impdp": _Options(None, r"[\w.]{1,64}/(?=[^/@]{1,256}(?:@|\Z))"),
    "ncat|nc": _Options("--proxy-auth", None, ":"),
    "lftp": _Options("-u|--user", "-u", ","),
    "openssl": _Options("-[kK]"),
    "ssh-keygen": _Options("-[NP]", "-[NP]"),
    "nmcli": _Options("password|psk"),
    "ab": _Options("-[AP]", None, ":"),
    "plink|pscp|psftp": _Options("-pw"),
}
_BY_PROGRAM: Final = {
    tuple(name.split(" ")): options
    for names, options in _PROGRAMS.items()
    for name in names.split("|")
}
_FIRST_WORDS: Final = frozenset(name[0] for name in _BY_PROGRAM)
#: Options of any program whose value is the next word.
_OPTION: Final = partial(
    forms.compiled,
    rf"(?!--?no-)--?[\w.-]*?(?:{forms.NAMES}|(?<![a-z])(?:pass|pwd?|psk|creds?|auth|jwt|bearer))",
    re.IGNORECASE,
)
#: Options that mostly name a file or a method: a value with one of these characters is a secret.
_OF_FILES: Final = re.compile(
    r".*(?:(?:private|encryption|signing)[_-]?key|credentials?|cookie|creds?|(?<![a-z])auth)",
    re.IGNORECASE,
)
_OF_SECRETS: Final = ":="
#: Settings: ``aws configure set aws_secret_access_key VALUE``.
_SETTING: Final = partial(
    forms.compiled, rf"(?!set-)[\w./:@-]{{0,128}}(?:{forms.NAMES}|_auth)", re.IGNORECASE
)
_SETTERS: Final = frozenset(("set", "config", "--global", "--local", "--system"))
_NO_VALUE: Final = re.compile(
    r"--[a-z][a-z0-9-]*(?:=.*)?|-[A-Za-z]|-[a-z]+=.*|\d|(?:id|src|source|type)=.*", re.DOTALL
)
_SHELLS: Final = frozenset(("sh", "bash", "dash", "ash", "zsh", "ksh", "su", "runuser", "busybox"))
_SHELL_COMMAND: Final = re.compile("-[a-z]*c")
_SHELL_WORD: Final = re.compile(
    r"""(?:\\.|"(?:\\.|[^"\\])*"?|'[^']*'?|[^\s"'\\;&|<>()`])+|[^\s;&|<>()`]""", re.DOTALL
)

#: Words of a text that may be a program: not those of an address or a file name.
_PROGRAM: Final = re.compile(r"[A-Za-z0-9_-]++(?![:.=])")
_SPECIAL: Final = re.compile(r"""[\s"'\\]""")
_MOST_NAME: Final = 128


def may_have_secret(text: str) -> bool:
    """Return False if no option in a text can have a secret that :mod:`.forms` does not know."""
    return not _FIRST_WORDS.isdisjoint(_PROGRAM.findall(text))


def spans(words: Sequence[Word], *, end: int = -1, depth: int = 0) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each secret among the words of a command; they may overlap.

    The word that ends at ``end`` was cut there.
    """
    program = before = earlier = ""
    options: _Options | None = None
    for text, start in words:
        stop = start + len(text)
        # The forms in a plain word were found in the text around it.
        is_short = len(text) < forms.SHORTEST and stop != end
        if not is_short and (depth == 0 or _SPECIAL.search(text) is not None):
            is_script = _is_script(before, earlier, len(words))
            for first, last in forms.spans(text, is_cut=stop == end, is_script=is_script):
                yield start + first, start + last
        if not is_short and depth < _MOST_DEPTH and _SPECIAL.search(text) is not None:
            yield from spans(_inner(text, start), end=end, depth=depth + 1)
        if _is_value(before, earlier, text, options):
            yield start, stop
        if options is not None:
            yield from _attached(text, start, options)
        if not text.startswith("-"):
            name = text.rpartition("/")[2] if len(text) < _MOST_NAME else ""
            if name in _FIRST_WORDS:
                program, options = name, _BY_PROGRAM.get((name,))
            elif program and (program, text) in _BY_PROGRAM:
                options = _BY_PROGRAM[program, text]
        before, earlier = text, before


def _is_script(before: str, earlier: str, words: int) -> bool:
    """Return True if a word is a whole command: that of a shell, or the title of a process."""
    if words == 1:
        return True
    return earlier.rpartition("/")[2] in _SHELLS and _SHELL_COMMAND.fullmatch(before) is not None


def _is_value(before: str, earlier: str, text: str, options: _Options | None) -> bool:
    """Return True if a word is the secret value of the word before it."""
    if len(before) > _MOST_NAME:
        return False
    separate = None if options is None else options.separate
    if options is not None and separate is not None and _fullmatch(separate, before):
        is_value = options.is_secret(text)
    elif before.startswith("-"):
        is_value = _OPTION().fullmatch(before) is not None and (
            not _OF_FILES.fullmatch(before) or not set(_OF_SECRETS).isdisjoint(text)
        )
    else:
        is_value = earlier in _SETTERS and _SETTING().fullmatch(before) is not None
    return is_value and _NO_VALUE.fullmatch(text) is None


def _fullmatch(pattern: str, text: str) -> bool:
    return forms.compiled(pattern).fullmatch(text) is not None


def _attached(text: str, start: int, options: _Options) -> Iterator[tuple[int, int]]:
    found = None if options.attached is None else forms.compiled(options.attached).match(text)
    if found is not None and found.end() < len(text) and options.is_secret(text[found.end() :]):
        yield start + found.end(), start + len(text)


def _inner(text: str, start: int) -> list[Word]:
    """Return the words of a text that is a command, without the quotes around them."""
    found: list[Word] = []
    for match in _SHELL_WORD.finditer(text):
        word, at = match[0], start + match.start()
        if len(word) > 1 and word[0] == word[-1] and word[0] in "\"'":
            word, at = word[1:-1], at + 1
        found.append(Word(word, at))
    return [] if len(found) == 1 and found[0].text == text else found
