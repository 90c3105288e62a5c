"""Every file of the JSON test suite, as one length-prefixed record and, where it has no newline, as a line."""

import json
import struct
from base64 import b64decode
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.e2e.running import is_balanced, running, scores_in

pytestmark = pytest.mark.slow

CONFIG = """
name = "suite"
[source.framed]
type = "tcp"
listen = "127.0.0.1:0"
format = "length_prefixed"
[source.lines]
type = "tcp"
listen = "127.0.0.1:0"
format = "jsonl"
[record]
features = "x"
shape = [2]
[model]
type = "linear"
path = "model.npz"
[sink.scores]
type = "file"
path = "scores.jsonl"
[dead_letter]
path = "dead.jsonl"
[http]
listen = "127.0.0.1:0"
"""


def test_malformed_json_dies_with_a_reason_and_nothing_else_does(data: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "model.npz", weights=np.ones(2), bias=0.0)
    cases = {path.name: path.read_bytes() for path in sorted((data / "json").glob("*.json"))}
    in_lines = {name: raw for name, raw in cases.items() if b"\n" not in raw and raw.removesuffix(b"\r")}
    good = [b'{"x": [%d, 1]}' % number for number in range(3)]

    with running(tmp_path, CONFIG) as daemon:
        for raw in [*cases.values(), *good]:
            daemon.send("framed", struct.pack(">I", len(raw)) + raw)
            assert daemon.get("/livez")[0] == 200
        for raw in [*in_lines.values(), *good]:
            daemon.send("lines", raw + b"\n")
            assert daemon.get("/livez")[0] == 200
        wanted = len(cases) + len(in_lines) + 2 * len(good)

        def settled() -> bool:
            totals = daemon.status()["records"]
            return bool(totals["scored"] + totals["dead_lettered"] == wanted)

        daemon.until(settled, "every case is settled")
        assert daemon.stop() == 0
        report = daemon.report

    assert is_balanced(report["records"])
    assert report["records"]["received"] == wanted
    assert [line["score"] for line in scores_in(tmp_path / "scores.jsonl")] == [1.0, 2.0, 3.0] * 2
    dead = scores_in(tmp_path / "dead.jsonl")
    for source, sent in (("framed", cases), ("lines", in_lines)):
        records = [_record(letter) for letter in dead if letter["source"] == source]
        assert sorted(records) == sorted(sent.values())
    by_record = {(letter["source"], _record(letter)): letter for letter in dead}
    for name, raw in cases.items():
        letter = by_record["framed", raw]
        assert letter["error"]
        if name.startswith("n_"):
            assert letter["reason"] in ("invalid_json", "invalid_encoding"), (name, letter)
        if name.startswith("y_"):
            assert letter["reason"] in ("wrong_type", "wrong_shape", "missing_field"), (name, letter)


def _record(letter: dict[str, Any]) -> bytes:
    if "record_base64" in letter:
        return b64decode(letter["record_base64"])
    return str(letter["record"]).encode()


def test_dead_letters_are_lines_of_json(tmp_path: Path) -> None:
    """A dead letter's own text can't break the file it is in."""
    np.savez(tmp_path / "model.npz", weights=np.ones(2), bias=0.0)
    with running(tmp_path, CONFIG) as daemon:
        raw = json.dumps({"x": "a\nb\u2028c"}).encode()
        daemon.send("lines", raw + b"\n")
        daemon.until(lambda: daemon.status()["records"]["dead_lettered"] == 1, "it is dead")
        assert daemon.stop() == 0
    (letter,) = scores_in(tmp_path / "dead.jsonl")
    assert letter["record"].encode() == raw
    assert letter["reason"] == "wrong_type"
    assert letter["stage"] == "validate"
