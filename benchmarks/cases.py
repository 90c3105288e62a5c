"""The cases, what each is measured against, and one run of one case in a process of its own.

As a program it runs the named case and prints what it took as JSON: `python -m benchmarks.cases loop-512 IN OUT`.
"""

import gc
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path

import msgspec

_ROOT = Path(__file__).parents[1]


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One way to score the feed: a module with `run(source, target, **options)`."""

    module: str
    options: Mapping[str, object]
    records_max: int | None = None
    """Where all records would take too long: so many are scored, and times are scaled up to all."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """How many times as fast as `against` a case should be."""

    case: str
    against: str
    at_least: float
    whole_process: bool = False
    """Measured from the start of the process to its end, not from first to last record."""


CASES = {
    "loop-512": Case(module="benchmarks.loop", options={"batch": 512}),
    "inline-512": Case(module="benchmarks.streambatch_runs", options={"batch": 512, "executor": "inline"}),
    "thread-512": Case(module="benchmarks.streambatch_runs", options={"batch": 512, "executor": "thread"}),
    "inline-512-exactly-once": Case(
        module="benchmarks.streambatch_runs", options={"batch": 512, "executor": "inline", "with_state": True}
    ),
    "thread-512-exactly-once": Case(
        module="benchmarks.streambatch_runs", options={"batch": 512, "executor": "thread", "with_state": True}
    ),
    **{
        f"{executor}-512-{name}": Case(
            module="benchmarks.streambatch_runs", options={"batch": 512, "executor": executor, **options}
        )
        for executor in ("inline", "thread")
        for name, options in (
            ("metrics", {"with_metrics": True}),
            ("drift", {"with_metrics": True, "with_drift": True}),
        )
    },
    "loop-64": Case(module="benchmarks.loop", options={"batch": 64}),
    "inline-64": Case(module="benchmarks.streambatch_runs", options={"batch": 64, "executor": "inline"}),
    "record-at-a-time": Case(
        module="benchmarks.record_at_a_time", options={"batch": 512, "max_wait": 0.05}, records_max=20_000
    ),
}

COMPARISONS = (
    Comparison(case="inline-512", against="loop-512", at_least=0.90),
    Comparison(case="inline-64", against="loop-64", at_least=0.70),
    Comparison(case="thread-512", against="loop-512", at_least=0.75),
    Comparison(case="inline-512-exactly-once", against="inline-512", at_least=0.95),
    Comparison(case="thread-512-exactly-once", against="thread-512", at_least=0.95),
    Comparison(case="inline-512-metrics", against="inline-512", at_least=0.98),
    Comparison(case="thread-512-metrics", against="thread-512", at_least=0.98),
    Comparison(case="inline-512-drift", against="inline-512-metrics", at_least=0.98),
    Comparison(case="thread-512-drift", against="thread-512-metrics", at_least=0.98),
    Comparison(case="inline-512", against="record-at-a-time", at_least=90, whole_process=True),
)


class CaseError(Exception):
    """A case failed, or wrote other scores than numpy gives."""


class Took(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a case took."""

    seconds: float
    cpu_seconds: float
    rss_bytes: int
    """At its highest, of the whole process."""


class Measurement(Took, frozen=True, kw_only=True):
    """What one run of a case took, with its process."""

    case: str
    records: int
    process_seconds: float

    def seconds_for(self, records: int, *, whole_process: bool) -> float:
        """Return the time for `records`, scaled if the case scored fewer; a process starts and ends only once."""
        start_and_end = self.process_seconds - self.seconds if whole_process else 0.0
        return start_and_end + self.seconds * records / self.records


def measure(name: str, records: int, source: Path, target: Path) -> Measurement:
    """Run a case in a fresh process. Raises CaseError when it fails; why is on stderr by then."""
    command = [sys.executable, "-m", "benchmarks.cases", name, str(source), str(target)]
    started = time.perf_counter()
    process = subprocess.run(command, cwd=_ROOT, stdout=subprocess.PIPE, check=False)
    process_seconds = time.perf_counter() - started
    if process.returncode != 0:
        raise CaseError(f"ended with exit status {process.returncode}")
    took = msgspec.json.decode(process.stdout, type=Took)
    return Measurement(case=name, records=records, process_seconds=process_seconds, **msgspec.structs.asdict(took))


def _main(name: str, source: str, target: str) -> None:
    case = CASES[name]
    run = import_module(case.module).run
    gc.collect()
    gc.freeze()  # as the daemon does: what start-up made is left out of collections
    cpu, started = time.process_time(), time.perf_counter()
    run(Path(source), Path(target), **case.options)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
    took = Took(seconds=seconds, cpu_seconds=cpu_seconds, rss_bytes=_rss_peak())
    sys.stdout.buffer.write(msgspec.json.encode(took))


def _rss_peak() -> int:
    """Return VmHWM: unlike getrusage's figure it leaves out the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


if __name__ == "__main__":
    _main(*sys.argv[1:])
