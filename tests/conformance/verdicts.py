"""Runs a suite on a part that is broken on purpose, and tells which of its tests noticed."""

import inspect
from pathlib import Path
from unittest import SkipTest

from streambatch.testing import Conformance


def failure(suite: Conformance, test: str, folder: Path) -> str | None:
    """Return what a test of the suite says when it fails; None when it passes or is skipped."""
    own = folder / test
    own.mkdir()
    method = getattr(suite, f"test_{test}")
    try:
        method(own) if inspect.signature(method).parameters else method()
    except SkipTest:
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return None


def failures(suite: Conformance, folder: Path) -> dict[str, str]:
    """Return the suite's tests that fail, each with what it says."""
    names = [name.removeprefix("test_") for name in dir(suite) if name.startswith("test_")]
    return {name: said for name in names if (said := failure(suite, name, folder)) is not None}


def check_noticed(suite: Conformance, folder: Path, test: str, saying: str) -> None:
    """Check that a test of the suite fails and says so."""
    said = failure(suite, test, folder)
    assert said is not None, f"{test} passes"
    assert saying in said, said
