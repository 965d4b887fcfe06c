"""Forms of secrets in texts: names that a value follows, credentials in URLs, known tokens.

No pattern can take more than linear time: repeated parts do not overlap with what follows them.
"""

from __future__ import annotations

import re
import string
from functools import cache, partial
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

#: The large patterns are compiled when a text needs them: most commands read no command line.
compiled: Final = cache(re.compile)

#: Name endings of secrets, such as ``DB_PASSWORD`` or ``X-Api-Key``.
NAMES: Final = (
    r"password|passwd|passphrase|passcode|secret|token|(?:api|auth)[_-]?key|secret[_-]?key"
    r"|(?:secret[_-]?)?access[_-]?key(?:[_-]?id)?|(?:account|private|encryption|signing)[_-]?key"
    r"|secret[_-]?key[_-]?base"
    r"|subscription-key|access[_-]?signature|authorization|authentication|credentials?|cookie"
    r"|oauth2-bearer|(?:db|user|ftp|smtp|ldap|root|admin|http|proxy|key|store|trust)pass"
)
#: Shorter endings, which must be a whole word: ``bypass`` is no secret.
_SHORT_NAMES: Final = r"pass|pw|pwd(?!=/)|auth|psk|passin|passout|jwt|creds?|(?<=_)pat"
_NAME: Final = rf"(?:{NAMES}|(?<![A-Za-z0-9])(?:{_SHORT_NAMES}))"
_SECRET_NAME: Final = partial(compiled, f".*{_NAME}", re.IGNORECASE)
#: A name, and the start of its value: ``name=value``, ``Name: value``, ``"name": "value"``,
#: ``x['name'] = 'value'``, ``name%3Dvalue``, ``<name>value``.
_NAMED: Final = partial(
    compiled,
    rf"""{_NAME}(?:_?\d{{1,3}})?(?:\]|%5d)?(?:\\{{0,3}}["'])?\]?(?:\s{{0,3}}:(?!:)\s{{0,3}}|=|\s{{1,3}}=\s{{1,3}}|%3d)"""
    rf"""|<[\w.:-]{{0,64}}?{_NAME}(?:\s[^<>]{{0,256}})?>""",
    re.IGNORECASE,
)
#: Values of settings that are no secrets, such as that of ``PasswordAuthentication=no``.
_SETTING: Final = re.compile("yes|no|true|false|on|off|none|null", re.IGNORECASE)
#: Parameters of a URL that are secrets beside these names.
_PARAMETER: Final = re.compile(
    r"""[?&;](?:key|sig|signature|code|jwt|hmac|ticket|sid|sessionid|x-(?:amz|goog)-signature)=""",
    re.IGNORECASE,
)
_SCHEME: Final = re.compile(
    r"`?(?:bearer|basic|token|digest|negotiate|ntlm|apikey|splunk|aws4-hmac-sha256)\s{1,3}",
    re.IGNORECASE,
)
#: The same scheme with a token, where no name is before it.
_BEARER: Final = re.compile(
    r"""(?<![A-Za-z0-9])bearer\s{1,3}(?=[^\s"'`]*\d)([\w.~+/=-]{8,}|[\w.~+/=-]+\Z)""",
    re.IGNORECASE | re.ASCII,
)
_QUOTE: Final = re.compile(r"""\\{0,3}["']""")
#: The lookbehind lets the search begin only once in a run of backslashes.
_ESCAPES_AND_QUOTE: Final = re.compile(r"""(?<!\\)(\\*)(["'])""")
#: What follows a closing quote without a space: ``'it'"'"'s'`` is one word.
_JOINED: Final = re.compile(r"""(?:"[^"]*"|'[^']*'|[^\s"'`&;|<>,:)}\]])*""")
#: Text before a name at which the name begins the word, as in ``--env=DB_PASSWORD=``.
_WORD_START: Final = re.compile(r"""[^\s?&;{}"'<>]*""")
_KEY_CHARACTERS: Final = f"{string.ascii_letters}{string.digits}_.-[]%"
_PARAMETER_VALUE: Final = re.compile(r"""[^&#\s"'<>]*""")
_FIELD_VALUE: Final = re.compile(r"""[^;"']*""")
_WORD_VALUE: Final = re.compile(r"""(?:\\.|[^\s"'`&;|<>\\])*""", re.DOTALL)
#: A value in code: a tuple or a call, such as ``('user', 'password')`` or ``Auth('password')``.
_PLAIN_OR_QUOTED: Final = r"""[^()"']++|"[^"]*+"?+|'[^']*+'?+"""
_CALL: Final = re.compile(
    rf"[\w.]{{0,64}}\((?:{_PLAIN_OR_QUOTED}|\((?:{_PLAIN_OR_QUOTED})*+\)?+)*+\)?+"
)

