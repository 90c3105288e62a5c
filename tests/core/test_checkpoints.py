"""What is read back from a checkpoint, by whichever thread is first."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import streambatch

READ_AT_ONCE = """
import sys, threading
import msgspec
from streambatch.durability.manifest import RunDetail

sys.setswitchinterval(1e-6)
found = {"counts": {"a": {"received": 1}}, "outputs": {}, "changes": []}
together = threading.Barrier(4)


def read():
    together.wait()
    msgspec.convert(found, RunDetail, strict=False)


threads = [threading.Thread(target=read) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


@pytest.mark.slow
def test_threads_may_be_the_first_to_read_a_struct_together() -> None:
    """Without `resolved_early`, a crash in two processes of five."""
    for _ in range(12):
        subprocess.run([sys.executable, "-c", READ_AT_ONCE], check=True, timeout=60)


def test_every_struct_that_is_read_was_resolved_early() -> None:
    texts = [path.read_text() for path in sorted(Path(streambatch.__file__).parent.rglob("*.py"))]
    trees = {text: ast.parse(text) for text in texts}
    structs = {each.name: each for tree in trees.values() for each in ast.walk(tree) if isinstance(each, ast.ClassDef)}
    read = {name for text, tree in trees.items() if "msgspec." in text for name in read_in(tree)} & set(structs)
    assert {"RunDetail", "FileNotes", "SegmentMark"} <= read
    decorators = {name: [ast.unparse(each) for each in structs[name].decorator_list] for name in read}
    assert {name for name in read if "resolved_early" not in decorators[name]} == set()


def read_in(tree: ast.AST) -> Iterator[str]:
    """Yield the types that msgspec is asked for by a call; a decoder of a module was made while it was imported."""
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func).startswith("msgspec."):
            wanted = [each.value for each in call.keywords if each.arg == "type"]
            if ast.unparse(call.func) == "msgspec.convert":
                wanted += call.args[1:]
            yield from (ast.unparse(each) for each in wanted)
