"""`streambatch init`: a commented config, a small model and sample input that run as they are."""

from importlib.resources import files
from pathlib import Path

import numpy as np

from streambatch.cli.samples import rides, write_model
from streambatch.core.errors import ConfigError, ConfigProblem

RECORDS = 1000
BROKEN_EVERY = 400
"""One ride in this many is broken, to show dead letters."""
CONFIG, MODEL, INPUT = "pipeline.toml", "model.npz", "rides.jsonl"


def write_starter(folder: Path) -> int:
    """Write the files into `folder`, which is created if needed. Returns the exit code.

    Raises ConfigError if one of them exists, before any is written, or if they can't be written.
    """
    _check_free(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / INPUT).write_bytes(rides(np.random.default_rng(7), 1, RECORDS, broken_every=BROKEN_EVERY))
        write_model(folder / MODEL)
        (folder / CONFIG).write_bytes(files("streambatch.cli").joinpath("starter.toml").read_bytes())
    except OSError as error:
        found = f"{error.filename} ({str(error.strerror).lower()})"
        raise ConfigError([ConfigProblem(str(folder), found, "a folder that can be made and written")]) from error
    print(f"wrote {CONFIG}, {MODEL} and {INPUT}; next:")
    if folder != Path():
        print(f"  cd {folder}")
    print(f"  streambatch check {CONFIG} --sample 3\n  streambatch run {CONFIG}")
    return 0


def _check_free(folder: Path) -> None:
    # Checked for all files first, so that a refusal leaves no half of a starter behind.
    there = [name for name in (CONFIG, MODEL, INPUT) if (folder / name).exists()]
    if there:
        raise ConfigError([ConfigProblem(str(folder), " and ".join(there), "a folder without, since none is replaced")])
