"""`streambatch dead-letters`: list the records that died, with the reasons, or replay them."""

import json
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from streambatch.cli.printing import print_json, print_rows
from streambatch.config.assemble import load_config
from streambatch.config.config import Config
from streambatch.core.chunks import Reason
from streambatch.core.errors import ConfigError, ConfigProblem, HeldError, StreambatchError, first_cause
from streambatch.core.outcomes import Stage
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.ops.dead_letters import dead_letter_key
from streambatch.ops.outputs import OutputError
from streambatch.ops.replay import DeadLetterFilter, ReplayResult, dead_letters, replay, replay_history
from streambatch.ops.replay_source import SUFFIX

DONE, FAILED, UNFINISHED = 0, 1, 3
Wanted = tuple[str | None, str | None, str | None, str | None]
"""Stage, reason, source, run."""
RUNS_SHOWN = 12
"""Runs that an error lists; it counts the others."""


def list_dead_letters(path: Path, overrides: Sequence[str], wanted: Wanted, limit: int, *, is_json: bool) -> int:
    """Print the matching dead letters. Returns the exit code."""
    config, chosen = load_config(path, overrides=overrides), _filter(wanted)
    done = replay_history(config).done
    counts: Counter[tuple[str, str]] = Counter()
    replayed: Counter[tuple[str, str]] = Counter()
    try:
        _check_named(config, chosen)
        for letter in dead_letters(config):
            if not chosen.matches(letter):
                continue
            kind, is_replayed = (letter.stage, letter.reason), dead_letter_key(letter) in done
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
    """Replay the matching dead letters. Returns the exit code. Raises HeldError while the pipeline runs."""
    config, chosen = load_config(path, overrides=overrides), _filter(wanted)
    try:
        _check_named(config, chosen)
        result = replay(config, chosen)
    except OutputError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except BaseExceptionGroup as group:
        # The pipeline of a replay runs in a task group, whose errors come as groups.
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


def _filter(wanted: Wanted) -> DeadLetterFilter:
    """Return the filter of a command's options. Raises ConfigError for an unknown stage or reason."""
    stage, reason, source, run = wanted
    for name, value, allowed in (("--stage", stage, get_args(Stage)), ("--reason", reason, get_args(Reason))):
        if value is not None and value not in allowed:
            raise ConfigError([ConfigProblem(name, repr(value), ", ".join(allowed))])
    return DeadLetterFilter(stage, reason, source, run)


def _check_named(config: Config, chosen: DeadLetterFilter) -> None:
    """Raise ConfigError for a source or run that is in neither the config nor the state nor a dead letter."""
    sources, runs = {part.options.name for part in config.sources}, dict[str, None]()
    if _misnamed(chosen, sources, runs) and (config.state_dir / FILE_NAME).exists():
        with StateStore.read(config.state_dir) as store:
            state = store.load()
            sources |= {name.removesuffix(SUFFIX) for name in (*state.readings, *state.partitions)}
            runs |= dict.fromkeys(run.run for run in store.runs())
    # All dead letters may be gigabytes: they are read for their names only if the state doesn't know the name.
    if _misnamed(chosen, sources, runs):
        for letter in dead_letters(config):
            sources.add(letter.source.removesuffix(SUFFIX))
            runs[letter.run] = None
    if problems := _misnamed(chosen, sources, runs):
        raise ConfigError(problems)


def _misnamed(chosen: DeadLetterFilter, sources: Collection[str], runs: Collection[str]) -> list[ConfigProblem]:
    problems = []
    if chosen.source is not None and chosen.source.removesuffix(SUFFIX) not in sources:
        allowed = sorted(name + end for name in sources for end in ("", SUFFIX))
        problems.append(ConfigProblem("--source", repr(chosen.source), ", ".join(allowed)))
    if chosen.run is not None and chosen.run not in runs:
        last = ", ".join([*runs][-RUNS_SHOWN:]) or "none yet"
        more = f", and {len(runs) - RUNS_SHOWN} more" if len(runs) > RUNS_SHOWN else ""
        problems.append(ConfigProblem("--run", repr(chosen.run), last + more))
    return problems


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


def _print_replay(result: ReplayResult) -> None:
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
