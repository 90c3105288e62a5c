"""The commands with their options and help texts, and how errors are printed."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from streambatch.cli.startup_signals import exiting_on_signals
from streambatch.core.errors import StreambatchError
from streambatch.core.text import repr_encodable
from streambatch.version import __version__

app = typer.Typer(
    name="streambatch",
    help="Score never-ending streams of records with a model, in micro-batches.\n\n"
    "New here? `streambatch demo` shows it at work, `streambatch init` writes a config to start from.",
    rich_markup_mode=None,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

FAILED, REFUSED = 1, 2
_UsageError: type[Exception] = typer.BadParameter.__bases__[0]
"""The base of the errors for a wrong command line; typer exports no name for it."""

_ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="The pipeline's config, a TOML file.")]
_SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Use this value for a key, such as batch.max_records=256. May be repeated."
    ),
]
_JsonOption = Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")]


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        # Not standalone, or typer would print errors and exit in its own way.
        code = app(prog_name="streambatch", standalone_mode=False)
    except StreambatchError as error:
        code = _refuse(str(error))
    except _UsageError as error:
        code = _refuse_usage(error)
    except typer.Abort:
        print("error: interrupted", file=sys.stderr)
        code = FAILED
    raise SystemExit(code or 0)


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
def demo(
    seconds: Annotated[int, typer.Option(metavar="N", min=1, max=3600, help="How long to feed it.")] = 10,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the folder with config, input and output.")] = False,
) -> None:
    """See it at work: a made-up feed, scored live. Needs nothing.

    Makes a feed, a model and a config in a temporary folder, runs the pipeline on them, shows its progress and ends
    with a summary. Exit codes: 0 done; 1 failed.
    """
    # Here, as in each command: the others need not wait for imports that only this one uses.
    from streambatch.cli.demo import run_demo

    raise typer.Exit(run_demo(seconds, keep=keep))


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to; made if it isn't there.")] = Path(),
) -> None:
    """Write a config to start from, with a small model and sample input.

    They run as they are; the config's comments say what to try next. Nothing is overwritten. Exit codes: 0 done; 2 a
    file is in the way.
    """
    from streambatch.cli.init import write_starter

    raise typer.Exit(write_starter(folder))


@app.command()
def check(
    config: _ConfigArgument,
    overrides: _SetOption = None,
    sample: Annotated[
        int, typer.Option(metavar="N", min=0, help="Score N records of each file source and print the scores.")
    ] = 0,
) -> None:
    """Print what a config would run, or everything that is wrong with it.

    Loads the model and tries it on zeros, to see that shapes fit. Writes no output and touches no state. Exit codes: 0
    it would run; 2 it would not.
    """
    from streambatch.cli.check import check_config

    raise typer.Exit(check_config(config, overrides or [], sample))


@app.command()
def run(
    config: _ConfigArgument,
    overrides: _SetOption = None,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="When it ends, however it ends, write counts, rates and latency as JSON."),
    ] = None,
    log_level: Annotated[
        str,
        typer.Option(
            metavar="LEVEL", envvar="STREAMBATCH_LOG_LEVEL", help="Say this and worse: debug, info, warning or error."
        ),
    ] = "info",
    log_format: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", envvar="STREAMBATCH_LOG_FORMAT", help="json, text, or auto: text where a terminal is."
        ),
    ] = "auto",
) -> None:
    """Run a pipeline to the end of its input, or until stopped.

    Progress and log lines go to stderr. Ctrl-C or SIGTERM stops gracefully: what was received is finished. A second
    one stops hard. SIGHUP has the config read again. Exit codes: 0 done or clean stop; 1 failed; 2 usage, config or
    held state; 3 stopped with work unfinished.
    """
    with exiting_on_signals():
        from streambatch.cli.run import run_pipeline

        code = run_pipeline(config, overrides or [], report, level=log_level, format=log_format)
    raise typer.Exit(code)


@app.command()
def top(
    urls: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URL]...", help="Admin ports to watch; http://127.0.0.1:9464 if none is named."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print one picture as text and exit.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print one as JSON, a line for each, and exit.")] = False,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN", envvar="STREAMBATCH_TOKEN", help="Sent along; else what STREAMBATCH_TOKEN holds."
        ),
    ] = None,
) -> None:
    """Watch daemons: rates, latency, queue, the stage that limits and the knob to turn.

    Refreshed once a second; q or Ctrl-C quits. A daemon that is down is shown as down and comes back by itself. Where
    stdout is no terminal, one picture is printed, as with --once. Exit codes: 0 done; 1 with --once or --json, a daemon
    can't be reached; 2 a URL is none.
    """
    from streambatch.cli.top import watch_daemons

    raise typer.Exit(watch_daemons(urls or [], token=token, once=once, as_json=is_json))


@app.command()
def health(
    url: Annotated[str, typer.Argument(metavar="[URL]", help="The daemon's admin port.")] = "http://127.0.0.1:9464",
    is_ready_asked: Annotated[
        bool, typer.Option("--ready", help="Probe /readyz: whether it takes in records and can write scores.")
    ] = False,
) -> None:
    """Probe a daemon, for health checks where there is no curl.

    Prints the answer of /livez, which says whether every stage is alive, or of /readyz. Exit codes: 0 yes; 1 no, or no
    answer; 2 the URL is none.
    """
    from streambatch.cli.health import probe

    raise typer.Exit(probe(url, is_ready_asked=is_ready_asked))


@app.command()
def schema() -> None:
    """Print the JSON Schema of the config, installed plugins included.

    For editors and other programs: with the output in schema.json, an editor that reads `#:schema ./schema.json` as a
    config's first line completes and checks keys.
    """
    from streambatch.cli.schema import print_schema

    raise typer.Exit(print_schema())


_state = typer.Typer(
    help="See how far each source has come, or forget it on purpose.\n\n"
    "`streambatch state show CONFIG` and `streambatch state reset CONFIG` say more with --help.",
    rich_markup_mode=None,
)
app.add_typer(_state, name="state")


@_state.command("show")
def state_show(config: _ConfigArgument, overrides: _SetOption = None, is_json: _JsonOption = False) -> None:
    """Print how far each source has come.

    Positions, records and notes by source and partition, how far the outputs go, the last run: all as the last
    checkpoint has it. A pipeline that runs goes on meanwhile. Exit codes: 0 done; 2 config or state can't be read.
    """
    from streambatch.cli.state import show_state

    raise typer.Exit(show_state(config, overrides or [], is_json=is_json))


@_state.command("reset")
def state_reset(
    config: _ConfigArgument,
    overrides: _SetOption = None,
    source: Annotated[
        str | None, typer.Option(metavar="NAME", help="Forget this source only; else all sources and outputs.")
    ] = None,
    is_sure: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
) -> None:
    """Forget how far a source, or everything, has come.

    The next run reads from the beginning. What was written stays, so that records may be scored once more. Past runs
    are kept. Exit codes: 0 done; 1 the answer was no; 2 a pipeline that runs holds the state, or there is no such
    source.
    """
    from streambatch.cli.state import reset_state

    raise typer.Exit(reset_state(config, overrides or [], source, is_sure=is_sure))


@app.command()
def audit(config: _ConfigArgument, overrides: _SetOption = None, is_json: _JsonOption = False) -> None:
    """Prove from state and files alone that every record is accounted for.

    Counts balance, the journal has each record once, the files hold what was committed and as many records as were
    scored and died. Runs nothing, changes nothing; of a pipeline that runs it looks at the last checkpoint. Exit codes:
    0 all of it holds; 1 something doesn't; 2 config or state can't be read.
    """
    from streambatch.cli.audit import audit_state

    raise typer.Exit(audit_state(config, overrides or [], is_json=is_json))


_runs = typer.Typer(
    help="List past runs, show what one was made of, or verify that it still gives the same output.\n\n"
    "`streambatch runs list CONFIG`, `runs show CONFIG RUN` and `runs verify CONFIG RUN` say more with --help.",
    rich_markup_mode=None,
)
app.add_typer(_runs, name="runs")
_RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run, or `latest`.")]


@_runs.command("list")
def runs_list(config: _ConfigArgument, overrides: _SetOption = None, is_json: _JsonOption = False) -> None:
    """Print the runs that are kept, oldest first.

    `[runs] keep` says how long they are. Exit codes: 0 done; 2 config or state can't be read.
    """
    from streambatch.cli.runs import list_runs

    raise typer.Exit(list_runs(config, overrides or [], is_json=is_json))


@_runs.command("show")
def runs_show(
    config: _ConfigArgument, run: _RunArgument = "latest", overrides: _SetOption = None, is_json: _JsonOption = False
) -> None:
    """Print what a run was made of: its manifest.

    Code, config, model, what was read of each partition, where scores went, counts. Exit codes: 0 done; 2 config or
    state can't be read, or there is no such run.
    """
    from streambatch.cli.runs import show_run

    raise typer.Exit(show_run(config, overrides or [], run, is_json=is_json))


@_runs.command("verify")
def runs_verify(
    config: _ConfigArgument, run: _RunArgument = "latest", overrides: _SetOption = None, is_json: _JsonOption = False
) -> None:
    """Read again what a run read, score it again, and compare bit for bit.

    Says what differs: input, model, config, scores or dead letters, and the first records that do. Changes nothing; a
    pipeline that runs goes on meanwhile. Exit codes: 0 all that is there agrees; 1 something differs; 2 config or state
    can't be read, or there is no such run.
    """
    from streambatch.cli.runs import verify

    raise typer.Exit(verify(config, overrides or [], run, is_json=is_json))


_dead_letters = typer.Typer(
    help="See which records died and why, or replay them after a fix.\n\n"
    "`streambatch dead-letters list CONFIG` and `streambatch dead-letters replay CONFIG` say more with --help.",
    rich_markup_mode=None,
)
app.add_typer(_dead_letters, name="dead-letters")
_StageOption = Annotated[str | None, typer.Option(metavar="STAGE", help="Only those that died in this stage.")]
_ReasonOption = Annotated[str | None, typer.Option(metavar="REASON", help="Only those that died for this reason.")]
_SourceOption = Annotated[str | None, typer.Option(metavar="NAME", help="Only those of this source.")]
_RunOption = Annotated[str | None, typer.Option(metavar="RUN", help="Only those of this run.")]


@_dead_letters.command("list")
def dead_letters_list(
    config: _ConfigArgument,
    overrides: _SetOption = None,
    stage: _StageOption = None,
    reason: _ReasonOption = None,
    source: _SourceOption = None,
    run: _RunOption = None,
    limit: Annotated[int, typer.Option(metavar="N", min=0, help="Print the first N of them; all are counted.")] = 20,
    is_json: Annotated[bool, typer.Option("--json", help="Print all of them as lines of JSON instead.")] = False,
) -> None:
    """Print which records died, and how many of what.

    Those that are committed; with --json each as it is in its file, and whether it was replayed. Exit codes: 0 done; 1
    a file holds something else; 2 config or state can't be read, or there is no such source or run.
    """
    from streambatch.cli.dead_letters import list_dead_letters

    wanted = (stage, reason, source, run)
    raise typer.Exit(list_dead_letters(config, overrides or [], wanted, limit, is_json=is_json))


@_dead_letters.command("replay")
def dead_letters_replay(
    config: _ConfigArgument,
    overrides: _SetOption = None,
    stage: _StageOption = None,
    reason: _ReasonOption = None,
    source: _SourceOption = None,
    run: _RunOption = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")] = False,
) -> None:
    """Send records that died through the pipeline once more, after a fix of config, step or model.

    Their scores are added to the output; what dies again is a dead letter again. Each is replayed once, also when a
    replay is killed: the next one begins with what is left. Exit codes: 0 done; 1 failed; 2 usage, config, or the
    pipeline runs; 3 stopped with work unfinished.
    """
    from streambatch.cli.dead_letters import replay_dead_letters

    raise typer.Exit(replay_dead_letters(config, overrides or [], (stage, reason, source, run), is_json=is_json))


def _refuse(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {repr_encodable(line)}", file=sys.stderr)
    return REFUSED


def _refuse_usage(error: Exception) -> int:
    """Print what is wrong with the command line, and whose help to read; without a command, print the help."""
    from pydantic import ValidationError

    from streambatch.core.options import problems_of

    if isinstance(error.__cause__, ValidationError):  # typer's own message leaves out the value that was found
        (problem,) = problems_of(error.__cause__)
        vars(error)["message"] = f"found {problem.found}; allowed: {problem.allowed}"
    context = getattr(error, "ctx", None)
    message = str(getattr(error, "format_message", error.__str__)())
    if context is None:
        return _refuse(message)
    # Without arguments typer raises an error as well, but there is nothing wrong to name.
    if not sys.argv[1:]:
        print(context.get_help(), file=sys.stderr)
        return REFUSED
    return _refuse(f"{message.rstrip('.')}; see {context.command_path} --help")
