"""Lays out a folder in which a daemon of these tests runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.faults.oracle import Outputs
from tests.faults.records import CONFIG, lines

FINITE = 'type = "file"\npath = "in/*.jsonl"'
FOLLOWED = f'{FINITE}\nfollow = true\nrotate_wait = "500ms"'
ROTATED = 'rotate = { max_bytes = "16KiB" }'


def lay_out(
    folder: Path,
    *,
    source: str = FINITE,
    sink: str = f'type = "file"\npath = "out/scores.jsonl"\n{ROTATED}',
    dead: str = "out/dead.jsonl",
    state: str = "state",
    checkpoints: str = "20ms",
    http: str = "off",
    more: str = "",
) -> Outputs:
    """Write model and config. Returns where the outputs will be."""
    (folder / "in").mkdir(parents=True, exist_ok=True)
    np.savez(folder / "model.npz", weights=np.ones(2, np.float32), bias=0.0)
    (folder / "pipeline.toml").write_text(
        f"""
        name = "faults"
        state_dir = "{state}"
        [source.log]
        {source}
        {CONFIG}
        [sink.scores]
        {sink}
        [dead_letter]
        path = "{dead}"
        stop_at = 1.0
        [delivery]
        checkpoint_interval = "{checkpoints}"
        [http]
        listen = "{http}"
        {more}
        """
    )
    return Outputs(folder, dead=dead)


def feed(folder: Path, count: int, stream: str = "f0", start: int = 0) -> dict[str, int]:
    """Append records of a stream to its file. Returns how many each stream has, when this is the only one."""
    with (folder / f"in/{stream}.jsonl").open("ab") as file:
        file.write(lines(stream, start, start + count))
    return {stream: start + count}
