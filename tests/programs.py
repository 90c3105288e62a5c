"""What tests need of a machine. Where it is missing they are skipped; in CI they fail."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(name: str) -> str:
    """Return where a program is; skip the test that asks where it is missing."""
    found = shutil.which(name)
    if found is None:
        lacking(f"{name} is not installed")
    return found


def lacking(what: str) -> NoReturn:
    """Skip the test that asks; in CI fail it."""
    assert "CI" not in os.environ, what
    pytest.skip(what)


def root() -> None:
    """Skip the test that asks, unless it may mount disks."""
    if os.geteuid() != 0:
        lacking("only root can mount a tmpfs")


def needs(*names: str) -> pytest.MarkDecorator:
    """Return a mark for tests that start these programs."""
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing) and "CI" not in os.environ, reason=f"not installed: {', '.join(missing)}")
