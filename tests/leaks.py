"""What a test counts before and after to see that nothing was left behind."""

import asyncio
import os

import trio.lowlevel


def tasks_alive() -> int:
    """Return the tasks of the running event loop, also those that no nursery or task group knows."""
    try:
        return len(asyncio.all_tasks())
    except RuntimeError:
        return trio.lowlevel.current_statistics().tasks_living


def open_files() -> list[str]:
    """Return what this process has open: files, sockets, pipes."""
    return sorted(os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _is_open(name))


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")
