"""Finding the Python objects that a config names as `package.module:name`.

Installed modules come first; modules beside the config file are found too, and can't hide them.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Annotated

from pydantic import AfterValidator

from streambatch.core.npz import Fail

_PATTERN = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def _check_target(text: str) -> str:
    if _PATTERN.fullmatch(text) is None:
        raise ValueError("a Python object as package.module:name")
    return text


Target = Annotated[str, AfterValidator(_check_target)]
"""A Python object as `package.module:name`."""


def load_target(target: str, base: Path, fail: Fail) -> object:
    """Import the module and return what `name` is in it.

    base: folder that is searched after all others, from now on, since the module may import from it later.
    Raises what `fail` makes of the problem.
    """
    module_name, _, name = target.partition(":")
    module = _import(module_name, base, fail)
    try:
        return attrgetter(name)(module)
    except AttributeError as error:
        raise fail(f"no {name} in {getattr(module, '__file__', module_name)}") from error


def digest_of_module(target: str, base: Path, fail: Fail) -> str:
    """Return the sha256 of the file that holds the module of `target`, without running it; its packages are imported.

    Raises what `fail` makes of the problem.
    """
    _offer(base)
    module_name = target.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception as error:
        raise _import_failure(module_name, base, error, fail) from error
    if spec is None:
        raise fail(_not_found(module_name, base))
    digest = digest_of_file(spec.origin)
    if digest is None:
        raise fail(f"module {module_name} has no file to take a digest of")
    return digest


def digest_of_file(path: str | None) -> str | None:
    """Return the sha256 of a module's file, None for a module without one."""
    if path is None or not Path(path).is_file():
        return None
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _import(name: str, base: Path, fail: Fail) -> ModuleType:
    _offer(base)
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _import_failure(name, base, error, fail) from error


def _offer(base: Path) -> None:
    folder = str(base.resolve())
    if folder not in sys.path:
        # At the end, so that no module beside the config hides an installed one.
        sys.path.append(folder)
    # The import system remembers what a folder held, and would miss a file that was written since.
    importlib.invalidate_caches()


def _import_failure(name: str, base: Path, error: Exception, fail: Fail) -> Exception:
    # Only if it is the module itself, or a package it is in, that is missing: it may also fail to import another one.
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        return fail(_not_found(name, base))
    return fail(f"module {name} can't be imported: {type(error).__name__}: {error}")


def _not_found(name: str, base: Path) -> str:
    return f"no module {name}, neither installed nor in {base.resolve()}"
