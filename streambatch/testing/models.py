"""The suite for models: one score per row, which no other row of the batch and no other thread changes."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import anyio
import numpy as np

from streambatch.core.parts import Model, Site
from streambatch.core.types import FloatArray
from streambatch.core.wrapping_scoring import as_model
from streambatch.scoring.check import checked_scores
from streambatch.testing.arrays import LARGE, SIZES, alike, features, finite, same, with_nan
from streambatch.testing.conformance import Conformance, plain_errors, skip

THREADS, CALLS = 4, 40


class ModelConformance(Conformance):
    """What a pipeline relies on in a model. Inherit, and say with `make_model` how yours is made.

    shape: of one record's features. dtypes: those it is used with. tolerance: how far, relatively, a record's score may
    depend on the records scored with it, which numeric libraries don't rule out.
    refuses_other_shapes: false for a model that takes records of any shape.
    """

    shape: ClassVar[Sequence[int]] = (10,)
    dtypes: ClassVar[Sequence[str]] = ("float32", "float64")
    tolerance: ClassVar[float] = 1e-4
    refuses_other_shapes: ClassVar[bool] = True

    def make_model(self) -> Any:
        """Return a model, its options, or anything else that a pipeline takes for a model."""
        raise NotImplementedError("define make_model: how is your model made?")

    def features(self, rows: int, dtype: str) -> FloatArray:
        """Return `rows` records' features that the model can score: (rows, *shape), no two rows equal."""
        return features(rows, self.shape, dtype)

    def test_there_is_one_score_per_row(self) -> None:
        model = self._model()
        widths = set()
        for dtype in self.dtypes:
            for rows in SIZES:
                scores = self._scored(model, self.features(rows, dtype))
                assert finite(scores), f"scores of {rows} rows of {dtype} are not all finite"
                widths.add(scores.shape[1:])
        assert len(widths) == 1, f"the shape of a record's score changes: {sorted(widths)}"

    def test_a_score_is_its_rows_own(self) -> None:
        model = self._model()
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            scores = self._scored(model, x)
            assert not same(scores[0], scores[1:]), "all rows get the same score: give features that tell them apart"
            for row in (0, 1, 31, 63):
                alone = self._scored(model, x[row : row + 1])[0]
                assert alike(alone, scores[row], self.tolerance), (
                    f"row {row} scores {alone} alone and {scores[row]} among 64"
                )
            # A copy: a reversed view has negative strides, which some libraries refuse.
            turned = self._scored(model, x[::-1].copy())
            assert alike(turned[::-1], scores, self.tolerance), "scores don't follow the order of rows"

    def test_scores_repeat_bit_for_bit(self) -> None:
        model = self._model()
        for dtype in self.dtypes:
            x = self.features(LARGE, dtype)
            first = self._scored(model, x)
            again = self._scored(self._model(), x)
            assert same(first, self._scored(model, x)), "the same rows score differently the second time"
            assert same(first, again), "the same model, made a second time, scores differently"

    def test_scores_are_not_overwritten_later(self) -> None:
        model = self._model()
        scores = self._scored(model, self.features(64, self.dtypes[0]))
        before = scores.copy()
        self._scored(model, -self.features(64, self.dtypes[0]))
        assert same(scores, before), "a later call changed the scores that an earlier one returned"

    def test_features_are_left_alone(self) -> None:
        model = self._model()
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            before = x.copy()
            self._scored(model, x)
            assert same(x, before), "score changed the features it was given"

    def test_a_bad_row_costs_only_itself(self) -> None:
        model = self._model()
        for dtype in self.dtypes:
            x = self.features(64, dtype)
            expected = self._scored(model, x)
            try:
                scores = self._scored(model, with_nan(x, 7))
            except Exception:  # then the batch is halved until the row is alone
                continue
            others = np.arange(64) != 7
            assert alike(scores[others], expected[others], self.tolerance), "a NaN in one row changed others' scores"

    def test_features_of_another_shape_are_refused(self) -> None:
        if not self.refuses_other_shapes:
            skip("it takes records of any shape")
        model = self._model()
        x = features(8, (*self.shape[:-1], self.shape[-1] + 1), self.dtypes[0])
        try:
            scores = self._called(model, x)
        except Exception:
            return
        raise AssertionError(f"features {x.shape} gave {scores}; expected an error that names the shape")

    def test_threads_may_share_it(self) -> None:
        model = self._model()
        if model.is_async:
            skip("an async model runs on the event loop alone")
        batches = [self.features(rows, self.dtypes[0]) for rows in range(1, CALLS + 1)]
        expected = [self._scored(model, x) for x in batches]
        with ThreadPoolExecutor(THREADS) as threads:
            for _ in range(5):
                for scores, alone in zip(threads.map(model.score, batches), expected, strict=True):
                    assert alike(np.asarray(scores), alone, self.tolerance), (
                        "scores differ when threads share the model"
                    )

    def test_calls_may_overlap(self) -> None:
        model = self._model()
        if not model.is_async:
            skip("its score is not async")
        batches = [self.features(rows, self.dtypes[0]) for rows in range(1, CALLS + 1)]
        expected = [self._scored(model, x) for x in batches]

        async def check(x: FloatArray, alone: FloatArray) -> None:
            assert alike(np.asarray(await model.score(x)), alone, self.tolerance), "scores differ when calls overlap"

        async def test() -> None:
            async with anyio.create_task_group() as tasks:
                for x, alone in zip(batches, expected, strict=True):
                    tasks.start_soon(check, x, alone)

        for backend in self.backends:
            with plain_errors():
                anyio.run(test, backend=backend)

    def _model(self) -> Model:
        return as_model(self.make_model()).build(Site())

    def _scored(self, model: Model, x: FloatArray) -> FloatArray:
        return checked_scores(model.name, self._called(model, x), len(x))

    def _called(self, model: Model, x: FloatArray) -> object:
        if not model.is_async:
            return model.score(x)

        async def call() -> object:
            return await model.score(x)

        return anyio.run(call, backend=self.backends[0])
