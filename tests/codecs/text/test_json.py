"""JSON records to rows, and scores to JSON lines."""

import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from streambatch.codecs.formats import framing
from streambatch.codecs.text.json import JsonCodec
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import OptionError
from streambatch.core.outcomes import Rows
from streambatch.core.schema import RecordSchema
from tests.codecs.decoding import decoded, framed_bodies, lines_decoded, only_reject, told
from tests.codecs.framed import chunks_in

PAIR = RecordSchema(id="id", features="features", shape=(2,))
GOOD = b'{"id": 1, "features": [1, 2.5]}'


def test_a_batch_of_lines() -> None:
    rows = lines_decoded(PAIR, GOOD, b'{"features":[-1e3,0],"other":[{}],"id":"\\u00e9"}')
    assert rows.ids == [1, "é"]
    assert rows.x.tolist() == [[1, 2.5], [-1000, 0]]
    assert rows.x.dtype == np.float32
    assert rows.index is None
    assert not rows.rejects


def test_x_may_be_written_to() -> None:
    for dtype in ("float32", "float64"):
        schema = RecordSchema(id="id", features="features", shape=(2,), dtype=dtype)
        lines_decoded(schema, GOOD).x[0, 0] = 7


@pytest.mark.parametrize(
    ("options", "record", "x"),
    [
        ({"features": "v", "shape": (1,)}, b'{"v":[3]}', [3]),
        ({"features": "v", "shape": (2, 3)}, b'{"v":[[1,2,3],[4,5,6]]}', [[1, 2, 3], [4, 5, 6]]),
        ({"features": "v", "shape": (1, 2, 1)}, b'{"v":[[[1],[2]]]}', [[[1], [2]]]),
        ({"features": "v", "shape": (100,)}, b'{"v":%b}' % str(list(range(100))).encode(), list(range(100))),
        ({"features": ["b", "a"]}, b'{"a":1,"b":2}', [2, 1]),
        ({"features": ["value"]}, b'{"value":0.1}', [0.1]),
        ({"features": ["a b", "", "é", "f0"]}, '{"":1,"a b":2,"f0":3,"é":4}'.encode(), [2, 1, 4, 3]),
        ({"features": ["a", "b"], "missing": "nan"}, b'{"a":null}', ["nan", "nan"]),
        ({"features": "v", "shape": (2,), "missing": "nan"}, b'{"v":[null,1]}', ["nan", 1]),
        ({"features": "v", "shape": (2, 1), "missing": "nan"}, b'{"v":[[1],[null]]}', [[1], ["nan"]]),
    ],
)
def test_where_features_are(options: dict[str, Any], record: bytes, x: Any) -> None:
    def deep(value: Any) -> Any:
        return tuple(map(deep, value)) if isinstance(value, list) else value

    rows = told(lines_decoded(RecordSchema(**options, dtype="float64"), record, record))
    assert [row[1] for row in rows.rows.values()] == [deep(x), deep(x)]


def test_an_id_is_an_integer_of_any_size_or_a_string() -> None:
    ids = [0, -5, 2**64, -(10**40), "", "a\nb", "😀"]
    records = [msgspec.json.encode({"id": value, "features": [1, 2]}) for value in ids]
    rows = lines_decoded(PAIR, *records)
    assert rows.ids == ids
    lines = JsonCodec().encoder(PAIR).encode(rows.ids, np.zeros(len(ids)), []).splitlines()
    assert [msgspec.json.decode(line)["id"] for line in lines] == ids


def test_without_an_id_field_the_position_is_the_id() -> None:
    schema = RecordSchema(features=["v"])
    rows = lines_decoded(schema, b'{"v":1}', b"oops", b'{"v":2}', b'{"v":1e999}')
    assert rows.ids == ["a:8", "a:21"]
    assert [reject.id for reject in rows.rejects] == ["a:13", "a:33"]


