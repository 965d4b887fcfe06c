"""Bindings (ctypes) for libbpf, the library that loads BPF programs into the kernel.

A function of libbpf that fails returns a negative errno or NULL, and sets errno (``libbpf.h``,
version 1).
"""

from __future__ import annotations

import ctypes
import os
from ctypes import CFUNCTYPE, c_char_p, c_int, c_size_t, c_uint32, c_uint64, c_void_p
from typing import Final, Literal

from ocsf_nft import malloc_trim
from ocsf_nft.errors import UnsupportedError

_LIBRARY: Final = "libbpf.so.1"
_PRINTER: Final = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)
_SAMPLER: Final = CFUNCTYPE(c_int, c_void_p, c_void_p, c_size_t)
#: Stops libbpf: unread samples stay in the ring.
_ENOUGH: Final = -1
#: Flag of bpf(2): before all other programs of the hook, if it names none of them.
_BPF_F_BEFORE: Final = 1 << 3
_ELEMENT: Final = (c_void_p, c_void_p, c_size_t, c_void_p, c_size_t, c_uint64)
_PROTOTYPES: Final = {
    "libbpf_set_print": (c_void_p, (_PRINTER,)),
    "bpf_object__open_mem": (c_void_p, (c_char_p, c_size_t, c_void_p)),
    "bpf_object__load": (c_int, (c_void_p,)),
    "bpf_object__close": (None, (c_void_p,)),
    "bpf_object__find_program_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_object__find_map_by_name": (c_void_p, (c_void_p, c_char_p)),
    "bpf_map__fd": (c_int, (c_void_p,)),
    "bpf_map__update_elem": (c_int, _ELEMENT),
    "bpf_map__delete_elem": (c_int, (c_void_p, c_void_p, c_size_t, c_uint64)),
    "bpf_map__lookup_elem": (c_int, _ELEMENT),
    "bpf_program__fd": (c_int, (c_void_p,)),
    "bpf_program__attach": (c_void_p, (c_void_p,)),
    "bpf_program__attach_cgroup": (c_void_p, (c_void_p, c_int)),
    "bpf_link__destroy": (c_int, (c_void_p,)),
    "bpf_link__fd": (c_int, (c_void_p,)),
    "bpf_obj_get_info_by_fd": (c_int, (c_int, c_void_p, c_void_p)),
    "ring_buffer__new": (c_void_p, (c_int, _SAMPLER, c_void_p, c_void_p)),
    "ring_buffer__consume": (c_int, (c_void_p,)),
    "ring_buffer__epoll_fd": (c_int, (c_void_p,)),
    "ring_buffer__free": (None, (c_void_p,)),
    "libbpf_num_possible_cpus": (c_int, ()),
}  # fmt: skip


