"""Why a JSON record has no place in a batch: one sentence that names the field, what was expected, what was found.

Asked only about records that the typed decoder refused. Fields are looked at one by one as undecoded JSON, so that a
record that is well-formed is never blamed on its form, however large its numbers are.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Raw

from streambatch.codecs.rows import Rejection, name_of, not_utf8
from streambatch.core.chunks import Reason
from streambatch.core.outcomes import RecordId
from streambatch.core.schema import RecordSchema

Problem = tuple[Reason, str]

_WHOLE = msgspec.json.Decoder(Raw)
_OBJECT = msgspec.json.Decoder(dict[str, Raw])
_ARRAY = msgspec.json.Decoder(list[Raw])
_ID = msgspec.json.Decoder(int | str)
_NUMBER = msgspec.json.Decoder(float)
_KINDS = {
    ord("{"): "an object",
    ord("["): "an array",
    ord('"'): "a string",
    ord("t"): "a boolean",
    ord("f"): "a boolean",
    ord("n"): "null",
}


def explain(record: bytes, schema: RecordSchema, cause: BaseException) -> Rejection:
    """Return why a record died that failed to decode because of `cause`."""
    try:
        str(record, "utf-8")
        whole = bytes(_WHOLE.decode(record)).strip()
        if _kind(whole) == "an object":
            return _explain_fields(whole, schema, cause)
    except UnicodeDecodeError as error:
        return Rejection("decode", "invalid_encoding", not_utf8(error))
    except RecursionError:
        return Rejection("decode", "invalid_json", "record: expected JSON, found it nested too deep")
    except msgspec.DecodeError as error:
        return Rejection("decode", "invalid_json", f"record: expected JSON, found {_malformed(record, error)}")
    return Rejection("validate", "wrong_type", f"record: expected an object, found {_kind(whole)}")


def _malformed(record: bytes, error: msgspec.DecodeError) -> str:
    if not record.strip():
        return "nothing but white space"
    text = str(error)
    if text == "Input data was truncated":
        return "it incomplete"
    return f"it malformed: {text.removeprefix('JSON is malformed: ')}"


def _explain_fields(record: bytes, schema: RecordSchema, cause: BaseException) -> Rejection:
    fields = {name: bytes(raw) for name, raw in _OBJECT.decode(record).items()}
    record_id, problem = _id(fields, schema)
    # What is left is, say, the earlier one of two fields of one name.
    reason, error = problem or next(_feature_problems(fields, schema), ("wrong_type", f"record: {cause}"))
    return Rejection("validate", reason, error, record_id)


def _id(fields: dict[str, bytes], schema: RecordSchema) -> tuple[RecordId | None, Problem | None]:
    if schema.id is None:
        return None, None
    expected = f"[record] {schema.id}: expected an integer or a string"
    if schema.id not in fields:
        return None, ("missing_field", f"{expected}, found nothing")
    raw = fields[schema.id]
    try:
        return _ID.decode(raw), None
    except msgspec.ValidationError:
        kind = _kind(raw)
        found = (
            kind
            if kind != "a number"
            else "an integer out of range"
            # Behind the first character, which may be a sign.
            if raw[1:].isdigit()
            else "a number that is not one"
        )
        return None, ("wrong_type", f"{expected}, found {found}")


def _feature_problems(fields: dict[str, bytes], schema: RecordSchema) -> Iterator[Problem]:
    may_miss = schema.missing == "nan"
    if isinstance(schema.features, list):
        for at, name in enumerate(schema.features):
            if name in fields:
                yield from _number_problems(fields[name], schema, (at,))
            elif not may_miss:
                yield "missing_field", f"[record] {name}: expected a number, found nothing"
        return
    raw = fields.get(schema.features, b"null")
    if raw == b"null":
        found = "null" if schema.features in fields else "nothing"
        yield "missing_field", f"[record] {schema.features}: expected {_array_of(schema.feature_shape)}, found {found}"
    else:
        yield from _array_problems(raw, schema, ())


def _array_problems(raw: bytes, schema: RecordSchema, at: tuple[int, ...]) -> Iterator[Problem]:
    shape = schema.feature_shape[len(at) :]
    if not shape:
        yield from _number_problems(raw, schema, at)
        return
    expected, kind = f"{name_of(schema, at)}: expected {_array_of(shape)}", _kind(raw)
    if kind != "an array":
        yield "wrong_shape" if kind == "a number" else "wrong_type", f"{expected}, found {kind}"
        return
    elements = _ARRAY.decode(raw)
    if len(elements) != shape[0]:
        yield "wrong_shape", f"{expected}, found {len(elements)}"
    for place, element in enumerate(elements):
        yield from _array_problems(bytes(element), schema, (*at, place))


def _number_problems(raw: bytes, schema: RecordSchema, at: tuple[int, ...]) -> Iterator[Problem]:
    expected, kind = f"{name_of(schema, at)}: expected a number", _kind(raw)
    if kind == "null":
        if schema.missing == "reject":
            yield "missing_field", f"{expected}, found null"
    elif kind != "a number":
        yield "wrong_shape" if kind == "an array" else "wrong_type", f"{expected}, found {kind}"
    else:
        try:
            _NUMBER.decode(raw)
        except msgspec.ValidationError:
            yield "not_finite", f"{name_of(schema, at)}: expected a finite {schema.dtype} number, found {_short(raw)}"


def _array_of(shape: tuple[int, ...]) -> str:
    """Return what an array of a shape holds: `10 numbers`, `2 arrays of 3 numbers`."""
    units = ["number", *["array"] * (len(shape) - 1)][::-1]
    return " of ".join(f"{size} {unit}{'s' * (size != 1)}" for size, unit in zip(shape, units, strict=True))


def _short(raw: bytes) -> str:
    return raw.decode() if len(raw) <= 24 else f"a number of {len(raw)} digits"


def _kind(raw: bytes) -> str:
    return _KINDS.get(raw[0], "a number")