def test_carried_fields_are_copied_bit_by_bit() -> None:
    schema = RecordSchema(id="id", features="features", shape=(2,), carry=["ts", "a b"])
    ts = '{"x" : [1.50, "\\u00e9é", null]}'.encode()
    rows = lines_decoded(schema, GOOD, b'{"id":2,"features":[1,2],"ts":%b,"a b":1e999}' % ts)
    assert [column[0] for column in rows.carry] == [UNSET, UNSET]
    assert [bytes(column[1]) for column in rows.carry] == [ts, b"1e999"]
    assert JsonCodec().encoder(schema).encode(rows.ids, np.array([0.5, -2.0]), rows.carry) == (
        b'{"id":1,"score":0.5}\n{"id":2,"score":-2.0,"ts":%b,"a b":1e999}\n' % ts
    )


def test_one_field_may_be_id_feature_and_carried() -> None:
    schema = RecordSchema(id="n", features=["n", "m"], carry=["m", "n"])
    rows = lines_decoded(schema, b'{"n":7,"m":1.50}', b'{"n":8,"m":2}')
    assert rows.ids == [7, 8]
    assert rows.x.tolist() == [[7, 1.5], [8, 2]]
    assert [[bytes(value) for value in column] for column in rows.carry] == [[b"1.50", b"2"], [b"7", b"8"]]
    assert only_reject(lines_decoded(schema, b'{"n":1.5,"m":1}')).reason == "wrong_type"


def test_a_bad_record_costs_one_reject() -> None:
    rows = lines_decoded(PAIR, GOOD, b'{"id": "x", "features": [1]}', GOOD, b"{", GOOD)
    assert told(rows).rejects == {
        1: (
            "validate",
            "wrong_shape",
            "[record] features: expected 2 numbers, found 1",
            b'{"id": "x", "features": [1]}',
            61,
            "x",
        ),
        3: ("decode", "invalid_json", "record: expected JSON, found it incomplete", b"{", 95, None),
    }
    assert rows.index is not None
    assert rows.index.tolist() == [0, 2, 4]
    assert rows.rejects[0].partition == Partition("in", "a")


HOSTILE = [
    b"   ",
    b"\t",
    GOOD + b" " + GOOD,
    GOOD + GOOD,
    GOOD + b"{",
    b'{"id": 2,',
    b'"features": [1, 2]}',
    b'{"id": 2, "features": [1, 2]',
    b"}",
    b"{}",
    b"[]",
    b"[" + GOOD + b",",
    GOOD + b"]",
    b' {"id": 3, "features": [1, 2]} ',
    b'{"id": 4, "features": [1, 2], "x": {}',
    b'{"id": 5, "features": [1, 1e999]}',
    b'{"id": 6, "features": [1, 2], "x": "\xff"}',
    b'{"id": 7, "features": [1, 2]}\r',
    b'{"id": 8, "features": [1, 2], "x": 1e999}',
    b'{"id": 9, "features": [1, 2], "id": 1.5}',
    b"\xef\xbb\xbf" + GOOD,
    b"\0",
]


@given(st.lists(st.one_of(st.sampled_from(HOSTILE), st.just(GOOD)), max_size=8))
def test_together_or_alone_framed_by_line_or_length_the_rows_are_the_same(records: list[bytes]) -> None:
    together = lines_decoded(PAIR, *records)
    stripped = [record.removesuffix(b"\r") for record in records]
    by_length = decoded(PAIR, chunks_in("length_prefixed", [framed_bodies(stripped)]), framed="length_prefixed")
    assert places(told(together)) == places(told(by_length))
    for at, record in enumerate(records):
        assert told(together).rows.get(at) == told(lines_decoded(PAIR, record)).rows.get(0)


def places(result: Any) -> tuple[dict[int, Any], dict[int, Any]]:
    """Rows and rejects but for positions, in which framings differ."""
    return result.rows, {place: (*reject[:4], reject[5]) for place, reject in result.rejects.items()}


