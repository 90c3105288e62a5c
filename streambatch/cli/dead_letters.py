"""`streambatch dead-letters`: which records died and why, and sending them through once more."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import msgspec

from streambatch.assemble import load_config
from streambatch.cli.printing import print_json, print_rows
from streambatch.errors import ConfigError, ConfigProblem, HeldError, StreambatchError, first_cause
from streambatch.ops.letters import key_of
from streambatch.ops.outputs import OutputError
from streambatch.ops.replay import Filter, Replay, dead_letters, known_replays, replay
from streambatch.records import Reason, Stage

DONE, FAILED, UNFINISHED = 0, 1, 3
Wanted = tuple[str | None, str | None, str | None, str | None]
"""Stage, reason, source, run."""


def list_dead_letters(path: Path, overrides: Sequence[str], wanted: Wanted, limit: int, *, is_json: bool) -> int:
    """Print the dead letters that are wanted. Returns the exit code."""
    config, chosen = load_config(path, overrides=overrides), _filter(wanted)
    done = known_replays(config).done
    counts: Counter[tuple[str, str]] = Counter()
    replayed: Counter[tuple[str, str]] = Counter()
    try:
        for letter in dead_letters(config):
            if not chosen.takes(letter):
                continue
            kind, is_replayed = (letter.stage, letter.reason), key_of(letter) in done
            counts[kind] += 1
            replayed[kind] += is_replayed
            if is_json:
                print(json.dumps({**msgspec.to_builtins(letter), "replayed": is_replayed}))
            elif counts.total() <= limit:
                where = f"{letter.source} {letter.partition}, position {letter.position}"
                print(f"{letter.at}  {letter.error} ({where}){', replayed' if is_replayed else ''}")
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if not is_json:
        _print_counts(counts, replayed, limit)
    return DONE


def replay_dead_letters(path: Path, overrides: Sequence[str], wanted: Wanted, *, is_json: bool) -> int:
    """Replay the dead letters that are wanted. Returns the exit code. Raises HeldError while the pipeline runs."""
    config = load_config(path, overrides=overrides)
    try:
        result = replay(config, _filter(wanted))
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except BaseExceptionGroup as group:
        cause = first_cause(group)
        if isinstance(cause, StreambatchError) and not isinstance(cause, HeldError | ConfigError):
            print(f"error: {cause}", file=sys.stderr)
            return FAILED
        raise cause from group
    if is_json:
        print_json(result)
    else:
        _print_replay(result)
    return UNFINISHED if result.report is not None and not result.report.is_complete else DONE


def _filter(wanted: Wanted) -> Filter:
    """Return the filter. Raises ConfigError for a stage or reason that there is not."""
    stage, reason, source, run = wanted
    for name, value, allowed in (("--stage", stage, get_args(Stage)), ("--reason", reason, get_args(Reason))):
        if value is not None and value not in allowed:
            raise ConfigError([ConfigProblem(name, repr(value), ", ".join(allowed))])
    return Filter(stage, reason, source, run)


def _print_counts(counts: Counter[tuple[str, str]], replayed: Counter[tuple[str, str]], limit: int) -> None:
    if counts.total() > limit:
        print(f"... and {counts.total() - limit} more")
    if counts and limit:
        print()
    for (stage, reason), count in sorted(counts.items()):
        done = replayed[stage, reason]
        print(f"{stage:<12}{reason:<18}{count}{f', {done} replayed' if done else ''}")
    if not counts:
        print("none")


def _print_replay(result: Replay) -> None:
    print_rows(("left out", f"{count}: {why}") for why, count in result.left_out.items())
    if result.report is None:
        print("nothing to replay")
        return
    left = f", and {result.pending} that a replay before had left" if result.pending else ""
    records = result.report.records
    print_rows(
        [
            ("chosen", f"{result.chosen}{left}"),
            ("scored", records["scored"]),
            ("died again", records["dead_lettered"]),
        ]
    )
    if records["unacked"]:
        print_rows([("unfinished", f"{records['unacked']}; the next replay goes on with them")])
