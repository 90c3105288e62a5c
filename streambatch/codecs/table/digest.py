"""SHA-256 of table rows by what they say, not by how they lie in memory: the same however rows are cut into batches.

Each column is hashed on its own, each layer of it apart: which values are missing, how long lists and strings are, and
the values themselves.
"""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


class TableDigest:
    """A running digest of the rows of record batches with the same columns."""

    def __init__(self) -> None:
        self._layers: dict[str, Any] = {}
        self._rows = 0

    def update(self, batch: Any) -> None:
        """Take the rows of a record batch."""
        for at, field in enumerate(batch.schema):
            self._take(f"{at} {field.name} {field.type}", batch.column(at))
        self._rows += batch.num_rows

    def hexdigest(self) -> str:
        """Return the digest of all rows taken so far."""
        whole = sha256(str(self._rows).encode())
        for name in sorted(self._layers):
            whole.update(f"\n{name} {self._layers[name].hexdigest()}".encode())
        return whole.hexdigest()

    def _take(self, name: str, column: Any) -> None:
        kind = column.type
        if isinstance(column, pa.ExtensionArray):
            return self._take(name, column.storage)
        if pa.types.is_dictionary(kind):
            # The same values may have another dictionary in each batch.
            return self._take(name, column.dictionary_decode())
        if column.null_count or pa.types.is_null(kind):
            self._add(f"{name} missing", np.asarray(pc.is_null(column).cast(pa.uint8())))
        else:
            # Also where none is missing: whether a batch has a null depends on where rows were cut.
            self._add(f"{name} missing", np.zeros(len(column), np.uint8))
        if pa.types.is_null(kind):
            return None
        if pa.types.is_struct(kind):
            for at in range(kind.num_fields):
                self._take(f"{name}.{kind.field(at).name}", pc.struct_field(column, [at]))
        elif pa.types.is_nested(kind):
            self._take_lists(name, column)
        else:
            self._take_values(name, column)
        return None

    def _take_lists(self, name: str, column: Any) -> None:
        if pa.types.is_map(column.type):
            column = column.cast(pa.list_(pa.struct([("key", column.type.key_type), ("value", column.type.item_type)])))
        self._add(f"{name} lengths", np.asarray(pc.fill_null(pc.list_value_length(column).cast(pa.int64()), 0)))
        self._take(f"{name}[]", pc.list_flatten(column))

    def _take_values(self, name: str, column: Any) -> None:
        kind = column.type
        if pa.types.is_boolean(kind):
            # The memory under a null may hold anything. It must not count, here and below.
            self._add(name, np.asarray(pc.fill_null(column, False).cast(pa.uint8())))
            return
        if _is_variable(kind):
            present = pc.drop_null(column)
            # One type for text and bytes of any kind, with offsets of 64 bits.
            present = present.cast(pa.large_binary())
            self._add(f"{name} lengths", np.asarray(pc.binary_length(present).cast(pa.int64())))
            self._add(name, _bytes_of(present))
            return
        present = column if not column.null_count else pc.drop_null(column)
        self._add(name, _fixed(present, kind.bit_width // 8))

    def _add(self, layer: str, values: Any) -> None:
        digest = self._layers.get(layer)
        if digest is None:
            digest = self._layers[layer] = sha256()
        digest.update(values)


def _is_variable(kind: Any) -> bool:
    views = getattr(pa.types, "is_string_view", None), getattr(pa.types, "is_binary_view", None)
    return (
        pa.types.is_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_large_binary(kind)
        or any(view is not None and view(kind) for view in views)
    )


def _bytes_of(column: Any) -> memoryview:
    """Return the bytes of a large binary column without missing values, one value after the other."""
    _, offsets, data = column.buffers()
    if data is None or not len(column):
        return memoryview(b"")
    # A slice shares the buffers of its batch: its own offsets start at `column.offset`.
    ends = np.frombuffer(offsets, np.int64, len(column) + 1, column.offset * 8)
    return memoryview(data)[ends[0] : ends[-1]]


def _fixed(column: Any, width: int) -> memoryview:
    """Return the bytes of a fixed-width column without missing values."""
    data = column.buffers()[1]
    if data is None or not len(column):
        return memoryview(b"")
    return memoryview(data)[column.offset * width : (column.offset + len(column)) * width]
