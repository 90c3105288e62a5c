"""The fields of a record: its id, its features, and those that are copied to the output."""

from __future__ import annotations

from dataclasses import field
from math import prod
from typing import Literal

import numpy as np

from streambatch.core.errors import OptionError
from streambatch.core.options import options

OUTPUT_FIELDS = ("id", "score")
ColumnType = Literal["bool", "int32", "int64", "float32", "float64", "string", "timestamp"]
"""Types of carried columns; a timestamp counts microseconds, in UTC."""


@options
class RecordSchema:
    """Where in a record its id, features and carried fields are.

    features: one field that holds an array of `shape`, or a list of fields that hold one number each.
    """

    features: str | list[str]
    """One array field, or a list of scalar fields in model order."""
    id: str | None = None
    """Field copied to the output as id: an integer or a string. Absent: `<partition>:<position>`."""
    shape: tuple[int, ...] | None = None
    """Shape of one record's features; implied by a list of scalar fields."""
    dtype: Literal["float32", "float64"] = "float32"
    """Type the features are decoded to."""
    carry: list[str] | dict[str, ColumnType] = field(default_factory=list)
    """Fields copied to the output as they are: a list of names, or a table of names and types, such as
    `{ ts = "string" }`, which arrow and parquet outputs make their columns of."""
    missing: Literal["reject", "nan"] = "reject"
    """What a null or absent feature means: the record dies, or the feature is NaN."""

    def __post_init__(self) -> None:
        if isinstance(self.features, list):
            self._check_scalar_fields(self.features)
        elif self.shape is None:
            raise OptionError("shape", "nothing", f"the shape of one record's {self.features}, such as [10]")
        if self.shape is not None and (not self.shape or min(self.shape) < 1):
            raise OptionError("shape", list(self.shape), "one or more sizes of at least 1")
        for name in self.carry:
            if name in OUTPUT_FIELDS:
                raise OptionError("carry", repr(name), f"fields other than {' and '.join(OUTPUT_FIELDS)}")
        if len(set(self.carry)) < len(self.carry):
            raise OptionError("carry", self.carry, "each field once")

    def _check_scalar_fields(self, names: list[str]) -> None:
        if not names:
            raise OptionError("features", "[]", "at least one field")
        if len(set(names)) < len(names):
            raise OptionError("features", names, "each field once")
        if self.shape is not None and self.shape != (len(names),):
            raise OptionError("shape", list(self.shape), f"[{len(names)}], one per field of features, or nothing")

    @property
    def carry_types(self) -> tuple[ColumnType | None, ...]:
        """The declared type of each carried field, in order; None where none is declared."""
        return tuple(self.carry.values()) if isinstance(self.carry, dict) else (None,) * len(self.carry)

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        return (len(self.features),) if isinstance(self.features, list) else self.shape or ()

    @property
    def feature_count(self) -> int:
        """Numbers in one record's features."""
        return prod(self.feature_shape)

    @property
    def numpy_dtype(self) -> np.dtype[np.floating]:
        return np.dtype(self.dtype)
