"""The commands, their options and help texts, and the one voice in which they say what went wrong."""

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from streambatch import __version__
from streambatch.errors import StreambatchError

app = typer.Typer(
    name="streambatch",
    help="Score never-ending streams of records with a model.",
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline's TOML file.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key, such as batch.max_records=256. May be repeated."),
]


def main() -> None:
    """Run the command line; the process's exit code says how it went."""
    try:
        app(prog_name="streambatch")
    except StreambatchError as error:
        _refuse(error)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"streambatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    return


@app.command()
def run(
    config: _Config,
    overrides: _Overrides = None,
    report: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a JSON report of the run when it ends, however it ends.")
    ] = None,
) -> None:
    """Run a pipeline to the end of its input, or until stopped.

    Progress and log lines go to stderr. Ctrl-C or SIGTERM stops gracefully, a second one hard. Exit codes: 0 done or
    clean stop; 1 failed; 2 usage, config or held state; 3 stopped with work unfinished.
    """
    from streambatch.cli.run import run_pipeline

    raise typer.Exit(run_pipeline(config, overrides or [], report))


@app.command()
def check(
    config: _Config,
    overrides: _Overrides = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Score N records of the file sources and print the scores.")
    ] = 0,
) -> None:
    """Check a config without running it: keys, model, shapes and, if asked, scores.

    Writes no output and touches no state. Exit codes: 0 it would run; 2 it would not.
    """
    from streambatch.cli.check import check_config

    raise typer.Exit(check_config(config, overrides or [], sample))


def _refuse(error: StreambatchError) -> NoReturn:
    for line in str(error).splitlines():
        print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)
