"""What every test may ask for: the event loops to run on, and the data that nobody here made."""

import gc
import os
from pathlib import Path

import pytest
from hypothesis import settings
from trio.testing import MockClock

# Taken out of the environment: a daemon would take it for a key of its config.
DATA = os.environ.pop("STREAMBATCH_TEST_DATA", "")

# No test asserts a wall time: examples take what a busy machine gives them.
settings.register_profile("streambatch", deadline=None)
settings.load_profile("streambatch")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have the tests of a file run in one process, one after the other."""
    folder = Path(__file__).parent
    for item in items:
        file = item.path.relative_to(folder).as_posix()
        item.add_marker(pytest.mark.xdist_group(file))


def pytest_collection_finish() -> None:
    """Leave the collected suite out of collections.

    The suites in `streambatch.testing` collect before and after every test, to find what a part left for the garbage
    collector to close. Each time they would walk over a million objects of modules and tests, which live to the end.
    """
    gc.collect()
    gc.freeze()


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # As a mark, and so early, it replaces the fixture's own parameters.
    if metafunc.definition.get_closest_marker("virtual_time"):
        metafunc.definition.add_marker(pytest.mark.parametrize("anyio_backend", ["trio-virtual"], indirect=True))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, object]]:
    """Both loops for `@pytest.mark.anyio`; with `@pytest.mark.virtual_time` trio alone, where sleeping takes no time.

    Override it in a module to test on one loop only.
    """
    if request.param == "trio-virtual":
        return "trio", {"clock": MockClock(autojump_threshold=0)}
    return request.param, {}


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder with `nab`, `json` and `csv`: $STREAMBATCH_TEST_DATA, else tests/data."""
    return Path(DATA or Path(__file__).parent / "data")
