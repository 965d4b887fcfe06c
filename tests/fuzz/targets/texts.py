"""Targets: redaction of secrets, and escaping of texts for terminals and JSON."""

from __future__ import annotations

import json
from typing import Final

from ocsf_nft.delivery.sinks import error_text
from ocsf_nft.ocsf import safe_text
from ocsf_nft.quoted import quoted
from ocsf_nft.redaction import Redactor
from ocsf_nft.service.delivery_link import clean
from tests.fuzz import parts
from tests.fuzz.target import HOSTILE_TEXT, Target, require

_REDACTOR: Final = Redactor(b"k" * 32)
_COMMANDS: Final = (
    b"curl\0-u\0user:secret\0https://user:secret@host/path?token=abc&x=1",
    b"mysql\0-psecret\0-h\0db",
    b"sh\0-c\0export DB_PASSWORD='it'\"'\"'s' && curl -H \"Authorization: Bearer abc123def\" x",
    b"docker\0login\0-p\0secret\0--password=secret2",
    b"env\0AWS_SECRET_ACCESS_KEY=AKIAABCDEFGHIJKLMNOP\0x",
    b"psql\0postgres://u:p@h/db",
    b"prog\0--header\0x-api-key: 0123",
    b"git\0clone\0https://ghp_abcdefghijklmnopqrstuvwxyz@github.com",
    b"echo\0-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
    b'node\0-e\0{"password": "x\\"y", "token": \'z\'}',
    b"bash\0-c\0bash -c \"bash -c 'curl -u a:b c'\"",
)
_WORDS: Final = (
    *HOSTILE_TEXT,
    b"password=",
    b"token: ",
    b"://",
    b"@",
    b"Authorization: Bearer ",
    b"'\"'\"'",
    b'\\"',
    b"<password>",
    b"%3d",
    b"secret",
    b"-p",
    b"-----BEGIN PRIVATE KEY",
    b"eyJhbGciOiJIUzI1NiJ9.",
    b"sk-",
    b"?sig=",
    b"&key=",
    b"AKIA",
    b'\\\\\\"',
    b"sh -c ",
    b"curl ",
    b"[redacted:0123456789ab]",
    b"=",
    b"    ",
)


def _command_line(data: bytes) -> None:
    words = data.decode("utf-8", "surrogateescape").split("\0")
    _REDACTOR.command_line(words, is_cut=len(data) % 2 == 1)


def _text(data: bytes) -> None:
    _REDACTOR.text(data.decode("utf-8", "backslashreplace"))


def _escapes(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for shown in (safe_text.visible(text), quoted(text), clean(text), error_text.printable(text)):
        require(shown.isprintable(), "a text is not printable")
    safe_text.encodable(text).encode()
    safe_text.byte_size(text)
    details = safe_text.plain({text[:20]: {text[20:40]: {"a": 1 << 99}}, "b": text})
    line = json.dumps(details, ensure_ascii=False).encode()
    printed = safe_text.printable(line)
    require(printed.decode().isprintable(), "a line of JSON is not printable")
    require(json.loads(printed) == json.loads(line), "a line of JSON has another content")


def _texts() -> tuple[bytes, ...]:
    return tuple(command.replace(b"\0", b" ") for command in _COMMANDS)


TARGETS: Final = (
    Target(
        name="redact-command",
        parse=_command_line,
        seeds=lambda: _COMMANDS,
        parts=parts.words,
        hostile=_WORDS,
        limit=4096,
        share=3,
    ),
    Target(
        name="redact-text",
        parse=_text,
        seeds=_texts,
        parts=parts.words,
        hostile=_WORDS,
        limit=16_384,
        share=2,
    ),
    Target(
        name="escapes",
        parse=_escapes,
        seeds=_texts,
        parts=parts.words,
        hostile=(*HOSTILE_TEXT, b"\xc2\x85", b"\xe2\x80\xa8", b"\xe3\x85\xa4"),
        limit=16_384,
        share=3,
    ),
)
