"""Imports point one way, and files stay small enough to read."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "streambatch"
MODULE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70

GROUND = (
    "addresses",
    "backlog",
    "chunks",
    "clock",
    "durable",
    "errors",
    "events",
    "files",
    "options",
    "records",
    "redaction",
    "segments",
    "serving",
    "spools",
    "texts",
    "units",
)
"""Parts of the ground floor may know each other; other parts of one layer may not."""
LAYERS = (
    GROUND,
    ("codecs",),
    ("ingest", "microbatch", "scoring", "sinks", "state"),
    ("durability", "spooled", "vitals"),
    ("settings",),
    ("loader", "pipeline"),
    ("logs", "metrics"),
    ("config",),
    ("plugins",),
    ("assemble",),
    ("ops", "reloading"),
    ("notify", "web"),
    ("daemon",),
    ("cli",),
    ("streambatch",),  # the package itself, which names the public parts
    ("__main__", "testing"),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def test_imports_point_downwards() -> None:
    assert wrong_imports(PACKAGE) == []


def test_the_pipeline_knows_no_concrete_part() -> None:
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"].values()
    concrete = {target.partition(":")[0] for group in groups for target in group.values()}
    for part in ("pipeline", "loader"):
        for path in files_of(PACKAGE, part):
            assert concrete.isdisjoint(module for module, _ in imports_of(path, PACKAGE)), path


@pytest.mark.parametrize(
    ("path", "source", "finding"),
    [
        ("codecs/json.py", "from streambatch.pipeline import Pipeline", "codecs/json.py:1: codecs imports pipeline"),
        ("ingest/tcp.py", "import streambatch.sinks.file", "ingest/tcp.py:1: ingest imports sinks"),
        ("pipeline.py", "def run():\n    from streambatch import loader", "pipeline.py:2: pipeline imports loader"),
        ("errors.py", "if TYPE_CHECKING:\n    from streambatch import web as w", "errors.py:2: errors imports web"),
        ("state/ledger.py", "from ..scoring import transform", "state/ledger.py:1: state imports scoring"),
        ("sinks/__init__.py", "from ..state import ledger", "sinks/__init__.py:1: sinks imports state"),
        ("web/app.py", "from streambatch import Pipeline", "web/app.py:1: web imports streambatch"),
        ("cli/run.py", "import streambatch.testing", "cli/run.py:1: cli imports testing"),
        ("helpers.py", "", "helpers.py: helpers has no layer"),
        ("cli/run.py", "from streambatch.helpers import x", "cli/run.py:1: helpers has no layer"),
    ],
)
def test_a_wrong_import_is_found(tmp_path: Path, path: str, source: str, finding: str) -> None:
    write(tmp_path / "streambatch" / path, source)
    assert wrong_imports(tmp_path / "streambatch") == [finding]


def test_right_imports_are_not_found(tmp_path: Path) -> None:
    package = tmp_path / "streambatch"
    write(package / "__init__.py", "from streambatch.cli import main")
    write(package / "records.py", "from streambatch.errors import StreambatchError\nimport os.path")
    write(package / "errors.py", "from streambatch.records import Chunk")
    write(package / "scoring" / "targets.py", "from .steps import x\nfrom ..records import Batch\nimport streambatchx")
    write(package / "cli" / "run.py", "from streambatch import __version__, daemon")
    write(package / "testing.py", "from streambatch import Pipeline\nfrom streambatch.cli import main")
    assert wrong_imports(package) == []


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
        place, part = path.relative_to(package).as_posix(), part_of(path, package)
        if part not in LEVEL:
            found.append(f"{place}: {part} has no layer")
            continue
        for module, line in imports_of(path, package):
            other = module.split(".")[1] if "." in module else module
            if other not in LEVEL:
                found.append(f"{place}:{line}: {other} has no layer")
            elif other != part and LEVEL[other] >= LEVEL[part] and not {part, other} <= set(GROUND):
                found.append(f"{place}:{line}: {part} imports {other}")
    return found


def imports_of(path: Path, package: Path) -> Iterator[tuple[str, int]]:
    """Yield each module of the package that a file imports, with the line; `streambatch` for a name of the package."""
    here = [package.name, *path.relative_to(package).parent.parts]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            targets = list(_members(origin, node.names)) if origin == package.name else [origin]
        else:
            continue
        yield from ((target, node.lineno) for target in targets if target.split(".")[0] == package.name)


def _members(package: str, names: list[ast.alias]) -> Iterator[str]:
    for alias in names:
        if alias.name in LEVEL:
            yield f"{package}.{alias.name}"
        elif alias.name != "__version__":
            yield package


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


def files_of(package: Path, part: str | None = None) -> list[Path]:
    return [path for path in sorted(package.rglob("*.py")) if part is None or part_of(path, package) == part]


def part_of(path: Path, package: Path) -> str:
    """Return the file's or folder's name below the package; `streambatch` for the package's own `__init__`."""
    part = path.relative_to(package).parts[0].removesuffix(".py")
    return package.name if part == "__init__" else part


def write(path: Path, source: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source)
