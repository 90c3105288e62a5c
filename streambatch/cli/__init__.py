"""The command line: one file per command, imported when the command runs, so that --help is quick."""

from streambatch.cli.app import main

__all__ = ["main"]
