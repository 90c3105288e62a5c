"""Models written in Python: a function, an object with `score`, or a class of such objects, sync or async."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

from streambatch.core.digests import Sha256, check_digest
from streambatch.core.errors import ModelError
from streambatch.core.options import options
from streambatch.core.targets import (
    Target,
    built,
    check_takes_one,
    digest_of_file,
    digest_of_module,
    is_async,
    load_target,
)
from streambatch.core.types import FloatArray


class PythonModel:
    """A model made of `target`: a function of x, an object with `score(x)`, or a class of such objects, which is built
    by its classmethod `load` where it has one and else without arguments.

    score: takes (n, *shape), returns (n,) or (n, k), or an awaitable of it when `is_async`.
    digest: sha256 of the file that defines it, None where there is no file. Raises ModelError.
    """

    format = "python"

    def __init__(self, target: object, *, name: str | None = None, digest: str | None = None) -> None:
        self.name = name or _name_of(target)
        fail = partial(ModelError, self.name)
        self.score = _score_of(built(target, fail), fail)
        check_takes_one(self.score, fail)
        self.is_async = is_async(self.score)
        self.digest = digest or digest_of_file(getattr(sys.modules.get(_module_of(target)), "__file__", None))


@options
class PythonModelOptions:
    """A model written in Python, installed or beside the config file."""

    path: Target
    """`package.module:name` of a function of x, an object with `score(x)`, or a class of such objects."""
    sha256: Sha256 | None = None
    """Digest that the module's file must have, checked before it is imported."""

    def load(self, base: Path) -> PythonModel:
        """Import the model; modules are also looked for in the folder `base`. Raises ModelError."""
        fail = partial(ModelError, self.path)
        digest = digest_of_module(self.path, base, fail)
        check_digest(self.path, self.path.partition(":")[0], digest, self.sha256)
        return PythonModel(load_target(self.path, base, fail), name=self.path, digest=digest)


def _score_of(model: object, fail: Callable[[str], ModelError]) -> Callable[[FloatArray], FloatArray]:
    score = getattr(model, "score", model)
    if not callable(score):
        raise fail(f"expected a function of x, an object with score(x), or a class of such; found {model!r}")
    return cast(Callable[[FloatArray], FloatArray], score)


def _module_of(target: object) -> str:
    return str(getattr(target, "__module__", None) or type(target).__module__)


def _name_of(target: object) -> str:
    return f"{_module_of(target)}:{getattr(target, '__qualname__', type(target).__qualname__)}"
