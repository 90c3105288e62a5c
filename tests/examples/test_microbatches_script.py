"""The script with `microbatches`, run as its page says and on what the page doesn't show."""

import gzip
import subprocess
import sys
from pathlib import Path

from tests.e2e.pages import Page

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "microbatches_script.py"
PAGE = ROOT / "docs" / "how-to" / "embed-microbatches.md"


def run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


def test_the_page_shows_the_example() -> None:
    (_, shown), *_ = Page(PAGE).blocks("python")
    assert shown == "# microbatches_script.py\n" + SCRIPT.read_text()


def test_the_page_prints_what_it_says(tmp_path: Path) -> None:
    Page(PAGE).run(tmp_path)


def test_it_reads_compressed_files_as_well(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    path.write_bytes(gzip.compress(b"".join(b'{"id": %d, "features": [%d, 0]}\n' % (at, at) for at in range(10))))
    done = run(path)
    assert done.stderr == ""
    assert done.stdout == ("batch 0: 10 records, closed by flush, mean 4.50\nthe highest score is 9.0, of record 9\n")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(tmp_path / "missing.jsonl")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("streambatch.core.errors.SourceError: source file:")
    assert "missing.jsonl" in done.stderr.splitlines()[-1]
