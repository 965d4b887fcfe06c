"""Tests of decoding the programs' events, by nothing but the declarations in C."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ocsf_nft.attribution.bpf
from ocsf_nft.attribution.bpf_capture import (
    UNKNOWN_IMAGE,
    Call,
    ClosedSocket,
    ProcessImage,
    ProcessSnapshot,
    decode,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOURCES: Final = Path(next(iter(ocsf_nft.attribution.bpf.__path__)))
_FORMATS: Final = {"__u8": "B", "__u16": "H", "__u32": "I", "__u64": "Q"}
_FIELD: Final = re.compile(r"\s*(?:struct )?(\w+) (\w+)(?:\[([^\]]+)\])?;")
#: The last member of a process, of variable size.
_TEXT: Final = "text"

UINT8, UINT16 = st.integers(0, 0xFF), st.integers(0, 0xFFFF)
UINT32, UINT64 = st.integers(0, 0xFFFF_FFFF), st.integers(0, (1 << 64) - 1)
IMAGES = st.builds(ProcessImage, pid=UINT32, started_ns=UINT64, execs=UINT64)
COMMS = st.binary(max_size=15).filter(lambda name: b"\0" not in name)
#: Names of files and of cgroups; that of the root of cgroups is empty.
NAMES = st.lists(st.binary(max_size=20).filter(lambda name: b"\0" not in name), max_size=4)


def _declared(source: str) -> dict[str, list[tuple[str, str]]]:
    """Return the structs of a source: name of each member, and its ``struct`` format or type."""
    text = re.sub(r"/\*.*?\*/", "", (_SOURCES / source).read_text("utf-8"), flags=re.DOTALL)
    found = {}
    for name, body in re.findall(
        r"^struct (\w+) \{\n(.*?)^\};", text, flags=re.DOTALL | re.MULTILINE
    ):
        members = []
        for kind, member, number in _FIELD.findall(body):
            form = (
                "s" if kind == "char" or (kind == "__u8" and number) else _FORMATS.get(kind, kind)
            )
            members.append((member, f"{number}{form}"))
        found[name] = members
    return found


_STRUCTS: Final = _declared("capture.bpf.c") | _declared("process.h")


def _form(name: str) -> tuple[str, list[str]]:
    """Return the ``struct`` format of a C struct without padding, and the names of its members."""
    form, names = "", []
    for member, kind in _STRUCTS[name]:
        if member == _TEXT:
            continue
        if kind in _STRUCTS:
            inner_form, inner = _form(kind)
            form += inner_form
            names += [f"{member}.{each}" for each in inner]
        else:
            form += kind
            names.append(member)
    return form, names


def packed(name: str, facts: Mapping[str, Any]) -> bytes:
    """Pack a struct as a program writes it; missing values are zero."""
    form, names = _form(name)
    assert not facts.keys() - set(names)
    forms = re.findall(r"\d*[a-zA-Z]", form)
    values = [
        facts.get(each, b"" if kind.endswith("s") else 0)
        for each, kind in zip(names, forms, strict=True)
    ]
    return struct.pack(f"={form}", *values)


def in_c(prefix: str, image: ProcessImage) -> dict[str, int]:
    """Return an image by the names of its members in C."""
    tgid, started_ns, execs = image
    return {f"{prefix}.tgid": tgid, f"{prefix}.started_ns": started_ns, f"{prefix}.execs": execs}


def call_sample(**facts: Any) -> bytes:
    return packed("call", {"kind": 1} | facts)


def test_structs_have_no_padding_between_their_members() -> None:
    for name in ("image", "caller", "call", "closed", "process"):
        form, _ = _form(name)
        assert struct.calcsize(f"={form}") == struct.calcsize(f"@{form}"), name


@given(
    facts=st.fixed_dictionaries({
        "source_port": UINT16,
        "destination_port": UINT16,
        "time_ns": UINT64,
        "socket": UINT64,
        "netns": UINT64,
        "caller.tid": UINT32,
        "caller.uid": UINT32,
        "caller.gid": UINT32,
        "owner": UINT32,
        "sum": UINT32,
        "caller.comm": COMMS,
        "protocol": UINT8,
    }),
    image=IMAGES,
    address=st.binary(min_size=16, max_size=16),
    flags=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    rest=st.binary(max_size=8),
)  # fmt: skip
def test_call_is_decoded_as_it_was_written(
    facts: dict[str, Any],
    image: ProcessImage,
    address: bytes,
    flags: tuple[bool, bool, bool, bool],
    rest: bytes,
) -> None:
    destination = b"\x20" + address[1:]
    sample = call_sample(
        **facts,
        **in_c("caller.image", image),
        family=10,
        flags=sum(flag << number for number, flag in enumerate(flags)),
        source=address,
        destination=destination,
    )
    is_connect, has_more, is_syn, is_any = flags
    assert decode(sample + rest) == Call(
        is_frame=False,
        is_connect=is_connect,
        has_more=has_more,
        is_syn=is_syn,
        is_any=is_any,
        image=image,
        destination=destination,
        **{name.removeprefix("caller."): fact for name, fact in facts.items()},
    )


_MAPPED: Final = bytes(10) + b"\xff\xff\xc0\0\x02\x01"


@pytest.mark.parametrize(
    ("family", "address", "read"),
    [
        (2, bytes((192, 0, 2, 1)) + bytes(12), bytes((192, 0, 2, 1))),
        (2, bytes(16), bytes(4)),
        (10, bytes(15) + b"\x01", bytes(15) + b"\x01"),
        (10, _MAPPED, bytes((192, 0, 2, 1))),
        (10, bytes(9) + b"\x01\xff\xff\xc0\0\x02\x01", bytes(9) + b"\x01\xff\xff\xc0\0\x02\x01"),
        (17, bytes(range(16)), b""),
        (0, bytes(range(16)), b""),
    ],
)
def test_decoded_address_has_the_length_of_its_protocol(
    family: int, address: bytes, read: bytes
) -> None:
    """An IPv4-mapped address of a call becomes IPv4: its packet has an IPv4 address."""
    found = decode(call_sample(family=family, destination=address, socket=1))
    assert isinstance(found, Call)
    assert (found.destination, found.is_frame) == (read, family == 17)


def test_ipv4_mapped_address_of_a_packet_stays_as_it_is() -> None:
    """The event of a packet has no number of a socket."""
    found = decode(call_sample(family=10, destination=_MAPPED, socket=0))
    assert isinstance(found, Call)
    assert found.destination == _MAPPED


@given(time_ns=UINT64, socket=UINT64)
def test_closed_socket_is_decoded_as_it_was_written(time_ns: int, socket: int) -> None:
    sample = packed("closed", {"kind": 2, "time_ns": time_ns, "socket": socket})
    assert decode(sample) == ClosedSocket(time_ns=time_ns, socket=socket)


def process_sample(texts: Mapping[str, bytes], **facts: Any) -> bytes:
    sizes = {name: len(text) for name, text in texts.items()}
    return packed("process", {"kind": 3} | sizes | facts) + b"".join(texts.values())


@given(
    image=IMAGES,
    parent=IMAGES,
    facts=st.fixed_dictionaries({
        "namespace_pid": UINT32,
        "uid": UINT32,
        "gid": UINT32,
        "inode": UINT64,
        "comm": COMMS,
    }),
    is_deleted=st.booleans(),
    is_child=st.booleans(),
    path=NAMES,
    directory=NAMES,
    cgroup=NAMES,
    arguments=st.binary(max_size=40),
)  # fmt: skip
def test_process_is_decoded_as_it_was_written(
    image: ProcessImage,
    parent: ProcessImage,
    facts: dict[str, Any],
    is_deleted: bool,
    is_child: bool,
    path: list[bytes],
    directory: list[bytes],
    cgroup: list[bytes],
    arguments: bytes,
) -> None:
    texts = {
        "path": b"".join(name + b"\0" for name in path),
        "directory": b"".join(name + b"\0" for name in directory),
        "cgroup": b"".join(name + b"\0" for name in cgroup),
        "arguments": arguments,
    }
    sample = process_sample(
        texts,
        is_deleted=int(is_deleted),
        is_child=int(is_child),
        **facts,
        **in_c("image", image),
        **in_c("parent", parent),
    )
    assert decode(sample) == ProcessSnapshot(
        image=image,
        parent=parent,
        is_deleted=is_deleted,
        is_child=is_child,
        path=tuple(path),
        directory=tuple(directory),
        cgroup=tuple(cgroup),
        arguments=arguments,
        **facts,
    )


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_part_of_an_event_is_invalid(kind: int) -> None:
    whole = packed({1: "call", 2: "closed", 3: "process"}[kind], {"kind": kind})
    assert decode(whole)
    for size in range(len(whole)):
        with pytest.raises((struct.error, ValueError)):
            decode(whole[:size])


@pytest.mark.parametrize("text", ["path", "directory", "cgroup", "arguments"])
def test_part_of_a_text_is_invalid(text: str) -> None:
    whole = process_sample({text: b"x\0"})
    assert decode(whole)
    with pytest.raises(ValueError, match="end too soon"):
        decode(whole[:-1])


@pytest.mark.parametrize("kind", [0, 4, 255])
def test_event_of_an_unknown_kind_is_invalid(kind: int) -> None:
    with pytest.raises(ValueError, match=f"an unknown kind, {kind}"):
        decode(bytes((kind,)) + bytes(4096))


def test_sample_without_bytes_has_an_unknown_kind() -> None:
    with pytest.raises(ValueError, match="an unknown kind, 0"):
        decode(b"")


def test_call_without_a_process_has_the_unknown_image() -> None:
    found = decode(call_sample())
    assert isinstance(found, Call)
    assert found.image == UNKNOWN_IMAGE


def test_flags_are_those_of_the_programs() -> None:
    source = (_SOURCES / "capture.bpf.c").read_text("utf-8")
    assert "enum kind { CALL = 1, CLOSED = 2, PROCESS = 3 };" in source
    assert "enum { CONNECT = 1, MORE = 2, SYN = 4, ANY = 8 };" in source
