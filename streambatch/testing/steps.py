"""The suite for preprocess steps: as many rows as were given, each made of its own row, in the dtype that came in."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from streambatch.core.parts import Site, StatefulStep, Step
from streambatch.core.types import BoolArray, FloatArray
from streambatch.core.wrapping_scoring import as_step
from streambatch.testing.arrays import LARGE, SIZES, alike, features, same, with_nan
from streambatch.testing.conformance import Conformance, skip

THREADS, CALLS = 4, 40


class StepConformance(Conformance):
    """What a pipeline relies on in a preprocess step. Inherit, and say with `make_step` how yours is made.

    A step with memory (`is_stateful`) is called with its state, and must give the same however records were batched,
    also when the state was dumped and loaded in between.
    shape: of one record's features. tolerance: how far, relatively, a row may depend on the rows that come with it.
    """

    shape: ClassVar[Sequence[int]] = (10,)
    dtypes: ClassVar[Sequence[str]] = ("float32", "float64")
    tolerance: ClassVar[float] = 1e-6

    def make_step(self) -> Any:
        """Return a step, its options, or anything else that a pipeline takes for a step."""
        raise NotImplementedError("define make_step: how is your step made?")

    def features(self, rows: int, dtype: str) -> FloatArray:
        """Return `rows` records' features that the step can take: (rows, *shape)."""
        return features(rows, self.shape, dtype)

    def test_rows_are_kept(self) -> None:
        step = self._step()
        shapes = set()
        for dtype in self.dtypes:
            for rows in SIZES:
                y, _ = self._stepped(step, self.features(rows, dtype))
                shapes.add(y.shape[1:])
        assert len(shapes) == 1, f"the shape of a row changes: {sorted(shapes)}"

    def test_the_dtype_stays(self) -> None:
        step = self._step()
        for dtype in self.dtypes:
            y, _ = self._stepped(step, self.features(64, dtype))
            assert y.dtype == np.dtype(dtype), f"{dtype} came in and {y.dtype} went out"

    def test_its_input_is_left_alone(self) -> None:
        step = self._step()
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            before = x.copy()
            self._stepped(step, x)
            assert same(x, before), "the step changed the array it was given; return a new one"

    def test_results_are_not_overwritten_later(self) -> None:
        step = self._step()
        y, _ = self._stepped(step, self.features(64, self.dtypes[0]))
        before = y.copy()
        self._stepped(step, self.features(65, self.dtypes[0])[1:])
        assert same(y, before), "a later call changed the array that an earlier one returned"

    def test_results_repeat_bit_for_bit(self) -> None:
        for dtype in self.dtypes:
            x = self.features(LARGE, dtype)
            step = self._step()
            y, mask = self._stepped(step, x)
            for other in (step, self._step()):
                again, mask_again = self._stepped(other, x)
                assert same(y[mask], again[mask_again]), "the same rows come out differently the second time"
                assert same(mask, mask_again), "the same rows are kept differently the second time"

    def test_rows_do_not_depend_on_how_they_are_batched(self) -> None:
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            y, mask = self._stepped(self._step(), x)
            # Sizes that leave rows over, and one that is all but the whole batch.
            for size in (1, 7, 63):
                parts = self._in_batches(self._step(), x, size)
                kept = np.concatenate([part for _, part in parts])
                assert same(mask, kept), f"in batches of {size}, other rows are kept"
                rows = np.concatenate([part for part, _ in parts])
                assert alike(rows[mask], y[mask], self.tolerance), f"in batches of {size}, rows come out differently"

    def test_a_bad_row_costs_only_itself(self) -> None:
        step = self._step()
        if step.is_stateful:
            skip("later rows of a step with memory may depend on earlier ones")
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            y, _ = self._stepped(step, x)
            try:
                after, mask = self._stepped(step, with_nan(x, 7))
            except AssertionError:  # of this suite, about what the step returned
                raise
            except Exception:  # then the batch is halved until the row is alone
                continue
            mask[7] = False
            assert alike(after[mask], y[mask], self.tolerance), "a NaN in one row changed other rows"

    def test_its_state_is_left_alone(self) -> None:
        step, x = self._stateful_step(), self.features(64, self.dtypes[0])
        state, _ = step(step.initial_state(), x)
        _, first = step(state, x)
        _, second = step(state, x)
        assert same(first, second), "a call changed the state it was given; return a new one"

    def test_its_state_outlives_the_process(self) -> None:
        for dtype in self.dtypes:
            step, x = self._stateful_step(), self.features(64, dtype)
            state, _ = step(step.initial_state(), x[:40])
            for before in (step.initial_state(), state):
                data = step.dump(before)
                assert isinstance(data, bytes), f"dump returned {type(data).__name__}; expected bytes"
                other = self._stateful_step()
                after, y = other(other.load(data), x[40:])
                goes_on, wanted = step(before, x[40:])
                assert same(y, wanted), "rows come out differently with the state that was dumped and loaded"
                assert other.dump(after) == step.dump(goes_on), "the state moves on differently once it was loaded"

    def test_a_state_that_is_none_is_refused(self) -> None:
        step = self._stateful_step()
        data = step.dump(step(step.initial_state(), self.features(8, self.dtypes[0]))[0])
        for broken in (b"", data[: len(data) // 2]):
            try:
                step.load(broken)
            except Exception:  # of any kind: the pipeline says which step it was
                continue
            raise AssertionError(f"load took {len(broken)} of the {len(data)} bytes that dump returned")

    def test_threads_may_share_it(self) -> None:
        step = self._step()
        if step.is_stateful:
            skip("a step with memory is called in order")
        batches = [self.features(rows, self.dtypes[0]) for rows in range(1, CALLS + 1)]
        expected = [self._stepped(step, x)[0] for x in batches]
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in range(5):
                for (y, _), alone in zip(threads.map(self._stepper(step), batches), expected, strict=True):
                    assert same(y, alone), "rows come out differently when threads share the step"

    def _step(self) -> Step | StatefulStep:
        return as_step(self.make_step()).build(Site())

    def _stateful_step(self) -> StatefulStep:
        step = self._step()
        if step.is_stateful:
            return step
        skip("it has no memory")

    def _stepper(self, step: Step | StatefulStep) -> Any:
        return lambda x: self._stepped(step, x)

    def _in_batches(self, step: Step | StatefulStep, x: FloatArray, size: int) -> list[tuple[FloatArray, BoolArray]]:
        """Pass rows through in batches, each with the state after the one before."""
        batches = [x[start : start + size] for start in range(0, len(x), size)]
        if not step.is_stateful:
            return [self._stepped(step, batch) for batch in batches]
        state, parts = step.initial_state(), []
        for batch in batches:
            state, y = step(state, batch)
            parts.append(_checked(y, len(batch)))
        return parts

    def _stepped(self, step: Step | StatefulStep, x: FloatArray) -> tuple[FloatArray, BoolArray]:
        """Call a step on its own. Returns its rows, and a mask that is all true where it returned none."""
        result = step(step.initial_state(), x)[1] if step.is_stateful else step(x)
        return _checked(result, len(x))


def _checked(result: object, rows: int) -> tuple[FloatArray, BoolArray]:
    y, mask = result if isinstance(result, tuple) else (result, np.ones(rows, bool))
    assert isinstance(y, np.ndarray), f"expected an array or (array, mask), found {type(y).__name__}"
    assert y.shape[:1] == (rows,), f"{rows} rows came in and {y.shape} went out; use a mask to drop some"
    assert isinstance(mask, np.ndarray), f"expected a mask that is an array, found {type(mask).__name__}"
    assert mask.shape == (rows,), f"the mask has shape {mask.shape}; expected ({rows},)"
    assert mask.dtype == np.bool_, f"the mask is of {mask.dtype}; expected bool"
    # A copy, since tests change masks.
    return y, mask.copy()
