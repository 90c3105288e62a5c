"""The suite for preprocess steps notices steps whose memory doesn't outlive a process."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streambatch.core.types import FloatArray
from streambatch.testing import StepConformance
from tests.conformance.verdicts import check_noticed, failures


class Summing:
    """A step with memory; subclasses break how it is stored."""

    is_stateful = True

    def initial_state(self) -> FloatArray:
        return np.zeros(10)

    def __call__(self, state: FloatArray, x: FloatArray) -> tuple[FloatArray, FloatArray]:
        sums = np.cumsum(np.concatenate([state[np.newaxis], x]), axis=0)
        return sums[-1], sums[1:].astype(x.dtype)

    def dump(self, state: FloatArray) -> bytes:
        return state.tobytes()

    def load(self, data: bytes) -> FloatArray:
        return np.frombuffer(data).reshape(10)


class Forgets(Summing):
    def load(self, data: bytes) -> FloatArray:
        return self.initial_state()


class Rounds(Summing):
    def dump(self, state: FloatArray) -> bytes:
        return np.round(state, 3).tobytes()


class DumpsText(Summing):
    def dump(self, state: FloatArray) -> Any:
        return str(state.tolist())


class LoadsAnything(Summing):
    def load(self, data: bytes) -> FloatArray:
        return np.frombuffer(data.ljust(80, b"\0")).reshape(10)


def suite_of(kind: type[Summing]) -> StepConformance:
    class Suite(StepConformance):
        def make_step(self) -> Any:
            return kind()

    return Suite()


def test_a_step_that_is_right_passes(tmp_path: Path) -> None:
    assert failures(suite_of(Summing), tmp_path) == {}


@pytest.mark.parametrize(
    ("kind", "test", "saying"),
    [
        (Forgets, "its_state_outlives_the_process", "rows come out differently with the state that was dumped"),
        (Rounds, "its_state_outlives_the_process", "rows come out differently with the state that was dumped"),
        (DumpsText, "its_state_outlives_the_process", "dump returned str; expected bytes"),
        (LoadsAnything, "a_state_that_is_none_is_refused", "load took 0 of the 80 bytes"),
    ],
)
def test_what_is_broken_is_noticed(tmp_path: Path, kind: type[Summing], test: str, saying: str) -> None:
    check_noticed(suite_of(kind), tmp_path, test, saying)
