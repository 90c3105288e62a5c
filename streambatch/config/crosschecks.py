"""What no section can see alone: limits that contradict each other, one address or file asked for twice.

A contradiction between a value that was written and a default is told of the one that was written.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from os.path import normpath
from pathlib import Path

from streambatch.config.draft import Draft
from streambatch.config.sections import HttpOptions, Sections
from streambatch.core.budget import Limits
from streambatch.core.errors import ConfigError
from streambatch.core.schema import RecordSchema
from streambatch.core.units import format_size
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.net.addresses import parse_address
from streambatch.observe.drift import DriftOptions, watched_features
from streambatch.storage.segments import Rotation, SegmentNames

_ANY_HOST = ("0.0.0.0", "::")


def cross_check(draft: Draft, sections: Sections, state_dir: Path) -> None:
    """Note in the draft every problem between the sections that were built."""
    _check_sizes(draft, sections)
    _check_memory(draft, sections)
    _check_addresses(draft, sections)
    _check_stdin(draft, sections)
    _check_paths(draft, sections, state_dir)
    _check_csv(draft, sections)
    _check_impute(draft, sections)
    _check_drift(draft, sections)


def _check_sizes(draft: Draft, sections: Sections) -> None:
    """A batch larger than the queue would never fill."""
    batch, queue = sections.get(BatchPolicy), sections.get(QueueLimits)
    if batch is None or queue is None:
        return
    for option in ("max_records", "max_bytes"):
        largest, room = getattr(batch, option), getattr(queue, option)
        if largest <= room:
            continue
        said = (str(largest), str(room)) if option == "max_records" else (format_size(largest), format_size(room))
        if option in draft.tables.get("batch", {}):
            draft.problem(f"batch.{option}", said[0], f"at most queue.{option} ({said[1]})")
        else:
            draft.problem(f"queue.{option}", said[1], f"at least batch.{option} ({said[0]})")


def _check_memory(draft: Draft, sections: Sections) -> None:
    """A part that may hold more than all parts together would never come to it."""
    limits = sections.get(Limits)
    if limits is None:
        return
    memory = limits.memory
    asked = {f"{key}.max_bytes": getattr(sections.tables.get(key), "max_bytes", 0) for key in ("queue", "batch")}
    asked |= {
        f"source.{name}.max_record_bytes": getattr(part.options, "max_record_bytes", 0)
        for name, part in sections.sources.items()
    }
    for key, size in asked.items():
        if size > memory and _is_written(draft, key):
            draft.problem(key, format_size(size), f"at most limits.memory ({format_size(memory)})")


def _is_written(draft: Draft, key: str) -> bool:
    value: object = draft.tables
    for step in key.split("."):
        if not isinstance(value, dict) or step not in value:
            return False
        value = value[step]
    return True


def _check_addresses(draft: Draft, sections: Sections) -> None:
    seen: dict[tuple[str, int], str] = {}
    for key, listen in _addresses(sections):
        host, port = parse_address(listen)
        if port == 0:
            continue
        for (other_host, other_port), other in seen.items():
            if port == other_port and (host == other_host or host in _ANY_HOST or other_host in _ANY_HOST):
                draft.problem(key, repr(listen), f"an address that {other} doesn't listen on")
        seen[host, port] = key


def _addresses(sections: Sections) -> Iterator[tuple[str, str]]:
    for name, part in sections.sources.items():
        if part.type in ("tcp", "http"):
            yield f"source.{name}.listen", part.options.listen
    http = sections.get(HttpOptions)
    if http is not None and http.listen != "off":
        yield "http.listen", http.listen


def _check_stdin(draft: Draft, sections: Sections) -> None:
    readers = [name for name, part in sections.sources.items() if part.type == "stdin"]
    for name in readers[1:]:
        draft.problem(f"source.{name}.type", "'stdin' once more", f"one stdin source; source.{readers[0]} is it")


def _check_paths(draft: Draft, sections: Sections, state_dir: Path) -> None:
    """An output that is also an input would feed on itself; two outputs in one file would tear each other's lines."""
    inputs = list(_inputs(sections))
    sockets: dict[str, str] = {}
    for key, path, is_socket in inputs:
        if is_socket and path in sockets:
            draft.problem(key, repr(path), f"a socket that {sockets[path]} doesn't listen on")
        if is_socket:
            sockets[path] = key
    outputs: dict[str, str] = {}
    for key, path in _outputs(sections, state_dir):
        for source, pattern, _ in inputs:
            if _matches(pattern, path):
                draft.problem(key, repr(path), f"a file that {source} doesn't read")
        if path in outputs:
            draft.problem(key, repr(path), f"a file that {outputs[path]} doesn't write")
        outputs[path] = key


def _inputs(sections: Sections) -> Iterator[tuple[str, str, bool]]:
    """Yield key and path of what is read, and whether it is a socket."""
    for name, part in sections.sources.items():
        path = getattr(part.options, "path", None)
        if path is None:
            continue
        for one in path if isinstance(path, list | tuple) else [path]:
            yield f"source.{name}.path", str(one), part.type == "unix"


def _outputs(sections: Sections, state_dir: Path) -> Iterator[tuple[str, str]]:
    for name, part in sections.sinks.items():
        path = getattr(part.options, "path", None)
        if path is not None:
            yield f"sink.{name}.path", _written(Path(path), getattr(part.options, "rotation", None))
    dead_letter = sections.get(DeadLetterOptions)
    if dead_letter is not None:
        path = Path(dead_letter.path or state_dir / "dead_letters.jsonl")
        yield "dead_letter.path", _written(path, dead_letter.rotate)


def _written(path: Path, rotation: Rotation | None) -> str:
    """Return the name of the file that an output leaves; the first one of several."""
    return str(path if rotation is None else SegmentNames(path).closed(1))


def _matches(pattern: str, path: str) -> bool:
    """Tell whether a glob finds a path, part by part; `**` stands for any number of folders, `*` for none hidden."""
    return _match_parts(Path(normpath(pattern)).parts, Path(normpath(path)).parts)


def _match_parts(patterns: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    pattern, part = patterns[0], parts[0]
    is_hidden = part.startswith(".") and not pattern.startswith(".")
    if pattern == "**":
        return _match_parts(patterns[1:], parts) or (not is_hidden and _match_parts(patterns, parts[1:]))
    return not is_hidden and fnmatchcase(part, pattern) and _match_parts(patterns[1:], parts[1:])


def _check_csv(draft: Draft, sections: Sections) -> None:
    """A CSV field is one number: an array can't be in it."""
    record = sections.get(RecordSchema)
    if record is None or not isinstance(record.features, str):
        return
    for name, part in sections.sources.items():
        if getattr(part.options, "format", None) == "csv":
            found = f"{record.features!r}, one array field"
            draft.problem("record.features", found, f"a list of fields, one per feature, since source.{name} is csv")


def _check_drift(draft: Draft, sections: Sections) -> None:
    """What records don't have can't be watched."""
    record, drift = sections.get(RecordSchema), sections.get(DriftOptions)
    if record is None or drift is None:
        return
    try:
        watched_features(drift, record)
    except ConfigError as error:
        for problem in error.problems:
            draft.problem(problem.key, problem.found, problem.allowed)


def _check_impute(draft: Draft, sections: Sections) -> None:
    """Where a record without a feature dies there is nothing to impute."""
    record = sections.get(RecordSchema)
    if record is None or record.missing == "nan":
        return
    for at, part in enumerate(sections.preprocess):
        if part.type == "impute":
            draft.problem(f"preprocess[{at}].type", "'impute' with record.missing = 'reject'", "record.missing = 'nan'")
