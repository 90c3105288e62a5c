"""JSON: records that are one object each, decoded straight into a type made from the schema; score lines.

The records of a batch are decoded in one call, whose result counts only if it is certain that it has one value per
record; otherwise each is decoded alone, and those that fail become rejects. Both give the same rows.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain, starmap
from operator import attrgetter
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
from msgspec import NODEFAULT, UNSET, Meta, Raw
from msgspec import field as msgspec_field

from streambatch.codecs import columns
from streambatch.codecs.rows import array_of, ids_by_position, in_order, joined, living, records_of, reject
from streambatch.codecs.text.json_faults import explain
from streambatch.core.chunks import Chunk
from streambatch.core.codec import Decoder, Encoder, Framing
from streambatch.core.errors import OptionError
from streambatch.core.outcomes import RecordId, Reject, Rows
from streambatch.core.schema import RecordSchema
from streambatch.core.types import FloatArray, IntArray

_TUPLE_MAX = 64
"""Arrays up to this length are decoded as tuples of a fixed length, which is faster; longer ones as checked lists."""
_OPEN, _RETURN = b"{\r"
_HOLDS_OBJECTS, _IS_ASCII = "json.holds_objects", "json.is_ascii"
"""Keys of what a chunk memo holds of its payload."""


class JsonCodec:
    """Records are objects; numbers become features, `int` and `str` ids, and carried fields are copied as written."""

    name = "json"

    def decoder(self, schema: RecordSchema, framing: Framing) -> Decoder:
        return JsonDecoder(schema, framing)

    def encoder(self, schema: RecordSchema) -> Encoder:
        """Return what writes one line per score: id, score, carried fields that are there."""
        return JsonEncoder(schema)


class JsonDecoder:
    """Decodes the records of one source; see `Decoder`. A carried field that is absent becomes UNSET."""

    def __init__(self, schema: RecordSchema, framing: Framing) -> None:
        self._schema, self._dtype, self._strip = schema, schema.numpy_dtype, framing.strip
        self._is_lines = framing.name == "lines"
        layers = _layers(_uses(schema))
        self._decoders = [msgspec.json.Decoder(_struct("Record", layer)) for layer in layers]
        columns = {use.attribute: (attrgetter(use.attribute), at) for at, layer in enumerate(layers) for use in layer}
        self._id = columns.get("id")
        self._carry = [columns[f"c{at}"] for at in range(len(schema.carry))]
        scalars = [f"f{at}" for at in range(len(schema.features))] if isinstance(schema.features, list) else []
        self._features = attrgetter(*scalars) if scalars else attrgetter("features")
        self._depth = min(len(scalars) - 1, 1) if scalars else len(schema.feature_shape)
        self._shape = schema.feature_shape
        self._pack = struct.Struct(f"{schema.feature_count}{schema.numpy_dtype.char}").pack

    def decode(self, chunks: Sequence[Chunk]) -> Rows:
        live, index, rejects = living(chunks, self._schema)
        values = self._decode_lines(live) if self._is_lines and live else None
        if values is None:
            values, index = self._decode_each(live, index, rejects)
        ids = list(map(self._id[0], values[self._id[1]])) if self._id else ids_by_position(chunks, index)
        carry = [list(map(get, values[layer])) for get, layer in self._carry]
        return Rows(ids, self._tensor(values[0]), carry, index, in_order(rejects))

    def _decode_lines(self, chunks: Sequence[Chunk]) -> list[list[Any]] | None:
        """Return the values of all records, by decoder; None unless each surely is one good value."""
        data = joined(chunks)
        if not all(map(_holds_objects, chunks)):
            return None
        try:
            if not all(map(_is_ascii, chunks)):
                str(data, "utf-8")  # msgspec doesn't check the strings of fields that are not used
            values = [decoder.decode_lines(data) for decoder in self._decoders]
        # msgspec raises RecursionError for JSON that is nested too deep.
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        count = sum([chunk.count for chunk in chunks])
        # See `_are_objects`: with as many values as lines, each line holds one.
        return values if all(len(column) == count for column in values) else None

    def _decode_each(
        self, chunks: Sequence[Chunk], index: IntArray | None, rejects: list[Reject]
    ) -> tuple[list[list[Any]], IntArray | None]:
        """Decode each record alone; make rejects of bad ones. Returns the values of the others, by decoder, and their
        places."""
        values: list[list[Any]] = [[] for _ in self._decoders]
        places = iter(range(sum(chunk.count for chunk in chunks)) if index is None else index.tolist())
        kept = []
        for chunk in chunks:
            for at, (record, place) in enumerate(zip(records_of(chunk, self._strip), places, strict=False)):
                try:
                    str(record, "utf-8")
                    decoded = [decoder.decode(record) for decoder in self._decoders]
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                    rejection = explain(record, self._schema, error)
                    rejects.append(reject(chunk, at, place, rejection, record, self._schema))
                    continue
                for column, value in zip(values, decoded, strict=True):
                    column.append(value)
                kept.append(place)
        return values, np.array(kept, np.int64) if rejects else None

    def _tensor(self, values: list[Any]) -> FloatArray:
        if self._depth == 1:
            # Half the time of one call for all numbers, whose arguments would be a tuple of them all.
            with suppress(struct.error, OverflowError):
                packed = bytearray().join(starmap(self._pack, map(self._features, values)))
                return np.frombuffer(packed, self._dtype).reshape(-1, *self._shape)
        numbers: Any = map(self._features, values)
        for _ in range(self._depth):
            numbers = chain.from_iterable(numbers)
        return array_of(tuple(numbers), self._dtype).reshape(len(values), *self._shape)


class JsonEncoder:
    """Writes one line per score; see `Encoder`. A score of width k is a list; carried JSON is written as it was."""

    def __init__(self, schema: RecordSchema) -> None:
        uses = [_Use("id", "id", int | str), _Use("score", "score", Any)]
        uses += [_Use(f"c{at}", name, Any, UNSET) for at, name in enumerate(schema.carry)]
        self._line = _struct("Line", uses)
        self._encode = msgspec.json.Encoder().encode_lines

    def header(self) -> bytes:
        return b""

    def encode(self, ids: Sequence[RecordId], scores: FloatArray, carry: Sequence[Sequence[Any]]) -> bytes:
        """Return the lines of n scores, (n,) or (n, k)."""
        return self._encode(list(map(self._line, columns.values(ids), scores.tolist(), *map(columns.values, carry))))


class _Use(NamedTuple):
    """The use of a field of a record: the attribute and type as which it is decoded."""

    attribute: str
    field: str
    type: Any
    default: Any = NODEFAULT


def _uses(schema: RecordSchema) -> list[_Use]:
    may_miss = schema.missing == "nan"
    number: Any = float | None if may_miss else float
    if isinstance(schema.features, list):
        default = None if may_miss else NODEFAULT
        uses = [_Use(f"f{at}", field, number, default) for at, field in enumerate(schema.features)]
    else:
        uses = [_Use("features", schema.features, _array_type(schema.feature_shape, number))]
    if schema.id is not None:
        uses.append(_Use("id", schema.id, int | str))
    return uses + [_Use(f"c{at}", field, Raw, UNSET) for at, field in enumerate(schema.carry)]


def _array_type(shape: tuple[int, ...], number: Any) -> Any:
    if len(shape) == 1 and shape[0] <= _TUPLE_MAX:
        return tuple[(number,) * shape[0]]  # type: ignore[misc]  # the length is known to msgspec only
    for size in reversed(shape):
        number = Annotated[list[number], Meta(min_length=size, max_length=size)]
    return number


def _layers(uses: Sequence[_Use]) -> list[list[_Use]]:
    """Part uses so that none has one field twice: a field that is, say, a feature and carried is decoded twice."""
    layers: list[dict[str, _Use]] = []
    for use in uses:
        layer = next((layer for layer in layers if use.field not in layer), None)
        if layer is None:
            layers.append(layer := {})
        layer[use.field] = use
    return [list(layer.values()) for layer in layers]


def _struct(name: str, uses: Sequence[_Use]) -> type[Any]:
    # A struct takes no field without a default behind one with a default.
    required_first = sorted(uses, key=lambda use: use.default is not NODEFAULT)
    fields = [(use.attribute, use.type, msgspec_field(default=use.default)) for use in required_first]
    try:
        # Without garbage collection: records of JSON hold no cycles, and tracking them would only cost time.
        return msgspec.defstruct(name, fields, rename={use.attribute: use.field for use in uses}, gc=False)
    except ValueError as error:
        raise OptionError(
            "record", [use.field for use in uses], f"names that JSON needs no escapes for ({error})"
        ) from None


def _holds_objects(chunk: Chunk) -> bool:
    """Whether every line of a chunk surely holds one object, or something that is no JSON.

    The whole payload is looked at first, once for all chunks that share it.
    """
    is_whole = chunk.memo.get(_HOLDS_OBJECTS)
    if is_whole is None:
        chunk.memo[_HOLDS_OBJECTS] = is_whole = _are_objects(chunk.payload, chunk.ends)
    return is_whole or _are_objects(chunk.data(), chunk.ends[chunk.first : chunk.last] - chunk.start)


def _is_ascii(chunk: Chunk) -> bool:
    is_ascii = chunk.memo.get(_IS_ASCII)
    if is_ascii is None:
        chunk.memo[_IS_ASCII] = is_ascii = chunk.payload.isascii()
    return is_ascii


def _are_objects(data: bytes | memoryview, ends: IntArray) -> bool:
    """Whether every line starts with a brace and ends with one.

    Then no value goes on from one line to the next, since no JSON value has `}` and `{` side by side, and each line
    has at least one: as many values as lines means one in each.
    """
    codes = np.frombuffer(data, np.uint8)
    if data[0] != _OPEN or codes.take(ends[:-1]).tobytes().count(b"{") != len(ends) - 1:
        return False
    last = codes.take(ends - 2)
    # Lines that end in \r\n have their brace one byte earlier. If they don't all end alike, each is decoded alone.
    if last[0] == _RETURN and len(data) > 2:
        last = codes.take(ends - 3)
    return last.tobytes().count(b"}") == len(ends)
