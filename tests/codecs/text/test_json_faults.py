"""What a JSON record's reject says."""

import pytest

from streambatch.core.schema import RecordSchema
from tests.codecs.decoding import lines_decoded, only_reject

ARRAY = RecordSchema(id="id", features="v", shape=(3,))
GRID = RecordSchema(features="v", shape=(2, 3))
SCALARS = RecordSchema(id="key", features=["a", "b"])
ID = "[record] id: expected an integer or a string, found "
V2 = "[record] v[2]: "
FINITE = "expected a finite float32 number, found "


@pytest.mark.parametrize(
    ("schema", "record", "reason", "error"),
    [
        (ARRAY, b"[1]", "wrong_type", "record: expected an object, found an array"),
        (ARRAY, b' "x"', "wrong_type", "record: expected an object, found a string"),
        (ARRAY, b"null", "wrong_type", "record: expected an object, found null"),
        (ARRAY, b"-1", "wrong_type", "record: expected an object, found a number"),
        (ARRAY, b"{}", "missing_field", ID + "nothing"),
        (ARRAY, b'{"id":null}', "wrong_type", ID + "null"),
        (ARRAY, b'{"id":true}', "wrong_type", ID + "a boolean"),
        (ARRAY, b'{"id":[]}', "wrong_type", ID + "an array"),
        (ARRAY, b'{"id":1.0}', "wrong_type", ID + "a number that is not one"),
        (ARRAY, b'{"id":%b}' % (b"9" * 9999), "wrong_type", ID + "an integer out of range"),
        (ARRAY, b'{"id":1}', "missing_field", "[record] v: expected 3 numbers, found nothing"),
        (ARRAY, b'{"id":1,"v":null}', "missing_field", "[record] v: expected 3 numbers, found null"),
        (ARRAY, b'{"id":1,"v":"123"}', "wrong_type", "[record] v: expected 3 numbers, found a string"),
        (ARRAY, b'{"id":1,"v":3}', "wrong_shape", "[record] v: expected 3 numbers, found a number"),
        (ARRAY, b'{"id":1,"v":[]}', "wrong_shape", "[record] v: expected 3 numbers, found 0"),
        (ARRAY, b'{"id":1,"v":[1,2,3,4]}', "wrong_shape", "[record] v: expected 3 numbers, found 4"),
        (ARRAY, b'{"id":1,"v":[1,2,"3"]}', "wrong_type", "[record] v[2]: expected a number, found a string"),
        (ARRAY, b'{"id":1,"v":[1,true,3]}', "wrong_type", "[record] v[1]: expected a number, found a boolean"),
        (ARRAY, b'{"id":1,"v":[{},2,3]}', "wrong_type", "[record] v[0]: expected a number, found an object"),
        (ARRAY, b'{"id":1,"v":[[1],2,3]}', "wrong_shape", "[record] v[0]: expected a number, found an array"),
        (ARRAY, b'{"id":1,"v":[1,null,3]}', "missing_field", "[record] v[1]: expected a number, found null"),
        (ARRAY, b'{"id":1,"v":[1,2,-1e999]}', "not_finite", V2 + FINITE + "-1e999"),
        (ARRAY, b'{"id":1,"v":[1,2,%b]}' % (400 * b"9"), "not_finite", V2 + FINITE + "a number of 400 digits"),
        (ARRAY, b'{"id":1,"v":[1,2,1e300]}', "not_finite", V2 + FINITE + "inf"),
        (GRID, b'{"v":[[1,2,3]]}', "wrong_shape", "[record] v: expected 2 arrays of 3 numbers, found 1"),
        (GRID, b'{"v":[[1,2,3],[4]]}', "wrong_shape", "[record] v[1]: expected 3 numbers, found 1"),
        (GRID, b'{"v":[1,2]}', "wrong_shape", "[record] v[0]: expected 3 numbers, found a number"),
        (GRID, b'{"v":[[1,2,3],[4,"x",6]]}', "wrong_type", "[record] v[1][1]: expected a number, found a string"),
        (GRID, b'{"v":[[1,2,3],[4,5,1e300]]}', "not_finite", "[record] v[1][2]: " + FINITE + "inf"),
        (SCALARS, b'{"a":1,"b":2}', "missing_field", "[record] key: expected an integer or a string, found nothing"),
        (SCALARS, b'{"key":1,"b":2}', "missing_field", "[record] a: expected a number, found nothing"),
        (SCALARS, b'{"key":1,"a":1,"b":null}', "missing_field", "[record] b: expected a number, found null"),
        (SCALARS, b'{"key":1,"a":"","b":2}', "wrong_type", "[record] a: expected a number, found a string"),
        (SCALARS, b'{"key":1,"a":[1],"b":2}', "wrong_shape", "[record] a: expected a number, found an array"),
    ],
)  # fmt: skip
def test_what_a_valid_record_lacks(schema: RecordSchema, record: bytes, reason: str, error: str) -> None:
    reject = only_reject(lines_decoded(schema, record))
    assert (reject.stage, reject.reason, reject.error, reject.record) == ("validate", reason, error, record)


