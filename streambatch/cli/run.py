"""`streambatch run`: the daemon, with a progress bar if stderr is a terminal."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from streambatch.config.config import Config
from streambatch.core.errors import ConfigError, ConfigProblem
from streambatch.daemon import daemon
from streambatch.daemon.daemon import ProgressDisplay
from streambatch.observe.logs import LogFormat, LogLevel, LogOptions, stderr_is_terminal


def run_pipeline(config: Path, overrides: Sequence[str], report: Path | None, *, level: str, format: str) -> int:
    """Run a config and return the exit code. level, format: as in LogOptions.

    Raises StreambatchError for an error at its start.
    """
    logs = LogOptions(
        _one_of("--log-level", level, get_args(LogLevel)), _one_of("--log-format", format, get_args(LogFormat))
    )
    return daemon.run(config, overrides=overrides, report=report, progress=_progress, logs=logs)


def _one_of(option: str, found: str, allowed: Sequence[str]) -> Any:
    if found.lower() not in allowed:
        raise ConfigError([ConfigProblem(option, repr(found), ", ".join(allowed))])
    return found.lower()


def _progress(config: Config) -> ProgressDisplay | None:
    """Return a progress bar for a terminal, unless scores go to that terminal as well."""
    # A bar would redraw over the scores.
    if not stderr_is_terminal() or (config.sink.type == "stdout" and sys.stdout.isatty()):
        return None
    from streambatch.cli.progress import ProgressBar

    return ProgressBar(config.name)
