"""Imports point one way, no folder has a cycle, and files stay small enough to read."""

import ast
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from streambatch.codecs.formats import FORMATS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streambatch"
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

LAYERS = (
    ("version",),
    ("core",),
    ("codecs", "net", "storage", "microbatch", "steps", "models"),
    ("connectors", "spool", "delivery", "scoring"),
    ("durability",),
    ("pipeline", "embed"),
    ("observe",),
    ("config",),
    ("ops",),
    ("web",),
    ("daemon",),
    ("cli",),
    ("streambatch",),  # the package itself, which names the public parts
    ("__main__", "parts", "testing"),
)
"""From bottom to top. A room imports rooms of lower layers, and none of its own layer."""
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
CONNECTORS_USE = ("version", "core", "codecs", "net", "storage")
"""All that a technology may know besides itself."""


def test_imports_point_downwards() -> None:
    assert wrong_imports(PACKAGE) == []


def test_no_folder_has_a_cycle() -> None:
    assert cycles(PACKAGE) == []


def test_the_root_holds_nothing_else() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "version.py"}


def test_the_pipeline_knows_no_concrete_part() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"].values()
    targets = [*(target for group in groups for target in group.values()), *(each.codec for each in FORMATS.values())]
    concrete = {target.partition(":")[0] for target in targets}
    for room in ("pipeline", "embed"):
        for path in files_of(PACKAGE, room):
            assert concrete.isdisjoint(module for module, _ in imports_of(path, PACKAGE)), path


