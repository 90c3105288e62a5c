"""The suite for preprocess steps, on all that are built in."""

from typing import Any

import numpy as np

from streambatch.core.types import BoolArray, FloatArray
from streambatch.steps.elementwise import (
    Clip,
    Impute,
    MinMax,
    Standardize,
    StandardizeOptions,
)
from streambatch.steps.python import PythonStep
from streambatch.steps.running import RunningStandardize
from streambatch.testing import StepConformance


class TestStandardize(StepConformance):
    def make_step(self) -> Any:
        return Standardize(np.arange(10), np.arange(1, 11))


class TestStandardizeOfTwoAxes(StepConformance):
    shape = (4, 3)

    def make_step(self) -> Any:
        return Standardize(0.5, np.arange(1, 4))


class TestBoundStandardize(StepConformance):
    dtypes = ("float32",)

    def make_step(self) -> Any:
        return Standardize(0.5, 2).bind((10,), "float32")


class TestRunningStandardize(StepConformance):
    def make_step(self) -> Any:
        return RunningStandardize()


class TestOptions(StepConformance):
    def make_step(self) -> Any:
        return StandardizeOptions(mean=0.5, scale=2.0)


class TestOptionsOfRunningStandardize(StepConformance):
    def make_step(self) -> Any:
        return StandardizeOptions(fit="running")


class TestPlainFunction(StepConformance):
    def make_step(self) -> Any:
        return lambda x: x * 2


class TestMinMax(StepConformance):
    def make_step(self) -> Any:
        return MinMax(-3, 3)


class TestClip(StepConformance):
    def make_step(self) -> Any:
        return Clip(-0.5, 0.5)


class TestImpute(StepConformance):
    def make_step(self) -> Any:
        return Impute(0)

    def features(self, rows: int, dtype: str) -> FloatArray:
        x = super().features(rows, dtype)
        x[x > 1] = np.nan
        return x


def positive(x: FloatArray) -> tuple[FloatArray, BoolArray]:
    return np.abs(x), x[:, 0] > 0


class TestPythonStepThatFilters(StepConformance):
    def make_step(self) -> Any:
        return PythonStep(positive)


class TestPythonStepOfAnotherWidth(StepConformance):
    def make_step(self) -> Any:
        return PythonStep(lambda x: x.reshape(len(x), 5, 2).sum(axis=2, dtype=np.float64))