_AUTHORITY: Final = re.compile(r"""://([^\s/?#"'<>]*)""")
_REST_OF_URL: Final = re.compile(r"""[^\s"'<>]*""")
_PORT: Final = re.compile(r"[^:]*|[^:]*:\d*|\[[0-9A-Fa-f:.]*\](?::\d*)?")
#: Schemes whose user is often a token.
_WEB: Final = ("http", "https", "git+https", "git+http")

_PEM: Final = re.compile("-----BEGIN [A-Z ]{0,40}PRIVATE KEY")
_PEM_END: Final = re.compile("-----END [A-Z ]{0,40}PRIVATE KEY-----")

#: Starts of known tokens, and their other characters with the minimum number of them.
_TOKENS: Final = {
    r"(?:AKIA|ASIA|ABIA|ACCA)": "[A-Z0-9]{16,}",  # Amazon Web Services
    r"gh[pousr]_|github_pat_": "[A-Za-z0-9_]{20,}",
    r"gl(?:pat|dt|rt|rtr|cbt|ptt|ft|imt|agent|soat|oas|ffct)-": "[A-Za-z0-9_.-]{10,}",
    r"xox[abeoprs]-|xapp-": "[A-Za-z0-9-]{10,}",  # Slack
    r"AIza|ya29\.|GOCSPX-": "[A-Za-z0-9_.-]{20,}",  # Google
    r"sk-|sess-": "[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic
    r"[srp]k_(?:live|test)_|whsec_": "[A-Za-z0-9+/=]{8,}",  # Stripe
    r"npm_|rubygems_|hf_|gsk_|r8_|tgp_v1_": "[A-Za-z0-9_]{20,}",
    r"pypi-|xai-|pplx-|tskey-|lin_api_|ntn_|PMAK-": "[A-Za-z0-9_-]{16,}",
    r"dckr_[op]at_|do[opr]_v1_|dapi|sbp_|sb_secret_": "[A-Za-z0-9_-]{20,}",
    r"hv[sbr]\.|dp\.(?:pt|st|ct|sa|scim)\.": "[A-Za-z0-9_.-]{20,}",  # Vault, Doppler
    r"shp(?:at|ca|pa|ss)_|sq0[a-z]{3}-|NRAK-": "[A-Za-z0-9_-]{20,}",
    r"SG\.": "[A-Za-z0-9_.-]{20,}",  # SendGrid
    r"glsa_|glc_|sntry[su]_|pscale_(?:tkn|pw|oauth)_": "[A-Za-z0-9_+/=.-]{20,}",
    r"pul-|key-": "[a-f0-9]{32,}",
    r"ATATT3|ATCTT3|ATBB": "[A-Za-z0-9_=-]{20,}",  # Atlassian
    r"AGE-SECRET-KEY-1": "[A-Z0-9]{20,}",
    r"eyJ[A-Za-z0-9_-]{8,1024}\.": r"[A-Za-z0-9_.-]{8,}",  # JSON Web Token
    r"LS0tLS1CRUdJTi": "[A-Za-z0-9+/=]{20,}",  # PEM in base64
    r"hooks\.slack\.com/services/": "[A-Za-z0-9/]{10,}",
    r"discord(?:app)?\.com/api/webhooks/": "[A-Za-z0-9/_-]{20,}",
    r"(?<=/bot)\d{6,12}:": "[A-Za-z0-9_-]{30,}",  # Telegram
}
_TOKEN: Final = partial(
    compiled,
    "|".join(
        f"(?<![A-Za-z0-9])(?:{start}){rest}" if start[0] != "(" else f"(?:{start}){rest}"
        for start, rest in _TOKENS.items()
    ),
)
#: Start of a token, for a text that was cut inside the token, and the characters of tokens.
_TOKEN_START: Final = partial(
    compiled, rf"(?<![A-Za-z0-9])(?:{'|'.join(_TOKENS)}|eyJ|[\w~.-]{{3}}\dQ~)"
)
_TOKEN_CHARACTERS: Final = f"{string.ascii_letters}{string.digits}_.+/=:~-"
_AZURE_SECRET: Final = re.compile(r"(?<![\w~.-])[\w~.-]{3}\dQ~[\w~.-]{31,34}", re.ASCII)

