"""CPU time and memory that this process uses, as far as the system reports them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any


def process_now() -> dict[str, Any]:
    """Return pid, CPU seconds of all threads and child processes, usable CPUs, and resident memory in bytes.

    The memory is that of this process alone, and None where the system doesn't report it.
    """
    # A child that has ended is in no `/proc` any more: the parent's times hold what it used.
    ended = os.times()
    cpu_seconds = time.process_time() + ended.children_user + ended.children_system + _children_seconds("self")
    return {"pid": os.getpid(), "cpu_seconds": cpu_seconds, "cpus": cpus(), "rss_bytes": rss_bytes()}


@cache
def cpus() -> int:
    """Return the number of CPUs that the process may use, by its affinity and its container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return bound if quota == "max" else min(bound, max(1, ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return bound


def rss_bytes() -> int | None:
    """Return the resident memory in bytes; None where the system doesn't report it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _children_seconds(process: str) -> float:
    """Return the CPU seconds of the running descendants of a process; 0 where the system doesn't report them."""
    seconds = 0.0
    for children in Path("/proc", process, "task").glob("*/children"):
        with suppress(OSError, ValueError, IndexError):  # it may end while it is asked
            for child in children.read_text().split():
                seconds += _seconds_of(child) + _children_seconds(child)
    return seconds


def _seconds_of(process: str) -> float:
    # The name comes second, in brackets, and may hold anything; user and system time are the 14th and 15th field, what
    # its own children that have ended took the two after.
    fields = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
