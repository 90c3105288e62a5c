"""Scores a made-up feed, live: a file of 300,000 records, then some more appended to it while the pipeline follows.

Makes the feed, a linear model and a config in a temporary folder, runs `streambatch run` there as a process of its own
and ends with a summary. Needs nothing; takes about ten seconds.
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np

BACKLOG = 300_000
"""Records in the file when the pipeline starts."""
LIVE_BURSTS, LIVE_BURST = 40, 250
"""What is appended afterwards: so many times, so many records, every tenth of a second."""
BROKEN_EVERY = 50_000
"""One record in so many is no JSON, and becomes a dead letter."""
FEATURES = 10
PATIENCE_SECONDS = 15.0

CONFIG = """\
name = "demo"

[source.feed]
type = "file"
path = "feed.jsonl"
follow = true

[record]
id = "id"
features = "features"
shape = [10]

[queue]
max_records = 8192  # what waits here is latency

[[preprocess]]
type = "standardize"
path = "stats.npz"

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

_ENCODER = msgspec.json.Encoder()


def main() -> int:
    """Run the demo; returns the exit code of the pipeline."""
    folder = Path(tempfile.mkdtemp(prefix="streambatch-demo-"))
    rng = np.random.default_rng(7)
    print(f"making {BACKLOG:,} records, a model and a config in {folder}", flush=True)
    prepare(folder, rng)
    command = [sys.executable, "-m", "streambatch", "run", "pipeline.toml", "--report", "report.json"]
    started = time.monotonic()
    with subprocess.Popen(command, cwd=folder) as process:
        try:
            wait_for_lines(process, folder, BACKLOG)
            backlog_seconds = time.monotonic() - started
            append_live(folder / "feed.jsonl", rng)
            wait_for_lines(process, folder, BACKLOG + LIVE_BURSTS * LIVE_BURST)
        finally:
            process.send_signal(signal.SIGTERM)
        code = process.wait(PATIENCE_SECONDS)
    summarise(folder, backlog_seconds)
    return code


def prepare(folder: Path, rng: np.random.Generator) -> None:
    """Write feed, model, statistics and config."""
    (folder / "feed.jsonl").write_bytes(records(rng, 0, BACKLOG))
    np.savez(folder / "model.npz", weights=rng.normal(size=FEATURES), bias=0.5)
    np.savez(folder / "stats.npz", mean=np.full(FEATURES, 20.0), scale=np.full(FEATURES, 5.0))
    (folder / "pipeline.toml").write_text(CONFIG)


def records(rng: np.random.Generator, first: int, count: int) -> bytes:
    """Return lines of JSON, a few of them broken."""
    x = rng.normal(20.0, 5.0, (count, FEATURES)).round(3).tolist()
    lines = [_ENCODER.encode({"id": first + at, "features": row}) for at, row in enumerate(x)]
    for at in range(-first % BROKEN_EVERY, count, BROKEN_EVERY):
        lines[at] = lines[at][:-2]
    return b"\n".join(lines) + b"\n"


def append_live(path: Path, rng: np.random.Generator) -> None:
    """Append to the feed for a few seconds, as a producer would."""
    with path.open("ab") as feed:
        for burst in range(LIVE_BURSTS):
            feed.write(records(rng, BACKLOG + burst * LIVE_BURST, LIVE_BURST))
            feed.flush()
            time.sleep(0.1)


def wait_for_lines(process: subprocess.Popen[bytes], folder: Path, wanted: int) -> None:
    """Wait until so many records have come out, scored or dead."""
    lines, read = 0, {"scores.jsonl": 0, "dead.jsonl": 0}
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lines < wanted:
        if process.poll() is not None or time.monotonic() > deadline:
            raise SystemExit(f"the pipeline got no further than {lines:,} of {wanted:,} records; see {folder}")
        time.sleep(0.05)
        for name in read:
            if (folder / name).exists():
                with (folder / name).open("rb") as output:
                    output.seek(read[name])
                    new = output.read()
                read[name] += len(new)
                lines += new.count(b"\n")


def summarise(folder: Path, backlog_seconds: float) -> None:
    """Say what came of it."""
    report = json.loads((folder / "report.json").read_bytes())
    counts = report["records"]
    with (folder / "scores.jsonl").open() as scores:
        first = [next(scores).rstrip() for _ in range(3)]
    print(
        f"\nreceived {counts['received']:,} records: {counts['scored']:,} scored, "
        f"{counts['dead_lettered']:,} dead letters, {counts['unacked']:,} left in flight",
        f"the first {BACKLOG:,} took {backlog_seconds:.1f} s with the start of the process: "
        f"{BACKLOG / backlog_seconds:,.0f} records/s",
        f"latency p99 {report['latency_seconds']['p99'] * 1000:.0f} ms, from read to written",
        f"scores in {folder / 'scores.jsonl'}, dead letters in {folder / 'dead.jsonl'}; the first scores:",
        *first,
        sep="\n",
    )


if __name__ == "__main__":
    sys.exit(main())
