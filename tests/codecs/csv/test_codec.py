"""CSV records to rows, and scores to CSV rows."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Raw

from streambatch.codecs.csv.codec import CsvCodec
from streambatch.codecs.formats import framing
from streambatch.core.chunks import Chunk, Partition
from streambatch.core.errors import OptionError
from streambatch.core.outcomes import Rows
from streambatch.core.schema import RecordSchema
from tests.codecs.decoding import decoded, told
from tests.codecs.framed import chunks_in

SCHEMA = RecordSchema(id="time", features=["a", "b"], carry=["note"], dtype="float64")
NAN_SCHEMA = RecordSchema(id="time", features=["a", "b"], carry=["note"], dtype="float64", missing="nan")
HEADER = b"time,a,note,b\n"


def rows_of(data: bytes, schema: RecordSchema = SCHEMA, **options: Any) -> Rows:
    return decoded(schema, chunks_in("csv", [data], **options), codec="csv", framed="csv")


def alone(data: bytes, schema: RecordSchema = SCHEMA) -> list[Rows]:
    """Decode each record in a batch of its own."""
    chunks: list[Chunk] = []
    for chunk in chunks_in("csv", [data]):
        while chunk.count > 1:
            chunks.append(chunk.split_off(1))
        chunks.append(chunk)
    return [decoded(schema, [chunk], codec="csv", framed="csv") for chunk in chunks]


def test_a_batch_of_rows() -> None:
    rows = rows_of(HEADER + b"10:00,1,x,2.5\n10:05,-1e3,,0\n")
    assert rows.ids == ["10:00", "10:05"]
    assert rows.x.tolist() == [[1, 2.5], [-1000, 0]]
    assert rows.carry == [["x", ""]]
    assert rows.index is None


def test_ids_and_carried_fields_are_text_whatever_they_look_like() -> None:
    rows = rows_of(HEADER + b'007,1,NULL,2\n"1,5",1,"say ""hi""\r\n",2\n,1,NaN,2\n')
    assert rows.ids == ["007", "1,5", ""]
    assert rows.carry == [["NULL", 'say "hi"\r\n', "NaN"]]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\n\n", "\r\n\r\n"])
@pytest.mark.parametrize("quote", ["", '"'])
def test_line_endings_blank_lines_and_quotes_change_nothing(ending: str, quote: str) -> None:
    lines = ["time,a,note,b", *(f"t{i},{i},{quote}n{quote},{i}.5" for i in range(5))]
    rows = rows_of(ending.join(lines).encode())
    assert told(rows).rows == {i: (f"t{i}", (i, i + 0.5), "n") for i in range(5)}


def test_one_column() -> None:
    schema = RecordSchema(features=["value"])
    assert rows_of(b"value\n1\n2\n\n3\n", schema).x.tolist() == [[1], [2], [3]]
    assert rows_of(b"value\n1\n", RecordSchema(features="value", shape=(1,))).x.tolist() == [[1]]
    assert rows_of(b"value\n1\n2", schema).ids == ["a:8", "a:9"]


def test_columns_are_found_by_name() -> None:
    assert rows_of(b"b,time,x,a,a\n1,t,,2,3\n").x.tolist() == [[2, 1]]
    assert rows_of(b"b,time,x,a,a\n1,t,,2,3\n").carry == [[UNSET]]
    schema = RecordSchema(id="a", features=["a", "b"], carry=["a"], dtype="float64")
    assert told(rows_of(b"a,b\n1,2\n", schema)).rows == {0: ("1", (1, 2), "1")}


@pytest.mark.parametrize(
    ("row", "stage", "reason", "error", "record_id"),
    [
        (b"t,1,x", "decode", "invalid_csv", "record: expected 4 fields, found 3", None),
        (b"t,1,x,2,3", "decode", "invalid_csv", "record: expected 4 fields, found 5", None),
        (b'"t,1,x,2', "decode", "invalid_csv", "record: expected a closing quote in field 1", None),
        (b't,"1"1,x,2', "decode", "invalid_csv", "record: expected a comma after the closing quote of field 2", None),
        (b"t,1,x\ry,2", "decode", "invalid_csv", "record: expected no carriage return outside quotes", None),
        (b"t,1,\xff,2", "decode", "invalid_encoding", "record: expected UTF-8, found byte 0xff at byte 4", None),
        (b"t,,x,2", "validate", "missing_field", "[record] a: expected a number, found an empty field", "t"),
        (b"t,1,x,  ", "validate", "missing_field", "[record] b: expected a number, found an empty field", "t"),
        (b"t,one,x,2", "validate", "wrong_type", "[record] a: expected a number, found 'one'", "t"),
        (b"t,1_000,x,2", "validate", "wrong_type", "[record] a: expected a number, found '1_000'", "t"),
        (b't,"1,5",x,2', "validate", "wrong_type", "[record] a: expected a number, found '1,5'", "t"),
        ("t,\uff11,x,2".encode(), "validate", "wrong_type", "[record] a: expected a number, found '\uff11'", "t"),
        (b"t,0x10,x,2", "validate", "wrong_type", "[record] a: expected a number, found '0x10'", "t"),
        (b"t,null,x,2", "validate", "wrong_type", "[record] a: expected a number, found 'null'", "t"),
        (b"t,1e999,x,2", "validate", "not_finite", "[record] a: expected a finite float64 number, found inf", "t"),
        (b"t,1,x,-inf", "validate", "not_finite", "[record] b: expected a finite float64 number, found -inf", "t"),
        (b"t,nan,x,2", "validate", "not_finite", "[record] a: expected a finite float64 number, found nan", "t"),
    ],
)
def test_a_bad_row_costs_one_reject(row: bytes, stage: str, reason: str, error: str, record_id: str | None) -> None:
    data = HEADER + b"t0,1,x,2\n" + row + b"\n"
    rows = rows_of(data)
    assert rows.ids == ["t0"]
    (reject,) = rows.rejects
    assert (reject.index, reject.stage, reject.reason, reject.id) == (1, stage, reason, record_id)
    assert reject.error.startswith(error)
    assert (reject.record, reject.position) == (row if row[0] != 34 else row + b"\n", len(data))


def test_rows_after_a_bad_one_keep_their_place() -> None:
    rows = rows_of(HEADER + b"t0,1,x,2\nbad\nt2,3,y,4\n")
    assert rows.index is not None
    assert rows.index.tolist() == [0, 2]
    assert told(rows).rows == {0: ("t0", (1, 2), "x"), 2: ("t2", (3, 4), "y")}


def test_missing_numbers_where_they_may_miss() -> None:
    rows = rows_of(HEADER + b"t0,,x,2\nt1,1,x, \nt2,nan,x,2\nt3,,,\n", NAN_SCHEMA)
    assert [row[1] for row in told(rows).rows.values()] == [("nan", 2), (1, "nan"), ("nan", 2), ("nan", "nan")]
    (reject,) = rows_of(HEADER + b"t0,,x,2\nt1,null,x,\n", NAN_SCHEMA).rejects
    assert (reject.index, reject.reason) == (1, "wrong_type")
    absent = rows_of(b"time,b\nt0,2\nt1,\n", NAN_SCHEMA)
    assert [row[1] for row in told(absent).rows.values()] == [("nan", 2), ("nan", "nan")]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        (b"time,b\n", "[record] a: expected a column of that name, found time, b"),
        (b"Time,a,b\n", "[record] time: expected a column of that name, found Time, a, b"),
        (b'"time"x,a,b\n', "[record] time: expected a column of that name, found no readable header"),
        (b"%b\n" % b",".join(b"c%d" % i for i in range(99)), ", c18, c19, ..."),
    ],
)
def test_a_header_without_a_needed_column_kills_every_row_with_its_reason(header: bytes, error: str) -> None:
    rows = rows_of(header + b"1,2\n3,4\n")
    assert [(reject.stage, reject.reason) for reject in rows.rejects] == [("validate", "missing_field")] * 2
    assert all(reject.error.endswith(error) for reject in rows.rejects)
    assert [reject.record for reject in rows.rejects] == [b"1,2", b"3,4"]


def test_lines_without_a_header_say_so() -> None:
    rows = decoded(SCHEMA, chunks_in("lines", [b"1,2\n"]), codec="csv", framed="lines")
    assert rows.rejects[0].error == "[record] time: expected a column of that name, found no header"
    known = chunks_in("lines", [b"t,1\n"], columns=("time", "v"))
    schema = RecordSchema(id="time", features=["v"])
    assert decoded(schema, known, codec="csv", framed="lines").x.tolist() == [[1]]


def test_one_row_per_frame() -> None:
    chunks = chunks_in("length_prefixed", [b'\0\0\0\x03t,1\0\0\0\x06"t\n",2'], columns=("time", "v"))
    rows = decoded(RecordSchema(id="time", features=["v"]), chunks, codec="csv", framed="length_prefixed")
    assert told(rows).rows == {0: ("t", (1,)), 1: ("t\n", (2,))}


def test_partitions_with_other_columns_share_a_batch() -> None:
    chunks = [
        *chunks_in("csv", [HEADER + b"t0,1,x,2\n"]),
        *chunks_in("csv", [b"b,a,time\n3,4,t1\n5,x,t2\n"], partition=Partition("in", "b")),
        *chunks_in("csv", [b"a\n1\n"], partition=Partition("in", "c")),
        *chunks_in("csv", [HEADER + b"x" * 100 + b"\nt5,6,z,7\n"], max_record_bytes=50),
    ]
    rows = decoded(SCHEMA, chunks, codec="csv", framed="csv")
    assert told(rows).rows == {0: ("t0", (1, 2), "x"), 1: ("t1", (4, 3), "absent"), 5: ("t5", (6, 7), "z")}
    assert [(reject.index, reject.reason) for reject in rows.rejects] == [
        (2, "wrong_type"),
        (3, "missing_field"),
        (4, "oversize"),
    ]
    dead = decoded(SCHEMA, [chunks[3]], codec="csv", framed="csv")
    assert (len(dead.ids), len(dead.rejects)) == (0, 1)


def test_a_large_field_is_no_reason_to_die() -> None:
    note = b"x" * 300_000
    rows = rows_of(HEADER + b't0,1,"%b\n",2\nt1,1,%b,2\n' % (note, note))
    assert [len(text) for text in rows.carry[0]] == [300_001, 300_000]


def test_an_array_of_features_is_no_column() -> None:
    with pytest.raises(OptionError, match="features: found 'v'; allowed: a list of columns"):
        CsvCodec().decoder(RecordSchema(features="v", shape=(2,)), framing("csv"))


FIELD = st.sampled_from(
    ["", " ", "1", "-2.5", "+3", ".5", "5.", "007", "1e5", " 4 ", "\t4", "nan", "inf", "null", "1_0", "x", "1e999",
     '"1"', '" 2"', '"1,2"', '""', '"a""b"', '"\n"', '"\r\n"', 'a"b', '"a"b', '"', "\r", "é", "\x0b1", "-0", "1\x00"]
)  # fmt: skip
ROW = st.lists(FIELD, min_size=3, max_size=5).map(",".join) | st.sampled_from(["", "\r", ",", '"'])


@given(st.lists(ROW, max_size=6), st.sampled_from([SCHEMA, NAN_SCHEMA]))
def test_together_or_alone_the_rows_are_the_same(rows: list[str], schema: RecordSchema) -> None:
    data = HEADER + "\n".join(rows).encode()
    together = told(decoded(schema, chunks_in("csv", [data]), codec="csv", framed="csv"))
    separate = [told(rows) for rows in alone(data, schema)]
    assert together.rows == {at: row for at, one in enumerate(separate) for row in one.rows.values()}
    assert together.rejects == {at: row for at, one in enumerate(separate) for row in one.rejects.values()}


@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=20).filter(lambda v: not len(v) % 2)
)
def test_numbers_are_read_as_python_reads_them(values: list[float]) -> None:
    data = b"a,b\n" + b"".join(b"%r,%.17e\n" % pair for pair in zip(values[::2], values[1::2], strict=True))
    rows = rows_of(data, RecordSchema(features=["a", "b"], dtype="float64"))
    assert rows.x.ravel().tolist() == values


@given(st.lists(st.tuples(st.text(), st.floats(-1e9, 1e9), st.text()), min_size=1, max_size=8))
def test_what_is_written_is_read_back(rows: list[tuple[str, float, str]]) -> None:
    encoder = CsvCodec().encoder(RecordSchema(features=["v"], carry=["note"]))
    ids, scores, notes = map(list, zip(*rows, strict=True))
    try:
        data = encoder.header() + encoder.encode(ids, np.array(scores), [notes])
    except UnicodeEncodeError:
        return
    read = list(csv.reader(io.StringIO(data.decode(), newline="")))
    assert read == [["id", "score", "note"], *([a, repr(b), c] for a, b, c in rows)]


def test_score_rows() -> None:
    encoder = CsvCodec().encoder(RecordSchema(features=["v"], carry=["a", "b,c"]))
    assert encoder.header() == b'id,score,a,"b,c"\n'
    carry: list[list[Any]] = [[Raw(b'"x \\"y\\""'), Raw(b"[1, 2]"), UNSET], ["1", Raw(b"null"), Raw(b"1.50")]]
    assert encoder.encode(["p,q", 7, "r\rs"], np.array([0.5, 1e-9, 2]), carry) == (
        b'"p,q",0.5,"x ""y""","1"\n7,1e-09,"[1, 2]",""\n"r\rs",2.0,"","1.50"\n'
    )
    assert encoder.encode(["p"], np.array([[0.5, 2]]), [[UNSET], ["z"]]) == b'p,"[0.5,2.0]",,z\n'
    assert encoder.encode([], np.empty(0), [[], []]) == b""


