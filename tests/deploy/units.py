"""What the systemd units say, and a sandbox made of it where no systemd runs.

The sandbox has the file system, the user, the capabilities and the system call filter that a unit asks for, made with
bubblewrap and libseccomp. It has no cgroup (MemoryMax, TasksMax, DevicePolicy) and none of the properties that forbid
things nothing here does (RestrictNamespaces, RestrictRealtime, RestrictSUIDSGID, ProtectHostname).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import errno
import os
import shutil
import socket
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "deploy/systemd"
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_MASKED_EQUAL, _EQUAL, _GREATER = 7, 4, 6
_PROT_WRITE, _PROT_EXEC, _SHM_EXEC = 0x2, 0x4, 0o100000


def settings_of(unit: Path) -> dict[str, list[str]]:
    """Return the values of each key of a unit, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            found[key].append(value)
    return found


def sandbox_of(unit: Path) -> str:
    """Return the part of a unit that confines it."""
    return unit.read_text().partition("\n# --- sandbox")[2].partition("\n")[2].partition("\n\n[Install]")[0].rstrip()


@cache
def syscalls_of(name: str) -> frozenset[str]:
    """Return the system calls of one of systemd's sets."""
    listed = subprocess.run(["systemd-analyze", "syscall-filter", name], capture_output=True, text=True, check=True)
    words = [line.strip() for line in listed.stdout.splitlines()[1:] if line.strip()[:1] not in ("", "#")]
    inner = [syscalls_of(word) for word in words if word.startswith("@")]
    return frozenset(word for word in words if not word.startswith("@")).union(*inner)


def allowed_syscalls(unit: Path) -> frozenset[str]:
    """Return the system calls that a unit's filter lets through."""
    allowed = syscalls_of("@default")
    for value in settings_of(unit)["SystemCallFilter"]:
        sets = [syscalls_of(word) for word in value.removeprefix("~").split()]
        allowed = allowed.difference(*sets) if value.startswith("~") else allowed.union(*sets)
    return allowed


class _Comparison(ctypes.Structure):
    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class _Filter:
    """A seccomp program; `rule` adds to it, `write` compiles it."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("seccomp") or "libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(default))

    def rule(self, action: int, syscall: str, *comparisons: _Comparison) -> None:
        number = self._library.seccomp_syscall_resolve_name(syscall.encode())
        if number >= 0:  # else another machine's
            array = (_Comparison * len(comparisons))(*comparisons)
            code = self._library.seccomp_rule_add_array(self._context, action, number, len(comparisons), array)
            assert code == 0, (syscall, code)

    def write(self) -> int:
        """Return a descriptor to read the compiled program from."""
        descriptor = os.memfd_create("seccomp", 0)
        assert self._library.seccomp_export_bpf(self._context, descriptor) == 0
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor


def filters_of(unit: Path) -> list[int]:
    """Return descriptors of the programs that a unit's SystemCall, Memory and AddressFamilies lines come to."""
    calls = _Filter(_REFUSE)
    for syscall in sorted(allowed_syscalls(unit)):
        calls.rule(_ALLOW, syscall)
    settings = settings_of(unit)
    refusals = _Filter(_ALLOW)
    if settings["MemoryDenyWriteExecute"] == ["yes"]:
        both = _PROT_WRITE | _PROT_EXEC
        refusals.rule(_REFUSE, "mmap", _Comparison(2, _MASKED_EQUAL, both, both))
        for call in ("mprotect", "pkey_mprotect"):
            refusals.rule(_REFUSE, call, _Comparison(2, _MASKED_EQUAL, _PROT_EXEC, _PROT_EXEC))
        refusals.rule(_REFUSE, "shmat", _Comparison(2, _MASKED_EQUAL, _SHM_EXEC, _SHM_EXEC))
    families = {int(getattr(socket, name)) for name in settings["RestrictAddressFamilies"][0].split()}
    for family in set(range(max(families))) - families:
        refusals.rule(_REFUSE, "socket", _Comparison(0, _EQUAL, family, 0))
    refusals.rule(_REFUSE, "socket", _Comparison(0, _GREATER, max(families), 0))
    return [calls.write(), refusals.write()]


@contextmanager
def confined(unit: Path, folder: Path, *writable: Path) -> Iterator[tuple[list[str], list[int]]]:
    """Yield what to put before a command, and the descriptors it must inherit, so that it runs as a unit has it.

    folder: readable beside the system. writable: what the state folder is under systemd.
    """
    descriptors = filters_of(unit)
    kept: Iterable[Path] = (ROOT, Path(sys.prefix), Path(sys.base_prefix), folder)
    prefix = [
        "bwrap", "--die-with-parent", "--unshare-user", "--unshare-ipc", "--uid", "65534", "--gid", "65534",
        "--cap-drop", "ALL", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
        *(word for hidden in ("/tmp", "/var/tmp", "/home", "/root") for word in ("--tmpfs", hidden)),
        *(word for path in kept for word in ("--ro-bind", str(path), str(path))),
        *(word for path in writable for word in ("--bind", str(path), str(path))),
        *(word for one in descriptors for word in ("--add-seccomp-fd", str(one))),
    ]  # fmt: skip
    try:
        yield prefix, descriptors
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def why_not_confined() -> str | None:
    """Return what keeps this machine from confining a process by bwrap, if anything does."""
    if shutil.which("bwrap") is None:
        return None
    attempt: Sequence[str] = ["bwrap", "--unshare-user", "--unshare-ipc", "--ro-bind", "/", "/", "--proc", "/proc"]
    tried = subprocess.run([*attempt, "true"], capture_output=True, text=True, check=False)
    return f"no user namespaces here: {tried.stderr.strip()}" if tried.returncode else None