@pytest.mark.parametrize(
    ("record", "reason", "error"),
    [
        (b"[1,]", "invalid_json", "record: expected JSON, found it malformed: trailing comma in array (byte 3)"),
        (b'{"id":1,"v":[1,2],}', "invalid_json", "record: expected JSON, found it malformed: trailing comma in object"),
        (b"{} {}", "invalid_json", "record: expected JSON, found it malformed: trailing characters"),
        (b'{"id":1', "invalid_json", "record: expected JSON, found it incomplete"),
        (b"  ", "invalid_json", "record: expected JSON, found nothing but white space"),
        (b"NaN", "invalid_json", "record: expected JSON, found it malformed: invalid character (byte 0)"),
        (b'{"id":"\xff"}', "invalid_encoding", "record: expected UTF-8, found byte 0xff at byte 7"),
        (b'{"id":"\xed\xa0\x80"}', "invalid_encoding", "record: expected UTF-8, found byte 0xed at byte 7"),
        (b'{"id":"\\ud800"}', "invalid_json", "record: expected JSON, found it incomplete"),
    ],
)
def test_what_is_no_json(record: bytes, reason: str, error: str) -> None:
    reject = only_reject(lines_decoded(ARRAY, record))
    assert (reject.stage, reject.reason, reject.record, reject.id) == ("decode", reason, record, None)
    assert reject.error.startswith(error)


@pytest.mark.parametrize(("field", "record_id"), [(b"7", 7), (b'"x"', "x"), (b"null", None), (b"1.5", None)])
def test_a_reject_has_its_id_if_that_can_be_told(field: bytes, record_id: object) -> None:
    assert only_reject(lines_decoded(ARRAY, b'{"id":%b,"v":1}' % field)).id == record_id


def test_where_fields_may_miss_only_wrong_ones_are_named() -> None:
    schema = RecordSchema(features=["a", "b"], missing="nan")
    assert only_reject(lines_decoded(schema, b'{"b":"x"}')).error == "[record] b: expected a number, found a string"
    array = RecordSchema(features="v", shape=(2,), missing="nan")
    assert only_reject(lines_decoded(array, b'{"v":[null]}')).error == "[record] v: expected 2 numbers, found 1"
    assert only_reject(lines_decoded(array, b'{"v":null}')).error == "[record] v: expected 2 numbers, found null"


def test_the_earlier_of_two_fields_of_one_name_can_be_wrong_too() -> None:
    reject = only_reject(lines_decoded(ARRAY, b'{"id":1.5,"id":1,"v":[1,2,3]}'))
    assert (reject.stage, reject.reason, reject.id) == ("validate", "wrong_type", 1)