def test_csv_spectrum(data: Path) -> None:
    for path in sorted((data / "csv").glob("*.csv")):
        meaning = json.loads(path.with_suffix(".json").read_text("utf-8"))
        names = list(meaning[0] if isinstance(meaning, list) else meaning)
        schema = RecordSchema(id=names[0], features=["none"], carry=names, missing="nan")
        rows = rows_of(path.read_bytes(), schema)
        if path.stem == "location_coordinates":
            # The values that its meaning names are not those of the file.
            meaning = [{**meaning, names[0]: "2095257564", names[1]: "37\ufffd36'37.8\"N 121\ufffd2'17.9\"W"}]
            meaning[0][names[3]] = "Stanislaus"
        assert [dict(zip(names, values, strict=True)) for values in zip(*rows.carry, strict=True)] == meaning
        assert rows.ids == [row[names[0]] for row in meaning]


def test_real_rows_of_a_sensor(data: Path) -> None:
    text = (data / "nab" / "machine_temperature.csv").read_bytes()
    rows = rows_of(text, RecordSchema(id="timestamp", features=["value"], dtype="float64"))
    expected = list(csv.DictReader(io.StringIO(text.decode())))
    assert rows.ids == [row["timestamp"] for row in expected]
    assert rows.x[:, 0].tolist() == [float(row["value"]) for row in expected]