@pytest.mark.parametrize(
    "records",
    [
        [GOOD + GOOD, b" "],
        [b" ", GOOD + b" " + GOOD],
        [GOOD + b'{"id": 2,', b'"features": [1, 2]}'],
        [GOOD + GOOD, b'{"id": 2,', b'"features": [1, 2]}'],
        [b'{"id": 2, "features": [1, 2], "x": {}', b'} {"id": 3, "features": [1, 2]}'],
        [b"{", b"}", GOOD + GOOD + GOOD],
        [GOOD + GOOD, b'{"id": 2, "features": [1, 2], "x": "}', b'{"}'],
    ],
)
def test_as_many_values_as_lines_is_not_one_in_each(records: list[bytes]) -> None:
    rows = lines_decoded(PAIR, *records)
    assert len(rows.rejects) == len(records)
    assert {reject.reason for reject in rows.rejects} == {"invalid_json"}


def test_lines_of_several_partitions_and_parts_of_chunks() -> None:
    first = chunks_in("lines", [GOOD + b"\n\r\n" + GOOD + b"\r\n", GOOD])
    second = chunks_in("lines", [b'{"id":2,"features":[3,4]}\nx\n'], partition=Partition("in", "b"))
    head = first[0].split_off(1)
    rows = decoded(PAIR, [*first, *second])
    assert rows.ids == [1, 1, 2]
    (reject,) = rows.rejects
    assert (reject.index, reject.partition.name, reject.position) == (3, "b", 28)
    assert decoded(PAIR, [head]).x.tolist() == [[1, 2.5]]


def test_records_that_died_in_framing_keep_their_place() -> None:
    blocks = [GOOD + b"\n" + b"x" * 100 + b"\n" + GOOD + b"\n", b"x" * 70_000 + b"\n" + GOOD + b'\n{"id']
    rows = decoded(PAIR, chunks_in("lines", blocks, max_record_bytes=50, cut_off=True))
    assert rows.index is not None
    assert rows.index.tolist() == [0, 2, 4]
    assert [(r.index, r.stage, r.reason, len(r.record), r.truncated) for r in rows.rejects] == [
        (1, "frame", "oversize", 100, False),
        (3, "frame", "oversize", 65536, True),
        (5, "frame", "cut_off", 4, False),
    ]
    assert rows.rejects[0].error == "max_record_bytes: expected at most 50 B, found 100 B"
    dead = chunks_in("lines", [b"x" * 100], max_record_bytes=50)
    assert only_reject(decoded(PAIR, dead)).reason == "oversize"


def test_numbers_that_are_not_finite_in_the_schemas_type_die() -> None:
    schema = RecordSchema(id="id", features=["a", "b"])
    rows = lines_decoded(schema, b'{"id":1,"a":1,"b":1e300}', b'{"id":2,"a":1,"b":1e999}', b'{"id":3,"a":1e30,"b":2}')
    assert rows.ids == [3]
    assert [(r.stage, r.reason, r.id, r.error) for r in rows.rejects] == [
        ("validate", "not_finite", 1, "[record] b: expected a finite float32 number, found inf"),
        ("validate", "not_finite", 2, "[record] b: expected a finite float32 number, found 1e999"),
    ]
    wide = RecordSchema(id="id", features=["a", "b"], dtype="float64", missing="nan")
    assert told(lines_decoded(wide, b'{"id":1,"a":null,"b":1e300}')).rows == {0: (1, ("nan", 1e300))}
    assert only_reject(lines_decoded(wide, b'{"id":1,"b":-1e999}')).reason == "not_finite"


@pytest.mark.parametrize("depth", [2_000, 100_000])
@pytest.mark.parametrize("shape", [b"[%b]", b'{"id":1,"features":[1,2],"x":%b}', b'{"id":1,"features":%b}'])
def test_nesting_without_end_is_invalid(depth: int, shape: bytes) -> None:
    reject = only_reject(lines_decoded(PAIR, shape % (b"[" * depth + b"]" * depth)))
    assert (reject.stage, reject.reason) == ("decode", "invalid_json")
    assert reject.error == "record: expected JSON, found it nested too deep"