def load_library() -> ctypes.CDLL:
    """Load libbpf; raise UnsupportedError if it is missing or lacks a function."""
    try:
        found = ctypes.CDLL(_LIBRARY, use_errno=True)
        for name, (result, arguments) in _PROTOTYPES.items():
            function = getattr(found, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UnsupportedError(
            f"libbpf is missing ({error}): install it (Debian, Ubuntu: libbpf1)"
        ) from error
    # Without a printer libbpf writes to standard error; errno has the reason.
    found.libbpf_set_print(_PRINTER())
    return found


class _CgroupLink(ctypes.Structure):
    """First fields of ``struct bpf_link_info`` for a cgroup link (include/uapi/linux/bpf.h)."""

    _fields_ = (
        ("type", c_uint32), ("id", c_uint32), ("program", c_uint32), ("padding", c_uint32),
        ("cgroup", c_uint64), ("attach_type", c_uint32), ("more", c_uint32),
    )  # fmt: skip


class _ProgramInfo(ctypes.Structure):
    """First fields of ``struct bpf_prog_info`` (include/uapi/linux/bpf.h)."""

    _fields_ = (("type", c_uint32), ("id", c_uint32))


class _TcxOptions(ctypes.Structure):
    """``struct bpf_tcx_opts`` (libbpf.h)."""

    _fields_ = (
        ("size", c_size_t), ("flags", c_uint32), ("relative_fd", c_uint32),
        ("relative_id", c_uint32), ("expected_revision", c_uint64),
    )  # fmt: skip


class LoadedPrograms:
    """BPF programs of one object file, loaded into the kernel.

    A program does not run until it is attached. The kernel removes the programs when this object is
    closed, or when this process ends.
    """

    def __init__(self, content: bytes) -> None:
        """Load the BPF programs in ``content``, the bytes of an object file.

        Raises UnsupportedError if libbpf is missing, or if the kernel refuses the programs.
        """
        self._library = load_library()
        self._links: list[int] = []
        self._cgroup_links: dict[str, int] = {}
        #: Addresses of programs and maps, by kind and name.
        self._found: dict[tuple[str, str], int] = {}
        self._cpus = self._library.libbpf_num_possible_cpus()
        self._object: int | None = self._library.bpf_object__open_mem(content, len(content), None)
        if not self._object:
            raise _failure("the BPF programs can't be read")
        # libbpf reads the types of the whole kernel, megabytes, and needs them only here.
        malloc_trim.fix_mmap_threshold()
        result = self._library.bpf_object__load(self._object)
        malloc_trim.trim()
        if result < 0:
            error = _failure("the kernel refuses the BPF programs")
            self.close()
            raise error

    def close(self) -> None:
        """Detach and unload the BPF programs."""
        while self._links:
            self._library.bpf_link__destroy(self._links.pop())
        if self._object:
            self._library.bpf_object__close(self._object)
        self._object = None

    def attach(self, name: str, cgroup: int | None = None) -> None:
        """Attach the BPF program ``name`` to the kernel hook that its section names.

        A hook is for example the tracepoint ``raw_tp/kfree_skb``. A program for cgroups is attached
        to a cgroup and to all cgroups below it. ``cgroup`` is the descriptor of its directory.
        Raises UnsupportedError on failure.
        """
        program = self._find("program", name)
        if cgroup is None:
            link = self._library.bpf_program__attach(program)
        else:
            link = self._library.bpf_program__attach_cgroup(program, cgroup)
        if not link:
            raise _failure(f"the BPF program {name} can't be attached")
        self._links.append(link)
        if cgroup is not None:
            self._cgroup_links[name] = self._library.bpf_link__fd(link)

    def program_id(self, name: str) -> int:
        """Return the kernel's id of the BPF program ``name``; raises UnsupportedError."""
        info, size = _ProgramInfo(), c_uint32(ctypes.sizeof(_ProgramInfo))
        descriptor = self._library.bpf_program__fd(self._find("program", name))
        result = self._library.bpf_obj_get_info_by_fd(
            descriptor, ctypes.byref(info), ctypes.byref(size)
        )
        if result < 0:
            raise _failure(f"the BPF program {name} has no id")
        return int(info.id)

    def attach_to_interface(self, name: str, ifindex: int, *, is_first: bool = False) -> int:
        """Attach the BPF program ``name`` to an interface (tcx, Linux 6.6).

        Its section names the direction. It runs after the present programs, or with ``is_first``
        before them. The interface is in the calling thread's network namespace. Return the number
        of the link, for :meth:`detach`. Raises UnsupportedError on failure.
        """
        try:
            attach = self._library.bpf_program__attach_tcx  # libbpf 1.3
        except AttributeError as error:
            raise UnsupportedError("libbpf is too old to attach to an interface") from error
        attach.restype, attach.argtypes = c_void_p, (c_void_p, c_int, c_void_p)
        flags = _BPF_F_BEFORE if is_first else 0
        options = _TcxOptions(size=ctypes.sizeof(_TcxOptions), flags=flags)
        link: int | None = attach(self._find("program", name), ifindex, ctypes.byref(options))
        if not link:
            raise _failure(f"the BPF program {name} can't be attached")
        return link

    def detach(self, link: int) -> None:
        """Detach a BPF program by the number of its link."""
        self._library.bpf_link__destroy(link)

    def detached(self) -> str | None:
        """Return the name of a BPF program that is no longer attached to its cgroup, or None."""
        for name, descriptor in self._cgroup_links.items():
            info, size = _CgroupLink(), c_uint32(ctypes.sizeof(_CgroupLink))
            result = self._library.bpf_obj_get_info_by_fd(
                descriptor, ctypes.byref(info), ctypes.byref(size)
            )
            if result < 0 or not info.cgroup:
                return name
        return None

    def update_map(self, name: str, key: bytes, value: bytes) -> None:
        """Write a value into the BPF map ``name``; raise UnsupportedError on failure."""
        found = self._find("map", name)
        if self._library.bpf_map__update_elem(found, key, len(key), value, len(value), 0) < 0:
            raise _failure(f"the BPF map {name} can't be written")

    def delete_from_map(self, name: str, key: bytes) -> None:
        """Delete a key of the BPF map ``name``, if the map has it."""
        self._library.bpf_map__delete_elem(self._find("map", name), key, len(key), 0)

    def read_map(self, name: str, key: bytes, size: int) -> bytes | None:
        """Return the value of a key in the BPF map ``name``, of ``size`` bytes; None without it."""
        value = ctypes.create_string_buffer(size)
        found = self._find("map", name)
        if self._library.bpf_map__lookup_elem(found, key, len(key), value, size, 0) < 0:
            return None
        return value.raw

    def counter_sums(self, name: str, keys: int) -> tuple[int, ...]:
        """Return the counters in the BPF map ``name``, each summed over all CPUs.

        ``keys`` is the number of counters in the map. Each counter has a 64-bit value for each CPU.
        Raises UnsupportedError if the map can't be read.
        """
        values = (c_uint64 * self._cpus)()
        found, sums = self._find("map", name), []
        for number in range(keys):
            key = c_uint32(number)
            size = ctypes.sizeof(values)
            if self._library.bpf_map__lookup_elem(found, ctypes.byref(key), 4, values, size, 0) < 0:
                raise _failure(f"the BPF map {name} can't be read")
            sums.append(sum(values))
        return tuple(sums)

    def ring(self, name: str) -> RingBuffer:
        """Open the BPF ring buffer ``name`` for reading; raise UnsupportedError if that fails."""
        return RingBuffer(self._library, self._library.bpf_map__fd(self._find("map", name)), name)

    def _find(self, kind: Literal["program", "map"], name: str) -> int:
        address = self._found.get((kind, name))
        if address is None:
            find = getattr(self._library, f"bpf_object__find_{kind}_by_name")
            address = find(self._object, name.encode())
            # libbpf does not check the null pointer: the process would crash.
            if not address:
                raise UnsupportedError(
                    f"the BPF object file is of another version of ocsf-nft: it has no {kind} "
                    f"{name} (install ocsf-nft again)"
                )
            self._found[kind, name] = address
        return address


def _failure(what: str) -> UnsupportedError:
    return UnsupportedError(f"{what} ({os.strerror(ctypes.get_errno())})")


class RingBuffer:
    """Reader of a BPF ring buffer, in which BPF programs put samples (binary events)."""

    def __init__(self, library: ctypes.CDLL, descriptor: int, name: str) -> None:
        self._library = library
        self._samples: list[bytes] = []
        self._most = 0
        # A reference to the callback, which libbpf may call as long as the ring is open.
        self._sampler = _SAMPLER(self._sample)
        self._ring = library.ring_buffer__new(descriptor, self._sampler, None, None)
        if not self._ring:
            raise _failure(f"the BPF ring {name} can't be read")

    @property
    def descriptor(self) -> int:
        """Return a file descriptor to poll: it is readable if more than 128 KiB are unread.

        :meth:`read` returns smaller amounts too.
        """
        # The BPF programs decide how much must be unread (``capture.bpf.c``: wakeup_flag).
        found: int = self._library.ring_buffer__epoll_fd(self._ring)
        return found

    def read(self, most: int) -> list[bytes]:
        """Return up to ``most`` unread samples, oldest first, without waiting."""
        self._most = most
        self._library.ring_buffer__consume(self._ring)
        samples, self._samples = self._samples, []
        return samples

    def close(self) -> None:
        """Close the ring buffer."""
        if self._ring:
            self._library.ring_buffer__free(self._ring)
        self._ring = None

    def _sample(self, _: int | None, data: int, size: int) -> int:
        self._samples.append(ctypes.string_at(data, size))
        return _ENOUGH if len(self._samples) >= self._most else 0