#: A text with fewer characters has no name with a value, and no token, unless it is cut.
SHORTEST: Final = 5
#: Texts in lower case: without any of them, a text has no name of a secret, or no known token.
_NAME_HINTS: Final = (
    "pass", "pw", "_pat", "secret", "token", "key", "auth", "cred", "cookie", "psk", "signature",
    "bearer", "sig=", "code=", "jwt", "hmac=", "ticket=", "sid=", "sessionid=",
)  # fmt: skip
_TOKEN_HINTS: Final = (
    "akia", "asia", "abia", "acca", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-",
    "gldt-", "glrt", "glcbt-", "glptt-", "glft-", "glimt-", "glagent-", "glsoat-", "gloas-",
    "glffct-", "glsa_", "glc_", "gsk_", "xox", "xapp-", "aiza", "ya29.", "gocspx-", "sk-", "sess-",
    "k_live_", "k_test_", "whsec_", "npm_", "rubygems_", "hf_", "r8_", "tgp_v1_", "pypi-", "xai-",
    "pplx-", "tskey-", "lin_api_", "ntn_", "pmak-", "dckr_", "dop_v1_", "doo_v1_",
    "dor_v1_", "dapi", "sbp_", "sb_secret_",
    "hvs.", "hvb.", "hvr.", "dp.", "shpat_", "shpca_", "shppa_", "shpss_", "sq0", "nrak-", "sg.",
    "sntry", "pscale_", "pul-", "key-", "atatt3", "atctt3", "atbb", "eyj", "ls0tls1",
    "hooks.slack.com", "/webhooks/", "/bot", "q~",
)  # fmt: skip


def is_secret_name(name: str) -> bool:
    """Return True if the value of a header, an option or a variable with this name is a secret."""
    return _SECRET_NAME().fullmatch(name) is not None


def may_match(text: str) -> bool:
    """Return False if :func:`spans` finds nothing in a text that is not cut; takes microseconds."""
    lower = text.lower()
    return _has_one(_NAME_HINTS, lower) or _has_one(_TOKEN_HINTS, lower)


def _has_one(hints: tuple[str, ...], lower: str) -> bool:
    for hint in hints:  # noqa: SIM110 - half the time of any()
        if hint in lower:
            return True
    return False


def spans(text: str, *, is_cut: bool = False, is_script: bool = False) -> Iterator[tuple[int, int]]:
    """Yield the start and the end of each secret in ``text``; they may overlap.

    ``text`` is one argument of a command, or any other text. ``is_cut``: its end is missing.
    ``is_script``: it has several words, so that a value ends at a space.
    """
    lower = text.lower()
    if is_cut:
        start = len(text.rstrip(_TOKEN_CHARACTERS))
        if (token := _TOKEN_START().search(text, start)) is not None:
            yield token.start(), len(text)
    if _has_one(_TOKEN_HINTS, lower):
        for pattern in (_TOKEN(), _AZURE_SECRET):
            for match in pattern.finditer(text):
                yield match.span()
    if _has_one(_NAME_HINTS, lower):
        yield from _private_keys(text)
        yield from _named_values(text, is_script=is_script)
        for token in _BEARER.finditer(text):
            yield token.span(1)
        yield from _parameters(text)
    if "://" in text:
        yield from _credentials(text, is_cut=is_cut)