def test_a_line_of_10_mib() -> None:
    record = b'{"id":1,"x":"%b","features":[1,2]}' % (b"x" * (10 << 20))
    chunks = chunks_in("lines", [GOOD + b"\n" + record + b"\n"], max_record_bytes=11 << 20)
    assert decoded(PAIR, chunks).x.tolist() == [[1, 2.5], [1, 2]]


@pytest.mark.parametrize("framed", ["lines", "length_prefixed"])
def test_the_json_test_suite(data: Path, framed: str) -> None:
    files = sorted((data / "json").glob("*.json"))
    assert len(files) > 100
    for path in files:
        record = path.read_bytes()
        if framed == "lines" and (b"\n" in record or not record):
            continue
        sent = framed_bodies([record]) if framed == "length_prefixed" else record
        kind, is_malformed = path.name[0], ("invalid_json", "invalid_encoding")
        reject = only_reject(decoded(PAIR, chunks_in(framed, [sent]), framed=framed))
        assert reject.record == record
        if kind == "n":
            assert (reject.stage, reject.reason in is_malformed) == ("decode", True), path.name
        elif kind == "y":
            assert (reject.stage, reject.reason in is_malformed) == ("validate", False), path.name


@given(st.binary(max_size=40))
def test_no_bytes_crash_the_decoder(record: bytes) -> None:
    rows = decoded(PAIR, chunks_in("length_prefixed", [framed_bodies([record, GOOD])]), framed="length_prefixed")
    assert len(rows.rejects) == 1


def test_score_lines() -> None:
    encoder = JsonCodec().encoder(RecordSchema(features=["v"]))
    assert encoder.header() == b""
    assert encoder.encode(["a", 2], np.array([0.5, 1e-9]), []) == b'{"id":"a","score":0.5}\n{"id":2,"score":1e-9}\n'
    assert encoder.encode([1], np.array([[0.25, 2]], np.float32), []) == b'{"id":1,"score":[0.25,2.0]}\n'
    assert encoder.encode([], np.empty(0), []) == b""


@given(st.floats(allow_nan=False, allow_infinity=False, width=32))
def test_a_score_is_read_back_as_it_was(score: float) -> None:
    line = JsonCodec().encoder(PAIR).encode([1], np.array([score], np.float32), [])
    assert msgspec.json.decode(line)["score"] == score


def test_carried_text_becomes_a_string() -> None:
    encoder = JsonCodec().encoder(RecordSchema(features=["v"], carry=["a", "b", "c"]))
    line = encoder.encode([1], np.array([2.0]), [['x"y'], [UNSET], [Raw(b"[1]")]])
    assert line == b'{"id":1,"score":2.0,"a":"x\\"y","c":[1]}\n'


def test_a_name_that_json_escapes_is_refused() -> None:
    with pytest.raises(OptionError, match="names that JSON needs no escapes for"):
        JsonCodec().decoder(RecordSchema(features=['a"b']), framing("lines"))


def test_decoding_in_a_deep_stack_still_tells_good_from_bad() -> None:
    def descend(levels: int) -> Rows:
        return descend(levels - 1) if levels else lines_decoded(PAIR, GOOD, b"[")

    rows = descend(sys.getrecursionlimit() // 2)
    assert (len(rows.ids), len(rows.rejects)) == (1, 1)


def test_the_payload_of_one_chunk_is_not_joined() -> None:
    class Watched(Chunk):
        def data(self) -> bytes:
            assert self.payload is block
            return block

    block = GOOD + b"\n"
    (chunk,) = chunks_in("lines", [block])
    watched = Watched(chunk.partition, block, chunk.ends, 0, 0.0)
    assert decoded(PAIR, [watched]).ids == [1]
