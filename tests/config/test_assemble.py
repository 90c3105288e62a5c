"""From a config to a pipeline: what is loaded, and what a dry run on zeros finds out before any record is read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import streambatch as sb
from streambatch.config.assemble import Assembly, load_config, load_pipeline
from streambatch.core.errors import ConfigError, ModelError, ShapeError, StepError
from streambatch.core.parts import Reader, Site
from tests.e2e.running import scores_in

CONFIG = """
    name = "rides"
    [source.rides_in]
    type = "file"
    path = "in.jsonl"
    [record]
    id = "id"
    features = "x"
    shape = [2]
    dtype = "float64"
    [model]
    {model}
    [sink.scores]
    type = "file"
    path = "out.jsonl"
    """
LINEAR = 'type = "linear"\npath = "model.npz"'
PYTHON = 'type = "python"\npath = "scorer_{name}:{name}"'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, request: pytest.FixtureRequest) -> Write:
    """Write a config, a linear model of `d` weights, and a module whose name no other test has."""

    def write(model: str = LINEAR, more: str = "", d: int = 2, source: str = "", name: str = "") -> Path:
        np.savez(tmp_path / "model.npz", weights=np.arange(1.0, d + 1), bias=0.5)
        (tmp_path / f"scorer_{name}.py").write_text(source)
        path = tmp_path / "pipeline.toml"
        path.write_text(CONFIG.format(model=model.format(name=name)) + more.format(name=name))
        return path

    return write


def test_parts_are_told_where_the_config_lies(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sites: list[Site] = []
    build = sb.FileSource.build

    def building(source: sb.FileSource, site: Site) -> Reader:
        sites.append(site)
        return build(source, site)

    monkeypatch.setattr(sb.FileSource, "build", building)
    sb.load_pipeline(write())
    assert [(site.pipeline, site.part, site.folder) for site in sites] == [("rides", "source.rides_in", tmp_path)]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_pipeline_from_a_config_runs(write: Write, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"id": 1, "x": [1, 2]}\n{"id": 2, "x": [3, 4]}\n')
    pipeline = sb.load_pipeline(
        write(more='[[preprocess]]\ntype = "standardize"\nmean = 1\nscale = 2\n'), overrides=["batch.max_records=1"]
    )
    assert (pipeline.name, pipeline.state_dir) == ("rides", tmp_path / ".streambatch/rides")
    report = await pipeline.run()
    assert report.batches["size"] == 2
    assert scores_in(tmp_path / "out.jsonl") == [{"id": 1, "score": 1.5}, {"id": 2, "score": 4.5}]


def test_nothing_is_touched_before_it_runs(write: Write, tmp_path: Path) -> None:
    load_pipeline(write(), environ={})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.npz", "pipeline.toml", "scorer_.py"]


def test_a_wrong_config_is_a_config_error(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"limits\.memory"):
        load_pipeline(write(more='[limits]\nmemory = "1MiB"\n'))


def test_a_model_that_is_not_there(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.npz"):
        load_pipeline(write('type = "linear"\npath = "none.npz"'))


def test_a_step_that_is_not_there(write: Write) -> None:
    with pytest.raises(StepError, match=r"none\.npz"):
        load_pipeline(write(more='[[preprocess]]\ntype = "standardize"\npath = "none.npz"\n'))


def test_a_model_of_another_width(write: Write) -> None:
    with pytest.raises(ShapeError, match=r"model linear: expected shape \(2,\).*found \(3,\)"):
        load_pipeline(write(d=3))


@pytest.mark.parametrize(
    ("step", "error", "message"),
    [
        (
            'type = "standardize"\nmean = [1, 2, 3]\nscale = 1',
            ShapeError,
            "preprocess[1].mean: mean of preprocess step standardize: expected shape (2,), one record's, found (3,)",
        ),
        (
            'type = "clip"\nhigh = [1, 2, 3]',
            ShapeError,
            "preprocess[1]: low of preprocess step clip: expected shape (2,), one record's, found (3,)",
        ),
        (
            'type = "standardize"\nmean = 0\nscale = 0',
            StepError,
            "preprocess[1]: preprocess step standardize: scale is 0; expected another number, such as 1 for a constant "
            "feature",
        ),
    ],
)
def test_a_step_that_will_not_do(write: Write, step: str, error: type[Exception], message: str) -> None:
    path = write(more=f'[[preprocess]]\ntype = "clip"\nlow = 0\n[[preprocess]]\n{step}\n')
    with pytest.raises(error) as caught:
        load_pipeline(path)
    assert str(caught.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("one", "def one(x): return x.sum()", r"expected shape \(2,\) or \(2, k\), found \(\)"),
        ("short", "def short(x): return x[:1, 0]", r"expected shape \(2,\) or \(2, k\), found \(1,\)"),
        ("deep", "def deep(x): return x[:, :, None]", r"expected shape \(2,\) or \(2, k\), found \(2, 2, 1\)"),
    ],
)
def test_scores_of_another_shape(write: Write, name: str, source: str, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        load_pipeline(write(PYTHON, source=source, name=name))


def test_scores_that_are_no_numbers(write: Write) -> None:
    with pytest.raises(ModelError, match="expected scores that are numbers"):
        load_pipeline(write(PYTHON, source="def words(x): return ['a', 'b']", name="words"))


def test_a_model_that_fails_on_zeros_may_still_run(write: Write) -> None:
    source = "def picky(x):\n    if not x.any(): raise ZeroDivisionError('zeros')\n    return x[:, 0]"
    assembly = Assembly(load_config(write(PYTHON, source=source, name="picky")))
    assert isinstance(assembly.untried, ZeroDivisionError)
    assembly.pipeline()


def test_a_model_whose_backend_is_away_at_the_start_may_still_run(write: Write) -> None:
    source = "import streambatch\ndef away(x):\n    raise streambatch.RetryableError('backend is away')\n"
    assembly = Assembly(load_config(write(model=PYTHON, source=source, name="away")))
    assert "backend is away" in str(assembly.untried)


def test_a_time_limit_that_nothing_could_keep_is_a_config_error(write: Write) -> None:
    more = '\n[workers]\nexecutor = "inline"\ntimeout = "5s"\n'
    with pytest.raises(ConfigError, match=r'workers.timeout: found 5 s .* allowed: none, or executor = "thread"'):
        Assembly(load_config(write(more=more)))


def test_a_model_that_warns_on_zeros_is_fine(write: Write) -> None:
    source = "import numpy as np\ndef logs(x): return np.log(x).sum(axis=1)"
    assert Assembly(load_config(write(PYTHON, source=source, name="logs"))).untried is None


def test_an_async_model_is_not_tried(write: Write) -> None:
    source = "async def later(x): raise AssertionError"
    assert Assembly(load_config(write(PYTHON, source=source, name="later"))).untried is None


def test_a_step_that_filters_everything(write: Write) -> None:
    source = "def filters(x): return x, x.any(axis=1)"
    more = '[[preprocess]]\ntype = "python"\npath = "scorer_{name}:{name}"\n'
    assert Assembly(load_config(write(more=more, source=source, name="filters"))).untried is None


def test_a_step_that_keeps_statistics_starts_afresh(write: Write) -> None:
    assembly = Assembly(load_config(write(more='[[preprocess]]\ntype = "standardize"\nfit = "running"\n')))
    (step,) = assembly.steps
    assert step.is_stateful
    assert not step.initial_state().count.any()
    assert assembly.untried is None
