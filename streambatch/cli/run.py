"""`streambatch run`: the daemon, with a progress bar where somebody looks at stderr."""

import sys
from collections.abc import Sequence
from pathlib import Path

from streambatch import daemon
from streambatch.config import Config
from streambatch.daemon import Progress
from streambatch.logs import stderr_is_terminal


def run_pipeline(config: Path, overrides: Sequence[str], report: Path | None) -> int:
    """Run a config and return the exit code. Raises StreambatchError for what keeps it from starting."""
    return daemon.run(config, overrides=overrides, report=report, progress=_progress)


def _progress(config: Config) -> Progress | None:
    """Return a progress bar for a terminal, unless scores go to that terminal as well."""
    if not stderr_is_terminal() or (config.sink.type == "stdout" and sys.stdout.isatty()):
        return None
    from streambatch.cli.progress import ProgressBar

    return ProgressBar(config.name)
