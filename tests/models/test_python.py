"""Python models: what may be one, and where it is found."""

import hashlib
import sys
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Self, cast

import numpy as np
import pytest

from streambatch.core.errors import ConfigError, ModelError
from streambatch.core.parts import Site
from streambatch.core.types import FloatArray
from streambatch.models.python import PythonModel, PythonModelOptions

X = np.array([[1.0, 2.0], [3.0, 4.0]])


def total(x: FloatArray) -> FloatArray:
    return cast(FloatArray, x.sum(axis=1))


async def total_later(x: FloatArray) -> FloatArray:
    return total(x)


class Model:
    def score(self, x: FloatArray) -> FloatArray:
        return total(x)


class AsyncModel:
    async def score(self, x: FloatArray) -> FloatArray:
        return total(x)


class AsyncCallable:
    async def __call__(self, x: FloatArray) -> FloatArray:
        return total(x)


class Loaded:
    def __init__(self, weights: list[float]) -> None:
        self.weights = weights

    @classmethod
    def load(cls) -> Self:
        return cls([2.0, 2.0])

    def score(self, x: FloatArray) -> FloatArray:
        return cast(FloatArray, x @ self.weights)


class NeedsMore:
    def __init__(self, weights: list[float]) -> None:
        self.weights = weights


class LikeSklearn:
    def score(self, x: FloatArray, y: FloatArray) -> float:
        return 0.0


@pytest.mark.parametrize("target", [total, Model, Model(), lambda x: total(x), Model().score])
def test_functions_objects_and_classes_score(target: object) -> None:
    model = PythonModel(target)
    assert not model.is_async
    assert model.score(X).tolist() == [3.0, 7.0]


@pytest.mark.anyio
@pytest.mark.parametrize("target", [total_later, AsyncModel, AsyncModel(), AsyncCallable()])
async def test_async_ones_are_told_apart(target: object) -> None:
    model = PythonModel(target)
    assert model.is_async
    assert (await cast(Awaitable[FloatArray], model.score(X))).tolist() == [3.0, 7.0]


def test_a_class_is_built_by_its_classmethod_load() -> None:
    assert PythonModel(Loaded).score(X).tolist() == [6.0, 14.0]


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (3, "model m: expected a function of x, an object with score(x), or a class of such; found 3"),
        (NeedsMore, "model m: can't be built: TypeError: "),
        (LikeSklearn(), "model m: expected a function of one array x, found one of (x: "),
    ],
)
def test_what_can_not_score_is_refused(target: object, message: str) -> None:
    with pytest.raises(ModelError) as caught:
        PythonModel(target, name="m")
    assert str(caught.value).startswith(message)


def test_it_is_named_and_digested_after_where_it_comes_from() -> None:
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    for target, name in [(total, "total"), (Model, "Model"), (Model(), "Model"), (Model().score, "Model.score")]:
        model = PythonModel(target)
        assert (model.name, model.digest) == (f"{__name__}:{name}", digest)
    assert PythonModel(len).digest is None
    assert PythonModel(total).format == "python"


SOURCE = "import sys\nsys.imported_for_the_pin = True\ndef score(x):\n    return x.sum(axis=1)\n"


def test_it_is_loaded_from_beside_the_config(tmp_path: Path) -> None:
    (tmp_path / "model_for_python.py").write_text(SOURCE)
    digest = hashlib.sha256(SOURCE.encode()).hexdigest()
    model = PythonModelOptions(path="model_for_python:score", sha256=digest).build(Site(folder=tmp_path))
    assert model.score(X).tolist() == [3.0, 7.0]
    assert (model.name, model.digest) == ("model_for_python:score", digest)


def test_a_module_that_is_not_the_one_pinned_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "pinned_for_python.py").write_text(SOURCE.replace("for_the_pin", "in_spite_of_the_pin"))
    with pytest.raises(
        ModelError, match=f"model pinned_for_python:score: pinned_for_python: expected sha256 {'0' * 64}"
    ):
        PythonModelOptions(path="pinned_for_python:score", sha256="0" * 64).build(Site(folder=tmp_path))
    assert not hasattr(sys, "imported_in_spite_of_the_pin")


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("absent_module:score", None, "no module absent_module, neither installed nor in "),
        ("absent.module:score", None, "no module absent.module, neither installed nor in "),
        ("json.absent:score", None, "no module json.absent, neither installed nor in "),
        ("broken_a:score", "def score(:", "module broken_a can't be imported: SyntaxError: "),
        ("broken_b:score", "import absent_dependency", "module broken_b can't be imported: ModuleNotFoundError: "),
        ("broken_c:score", "1 / 0", "module broken_c can't be imported: ZeroDivisionError: division by zero"),
        ("broken_d:score", "other = 1", "no score in "),
        ("broken_e:a.b", "class a: pass", "no a.b in "),
        ("sys:intern", None, "module sys has no file to take a digest of"),
    ],
)
def test_what_can_not_be_loaded_is_explained(tmp_path: Path, path: str, source: str | None, message: str) -> None:
    if source is not None:
        (tmp_path / f"{path.partition(':')[0]}.py").write_text(source)
    with pytest.raises(ModelError) as caught:
        PythonModelOptions(path=path).build(Site(folder=tmp_path))
    assert str(caught.value).startswith(f"model {path}: {message}")


def test_a_path_that_names_no_object_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"path: found 'model.py'; allowed: a Python object as package.module:name"):
        PythonModelOptions(path="model.py")


def test_a_module_beside_the_config_can_not_hide_an_installed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    (tmp_path / "colorsys.py").write_text("raise SystemExit")
    with pytest.raises(ModelError, match=r"expected a function of one array x, found one of \(r, g, b\)"):
        PythonModelOptions(path="colorsys:rgb_to_hsv").build(Site(folder=tmp_path))


@pytest.fixture(autouse=True)
def _same_path_as_before() -> Iterator[None]:
    before = sys.path.copy()
    yield
    sys.path[:] = before
