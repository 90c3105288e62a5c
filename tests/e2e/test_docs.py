"""What README and docs say to type works, and their reference pages are those the program would write now."""

import ast
import importlib.util
import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from types import ModuleType

import pytest

from tests.e2e.pages import Page, check_output
from tests.e2e.running import is_balanced, scores_in
from tests.programs import needs

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PLACES = ("tutorial/*.md", "how-to/*.md", "explanation/traceability.md")
PAGES = sorted(path for place in PLACES for path in DOCS.glob(place))
needs_clients = needs("curl", "nc")


@pytest.mark.slow
@pytest.mark.timeout(180)
@needs_clients
def test_readme(tmp_path: Path) -> None:
    page = Page(ROOT / "README.md")
    assert "make demo" in page.blocks()[0][1]
    page.run(tmp_path, skip=1)
    folder = tmp_path / "rides"
    scores = scores_in(folder / "scores.jsonl")
    assert [score["id"] for score in scores] == [at for at in range(1, 1001) if at % 400]
    assert [list(score) for score in scores[:1]] == [["id", "score", "zone"]]
    assert [letter["reason"] for letter in scores_in(folder / "dead.jsonl")] == ["invalid_json", "missing_field"]
    report = json.loads((folder / "report.json").read_bytes())
    assert is_balanced(report["records"])
    fares = scores_in(folder / "fares.jsonl")
    assert [fare["score"] for fare in fares] == pytest.approx([score["score"] for score in scores], rel=1e-4)


def test_the_config_in_the_readme_is_the_starter() -> None:
    (shown,) = [text for language, text in Page(ROOT / "README.md").blocks("toml") if text.startswith("name = ")]
    starter = files("streambatch.cli").joinpath("starter.toml").read_text()
    assert tomllib.loads(shown) == tomllib.loads(starter)


@pytest.mark.slow
@pytest.mark.timeout(180)
@needs_clients
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_page(path: Path, tmp_path: Path) -> None:
    page = Page(path)
    assert page.blocks("console", "sh"), "nothing to type"
    page.run(tmp_path)


def test_output_that_does_not_come_is_missed() -> None:
    block = "$ seq 3\n1\n...\n3...\n"
    check_output(block, "1\n2\n3 and more\n")
    for output in ("", "1\n", "3\n1\n", "1\n13\n"):
        with pytest.raises(AssertionError, match="did not come out"):
            check_output(block, output)


def test_reference_pages_are_fresh() -> None:
    for name, text in generate().pages().items():
        assert (DOCS / "reference" / name).read_text() == text, f"{name} is stale: run `make docs`"


def test_every_page_is_in_the_index() -> None:
    index = (DOCS / "README.md").read_text()
    for page in DOCS.rglob("*.md"):
        assert page.name == "README.md" or f"({page.relative_to(DOCS)})" in index, page


def test_how_to_pages_import_nothing_but_what_is_public() -> None:
    for page in sorted(DOCS.glob("how-to/*.md")):
        for _, code in Page(page).blocks("python"):
            used = {module for module in _imported(code) if module.split(".")[0] == "streambatch"}
            assert used <= {"streambatch", "streambatch.parts", "streambatch.testing"}, f"{page.name}: {sorted(used)}"


def _imported(code: str) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def test_links_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_every_picture_is_shown_and_is_small() -> None:
    shown = set()
    for page in DOCS.rglob("*.md"):
        for text, target in re.findall(r"(?<!!)!?\[([^\]]+)\]\(([^)]+\.png)\)", page.read_text()):
            assert text
            shown.add((page.parent / target).resolve())
    pictures = set((DOCS / "pictures").glob("*.png"))
    assert shown == pictures
    assert [picture.name for picture in pictures if picture.stat().st_size > 200_000] == []


def test_every_promise_names_tests_that_are_there() -> None:
    page = (DOCS / "explanation" / "guarantees.md").read_text()
    promises = [row for row in re.findall(r"^\|.*\|$", page, re.M) if "tests/" in row]
    assert len(promises) > 40
    rows = re.findall(r"^\| (?!---|promise|from|files|http|tcp|sockets).*$", page, re.M)
    assert [row for row in rows if row not in promises] == [], "a promise without a test"
    named = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page))
    assert [f"{file}::{test}" for file, test in sorted(named) if test not in names_of_tests(ROOT / file)] == []


def test_the_map_for_contributors_names_what_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    tests = set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page))
    owners = {(path, name) for name, path in re.findall(r"^\| .* \| `(\w+)` \| `([\w/]+\.py)` \|$", page, re.M)}
    assert len(tests) > 15
    assert len(owners) > 15
    assert [f"{path}::{name}" for path, name in sorted(tests) if name not in names_of_tests(ROOT / path)] == []
    assert [f"{path}::{name}" for path, name in sorted(owners) if name not in names_in(ROOT / path)] == []
    paths = set(re.findall(r"`((?:streambatch|tests|docs|grafana)/[\w/.-]*)`", page))
    assert [path for path in sorted(paths) if "NAME" not in path and not (ROOT / path).exists()] == []
    rooms = {path.name for path in (ROOT / "streambatch").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == {*re.findall(r"`streambatch/(\w+)/`", page)}
    targets = {*re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)}
    assert {*re.findall(r"`make ([\w-]+)", page)} <= targets


def names_of_tests(path: Path) -> set[str]:
    """Return the names of a module's tests: functions, classes, and state machines' test cases."""
    return {name for name in names_in(path) if name.lower().startswith("test")}


def names_in(path: Path) -> set[str]:
    """Return the names that a module defines."""
    if not path.exists():
        return set()
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
