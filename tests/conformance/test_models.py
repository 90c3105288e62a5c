"""The suite for models, on those that are built in."""

from typing import Any

import anyio.lowlevel
import numpy as np

from streambatch.core.parts import Model, ModelOptions, Site
from streambatch.core.types import FloatArray
from streambatch.models.linear import LinearModel
from streambatch.models.python import PythonModel
from streambatch.testing import ModelConformance

WEIGHTS = np.linspace(-1, 1, 30)


class TestLinear(ModelConformance):
    def make_model(self) -> Any:
        return LinearModel(WEIGHTS[:10], 0.5)


class TestLinearOfSeveralScores(ModelConformance):
    def make_model(self) -> Any:
        return LinearModel(WEIGHTS.reshape(10, 3), [1, 2, 3])


class TestLinearOfTwoAxes(ModelConformance):
    shape = (5, 2)

    def make_model(self) -> Any:
        return LinearModel(WEIGHTS[:10])


class TestPythonFunction(ModelConformance):
    def make_model(self) -> Any:
        return PythonModel(lambda x: x @ WEIGHTS[:10])


class TestPythonFunctionOfAnyShape(ModelConformance):
    refuses_other_shapes = False

    def make_model(self) -> Any:
        return PythonModel(lambda x: x.max(axis=1))


class TestPlainFunction(ModelConformance):
    def make_model(self) -> Any:
        return lambda x: x @ WEIGHTS[:10]


class LinearByWidth(ModelOptions):
    """Options whose model is made for each run."""

    def build(self, site: Site) -> Model:
        return LinearModel(WEIGHTS[:10])


class TestOptions(ModelConformance):
    def make_model(self) -> Any:
        return LinearByWidth()


class Squares:
    def score(self, x: FloatArray) -> FloatArray:
        return np.square(x) @ WEIGHTS[:10]


class TestPlainObject(ModelConformance):
    def make_model(self) -> Any:
        return Squares()


class TestPythonClass(ModelConformance):
    def make_model(self) -> Any:
        return PythonModel(Squares)


async def slowly(x: FloatArray) -> FloatArray:
    await anyio.lowlevel.checkpoint()
    return x @ WEIGHTS[:10]


class TestAsyncPythonFunction(ModelConformance):
    backends = ("asyncio", "trio")

    def make_model(self) -> Any:
        return PythonModel(slowly)