def _private_keys(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    while (begin := _PEM.search(text, done)) is not None:
        end = _PEM_END.search(text, begin.end())
        done = len(text) if end is None else end.end()
        yield begin.start(), done


def _parameters(text: str) -> Iterator[tuple[int, int]]:
    done = 0
    for name in _PARAMETER.finditer(text):
        if name.start() >= done and (value := _PARAMETER_VALUE.match(text, name.end())):
            done = value.end()
            yield value.span()


def _named_values(text: str, *, is_script: bool) -> Iterator[tuple[int, int]]:
    """Yield the spans of the values that follow names of secrets."""
    start_of_word = _WORD_START.match(text)
    last = 0 if is_script or start_of_word is None else start_of_word.end()
    if 0 <= (address := text.find("://")) < last:
        last = address
    done = 0
    for name in _NAMED().finditer(text):
        if name.start() >= done:
            start, done = _value(text, name, is_first=not is_script and name.start() <= last)
            yield start, done


def _value(text: str, name: re.Match[str], *, is_first: bool) -> tuple[int, int]:
    """Return the span of the value that follows a name.

    If ``is_first``, the name begins the text, so that its value is all that follows. Quotes around
    a part of the value are part of it if the text is an option.
    """
    start = name.end()
    is_option = is_first and text[0] == "-"
    if not is_option and (quote := _QUOTE.match(text, start)) is not None:
        return quote.end(), _end_of_quoted(text, quote)
    if (scheme := _SCHEME.match(text, start)) is not None:
        start = scheme.end()
    if is_first:
        return start, start if _SETTING.fullmatch(text, start) is not None else len(text)
    at = name.start()
    while at > 0 and text[at - 1] in _KEY_CHARACTERS:
        at -= 1
    forms = {"?": _PARAMETER_VALUE, "&": _PARAMETER_VALUE, ";": _FIELD_VALUE}
    form = forms.get(text[max(0, at - 1) : at], _WORD_VALUE)
    value = form.match(text, start)
    if value is None or _SETTING.fullmatch(value[0]) is not None:
        return start, start
    call = _CALL.match(text, start) if form is _WORD_VALUE else None
    return start, value.end() if call is None else max(value.end(), call.end())


def _end_of_quoted(text: str, quote: re.Match[str]) -> int:
    """Return the end of a value in quotes; that of the text if the closing quote is missing."""
    escapes = len(quote[0]) - 1
    for closing in _ESCAPES_AND_QUOTE.finditer(text, quote.end()):
        # Two escapes stand for a backslash. In escaped quotes, inner ones have more escapes.
        number = len(closing[1])
        is_closing = number <= escapes if escapes else number % 2 == 0
        if closing[2] == quote[0][-1] and is_closing:
            joined = _JOINED.match(text, closing.end())
            if joined is None or not joined[0] or escapes:
                return closing.start(2) - min(number, escapes)
            return joined.end() - (joined[0][-1] in "\"'")
    return len(text)


def _credentials(text: str, *, is_cut: bool) -> Iterator[tuple[int, int]]:
    """Yield the spans of users and passwords in URLs.

    Of web addresses, user and password are one secret, because a token may stand for either. Of
    others, such as ``postgres://user:password@host``, the user is none.
    """
    at_position = rest_end = -1
    for match in _AUTHORITY.finditer(text):
        start, end = match.span(1)
        user, at, _ = match[1].rpartition("@")
        if not at:
            if _PORT.fullmatch(match[1]) and not (is_cut and end == len(text)):
                continue
            # A password with characters that must be escaped in a URL, or a cut text.
            if end > rest_end and (rest := _REST_OF_URL.match(text, end)) is not None:
                rest_end = rest.end()
                at_position = text.rfind("@", end, rest_end)
            has_at = at_position >= end
            if not has_at and not is_cut:
                continue
            user = text[start : at_position if has_at else len(text)]
        word = re.split(r"[^A-Za-z0-9+.-]", text[max(0, match.start() - 20) : match.start()])[-1]
        if word.lower() in _WEB or not at:
            yield start, start + len(user)
        elif ":" in user:
            yield start + user.index(":") + 1, start + len(user)
