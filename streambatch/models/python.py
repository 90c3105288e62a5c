"""Models written in Python: a function, an object with `score`, or a class of such objects, sync or async."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

from streambatch.core.digests import Sha256, check_digest
from streambatch.core.errors import ModelError
from streambatch.core.options import options
from streambatch.core.parts import Model, ModelOptions, Site
from streambatch.core.targets import Target, digest_of_file, digest_of_module, load_target
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import built, is_async, score_of, target_name


class PythonModel(Model):
    """A model made of `target`: a function of x, an object with `score(x)`, or a class of such objects, which is built
    by its classmethod `load` where it has one and else without arguments.

    score: takes (n, *shape), returns (n,) or (n, k), or an awaitable of it when `is_async`.
    digest: sha256 of the file that defines it, None where there is no file. Raises ModelError.
    """

    format = "python"

    def __init__(self, target: object, *, name: str | None = None, digest: str | None = None) -> None:
        self.name = name or target_name(target)
        fail = partial(ModelError, self.name)
        self._target = target
        self._score = score_of(built(target, fail), fail)
        self.is_async = is_async(self._score)
        module = sys.modules.get(target_name(target).partition(":")[0])
        self.digest = digest or digest_of_file(getattr(module, "__file__", None))

    def __reduce__(self) -> tuple[Any, ...]:
        make = partial(PythonModel, name=self.name, digest=self.digest)
        return make, (self._target,)  # of a class, the other side loads an object of its own

    def score(self, x: FloatArray, /) -> Any:
        """Return the scores that the target gives for x, or an awaitable of them."""
        return self._score(x)


@options
class PythonModelOptions(ModelOptions):
    """A model written in Python, installed or beside the config file."""

    path: Target
    """`package.module:name` of a function of x, an object with `score(x)`, or a class of such objects."""
    sha256: Sha256 | None = None
    """Digest that the module's file must have, checked before it is imported."""

    @property
    def location(self) -> str:
        return self.path

    def build(self, site: Site) -> PythonModel:
        """Import the model; modules are also looked for in the site's folder. Raises ModelError."""
        fail = partial(ModelError, self.path)
        digest = digest_of_module(self.path, site.folder, fail)
        check_digest(self.path, self.path.partition(":")[0], digest, self.sha256)
        return PythonModel(load_target(self.path, site.folder, fail), name=self.path, digest=digest)