@pytest.mark.parametrize(
    ("path", "source", "finding"),
    [
        ("codecs/json.py", "from streambatch.pipeline.run import Run", "codecs/json.py:1: codecs imports pipeline"),
        ("steps/clip.py", "import streambatch.models.linear", "steps/clip.py:1: steps imports models"),
        (
            "pipeline/run.py",
            "def run():\n    from streambatch import embed",
            "pipeline/run.py:2: pipeline imports embed",
        ),
        (
            "core/errors.py",
            "if TYPE_CHECKING:\n    from streambatch import web as w",
            "core/errors.py:2: core imports web",
        ),
        ("spool/log.py", "from ..scoring import transform", "spool/log.py:1: spool imports scoring"),
        ("delivery/__init__.py", "from ..spool import log", "delivery/__init__.py:1: delivery imports spool"),
        ("web/app.py", "from streambatch import Pipeline", "web/app.py:1: web imports streambatch"),
        ("cli/run.py", "import streambatch.testing", "cli/run.py:1: cli imports testing"),
        ("helpers.py", "", "helpers.py: helpers has no layer"),
        ("cli/run.py", "from streambatch.helpers import x", "cli/run.py:1: helpers has no layer"),
        (
            "connectors/http/sink.py",
            "from streambatch.connectors.sockets.tcp import x",
            "connectors/http/sink.py:1: connectors/http imports connectors/sockets",
        ),
        (
            "connectors/http/sink.py",
            "from streambatch.connectors import sockets",
            "connectors/http/sink.py:1: connectors/http imports connectors/sockets",
        ),
        (
            "connectors/files/source.py",
            "from streambatch.microbatch.inbox import Inbox",
            "connectors/files/source.py:1: connectors imports microbatch",
        ),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, finding: str) -> None:
    write(tmp_path / "streambatch" / "connectors" / "sockets" / "__init__.py", "")
    write(tmp_path / "streambatch" / path, source)
    assert wrong_imports(tmp_path / "streambatch") == [finding]


def test_right_imports_are_not_found(tmp_path: Path) -> None:
    package = tmp_path / "streambatch"
    write(package / "__init__.py", "from streambatch.cli import main")
    write(package / "core" / "chunks.py", "from streambatch.core.errors import StreambatchError\nimport os.path")
    write(package / "core" / "errors.py", "from streambatch.version import __version__")
    write(package / "connectors" / "http" / "sink.py", "from .client import x\nfrom streambatch.net import y")
    write(package / "scoring" / "targets.py", "from .steps import x\nfrom ..steps.clip import y\nimport streambatchx")
    write(package / "cli" / "run.py", "from streambatch import daemon\nfrom streambatch.version import __version__")
    write(package / "testing" / "fakes.py", "from streambatch import Pipeline\nfrom streambatch.cli import main")
    assert wrong_imports(package) == []


@pytest.mark.parametrize(
    ("sources", "finding"),
    [
        (
            {"core/a.py": "from streambatch.core.b import B", "core/b.py": "from streambatch.core import a"},
            "core: a, b",
        ),
        (
            {
                "core/a.py": "def f():\n    import streambatch.core.b",
                "core/b.py": "if TYPE_CHECKING:\n    from . import a",
            },
            "core: a, b",
        ),
        (
            {
                "spool/log.py": "from streambatch.spool.disk.file import x",
                "spool/disk/file.py": "",
                "spool/disk/folder.py": "from streambatch.spool.log import y",
            },
            "spool: disk, log",
        ),
        ({"core/a.py": "from streambatch.core.b import B", "core/b.py": ""}, None),
    ],
)
def test_a_cycle_is_found(tmp_path: Path, sources: Mapping[str, str], finding: str | None) -> None:
    for path, source in sources.items():
        write(tmp_path / "streambatch" / path, source)
    assert cycles(tmp_path / "streambatch") == ([] if finding is None else [finding])


def test_files_and_functions_are_small() -> None:
    assert oversize(PACKAGE) == []


def test_what_is_too_long_is_found(tmp_path: Path) -> None:
    write(tmp_path / "right.py", "async def f():\n" + "    x = 1\n" * 69 + "x = 1\n" * 330)
    write(tmp_path / "wrong.py", "class A:\n    async def f(self):\n" + "        x = 1\n" * 70 + "x = 1\n" * 329)
    assert oversize(tmp_path) == ["wrong.py: 401 lines", "wrong.py:2: f has 71 lines"]


def wrong_imports(package: Path) -> list[str]:
    """Return what imports upwards or sideways, wherever in a file: `codecs/json.py:3: codecs imports pipeline`."""
    found = []
    for path in files_of(package):
        place, room = path.relative_to(package).as_posix(), room_of(path, package)
        if room not in LEVEL:
            found.append(f"{place}: {room} has no layer")
            continue
        for module, line in imports_of(path, package):
            other = module.split(".")[1] if "." in module else module
            if other not in LEVEL:
                found.append(f"{place}:{line}: {other} has no layer")
            elif not may_import(room, other):
                found.append(f"{place}:{line}: {room} imports {other}")
            elif room == other == "connectors" and (theirs := module.split(".")[2:3]) != [place.split("/")[1]]:
                mine = place.split("/")[1]
                found.append(f"{place}:{line}: connectors/{mine} imports connectors/{''.join(theirs)}")
    return found


def may_import(room: str, other: str) -> bool:
    if room == other:
        return True
    return LEVEL[other] < LEVEL[room] and (room != "connectors" or other in CONNECTORS_USE)


def cycles(package: Path) -> list[str]:
    """Return for each folder one cycle among its modules and folders, if there are any: `core: batches, events`."""
    imports = {
        _module(path, package): [module for module, _ in imports_of(path, package)] for path in files_of(package)
    }
    folders = {".".join(module.split(".")[:depth]) for module in imports for depth in range(1, module.count(".") + 1)}
    found = []
    for folder in sorted(folders):
        try:
            TopologicalSorter(_siblings(folder, imports)).prepare()
        except CycleError as error:
            found.append(f"{folder.partition('.')[2] or folder}: {', '.join(sorted(set(error.args[1])))}")
    return found


def _siblings(folder: str, imports: Mapping[str, Iterable[str]]) -> dict[str, set[str]]:
    """Return which of a folder's modules and folders import which others of it."""
    within = f"{folder}."
    graph: dict[str, set[str]] = {}
    for module, targets in imports.items():
        if not module.startswith(within):
            continue
        child = module.removeprefix(within).split(".")[0]
        others = {each.removeprefix(within).split(".")[0] for each in targets if each.startswith(within)}
        graph.setdefault(child, set()).update(others - {child})
    return graph


def imports_of(path: Path, package: Path) -> Iterator[tuple[str, int]]:
    """Yield each module of the package that a file imports, with the line; `streambatch` for a name of the package."""
    here = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            targets = list(_members(".".join([*base, *filter(None, [node.module])]), node.names, package))
        else:
            continue
        yield from ((target, node.lineno) for target in targets if target.split(".")[0] == package.name)


def _members(origin: str, names: list[ast.alias], package: Path) -> Iterator[str]:
    """Yield the modules among the names that are imported from a module or folder; itself for any other name."""
    folder = package.parent.joinpath(*origin.split("."))
    for alias in names:
        member = folder / alias.name
        is_room = origin == package.name and alias.name in LEVEL
        yield f"{origin}.{alias.name}" if is_room or member.is_dir() or member.with_suffix(".py").exists() else origin


def oversize(folder: Path) -> list[str]:
    found = []
    for path in files_of(folder):
        place, source = path.relative_to(folder).as_posix(), path.read_text()
        if (lines := len(source.splitlines())) > MODULE_LINES_MAX:
            found.append(f"{place}: {lines} lines")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    found.append(f"{place}:{node.lineno}: {node.name} has {length} lines")
    return found


def files_of(package: Path, room: str | None = None) -> list[Path]:
    return [path for path in sorted(package.rglob("*.py")) if room is None or room_of(path, package) == room]


def room_of(path: Path, package: Path) -> str:
    """Return the file's or folder's name below the package; `streambatch` for the package's own `__init__`."""
    room = path.relative_to(package).parts[0].removesuffix(".py")
    return package.name if room == "__init__" else room


def _module(path: Path, package: Path) -> str:
    """Return a file's module, a folder's own by the folder's name and `__init__`."""
    return ".".join([package.name, *path.relative_to(package).with_suffix("").parts])


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
