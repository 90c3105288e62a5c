"""What no section can see alone: limits that contradict each other, one address or file asked for twice.

Where a value that was written contradicts a default, the problem names the one that was written.
"""

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from os.path import normpath
from pathlib import Path
from typing import NamedTuple

from streambatch.config.draft import Draft
from streambatch.config.sections import HttpOptions, Sections
from streambatch.core.budget import Limits
from streambatch.core.errors import ConfigError, OptionError
from streambatch.core.parts import Claim
from streambatch.core.schema import RecordSchema
from streambatch.core.units import format_size
from streambatch.delivery.dead_letters import DeadLetterOptions
from streambatch.microbatch.inbox import QueueLimits
from streambatch.microbatch.window import BatchPolicy
from streambatch.net.addresses import parse_address
from streambatch.observe.drift import DriftOptions, watched_features
from streambatch.storage.segments import first_written

# Listening on one of these takes the port on every address.
_ANY_HOST = ("0.0.0.0", "::")


def cross_check(draft: Draft, sections: Sections, state_dir: Path) -> None:
    """Note in the draft every problem between the sections that were built."""
    _check_sizes(draft, sections)
    _check_memory(draft, sections)
    taken = list(_claims(sections, state_dir))
    for check in (_check_addresses, _check_stdin, _check_sockets, _check_outputs):
        check(draft, taken)
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
        f"source.{name}.max_record_bytes": part.source.max_record_bytes or 0 for name, part in sections.sources.items()
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


class _Taken(NamedTuple):
    """What a part claims."""

    key: str
    """The config key of the option that says so."""
    part: str
    """The key of the part."""
    type: str
    """The part's `type`; empty for a section without."""
    claim: Claim


def _claims(sections: Sections, state_dir: Path) -> Iterator[_Taken]:
    """Yield the claims of all parts, in the order of the sections."""
    for name, part in sections.sources.items():
        yield from _claims_of(f"source.{name}", part.type, part.source.claims())
    for name, sink in sections.sinks.items():
        yield from _claims_of(f"sink.{name}", sink.type, sink.sink.claims())
    dead_letter, http = sections.get(DeadLetterOptions), sections.get(HttpOptions)
    if dead_letter is not None:
        path = Path(dead_letter.path or state_dir / "dead_letters.jsonl")
        written = first_written(path, dead_letter.rotate)
        yield from _claims_of("dead_letter", "", [Claim("output", "path", str(written))])
    if http is not None and http.listen != "off":
        yield from _claims_of("http", "", [Claim("tcp", "listen", http.listen)])


def _claims_of(part: str, type: str, claims: Iterable[Claim]) -> Iterator[_Taken]:
    return (_Taken(f"{part}.{claim.option}", part, type, claim) for claim in claims)


def _check_addresses(draft: Draft, taken: Sequence[_Taken]) -> None:
    # UDP and TCP number their ports apart from each other.
    seen: dict[tuple[str, str, int], str] = {}
    for key, _, _, (protocol, _, listen) in taken:
        if protocol not in ("tcp", "udp"):
            continue
        try:
            host, port = parse_address(listen)
        except OptionError as error:  # of a plugin, which may not have looked at it
            draft.problem(key, repr(listen), error.allowed)
            continue
        if port == 0:  # the system chooses one that is free
            continue
        for (other_protocol, other_host, other_port), other in seen.items():
            is_same_host = host == other_host or host in _ANY_HOST or other_host in _ANY_HOST
            if (protocol, port) == (other_protocol, other_port) and is_same_host:
                draft.problem(key, repr(listen), f"an address that {other} doesn't listen on")
        seen[protocol, host, port] = key


def _check_stdin(draft: Draft, taken: Sequence[_Taken]) -> None:
    readers = [each for each in taken if each.claim.kind == "stdin"]
    for reader in readers[1:]:
        draft.problem(reader.key, f"{reader.type!r} once more", f"one stdin source; {readers[0].part} is it")


def _check_sockets(draft: Draft, taken: Sequence[_Taken]) -> None:
    sockets: dict[str, str] = {}
    for key, _, _, claim in taken:
        if claim.kind != "socket":
            continue
        if claim.value in sockets:
            draft.problem(key, repr(claim.value), f"a socket that {sockets[claim.value]} doesn't listen on")
        sockets[claim.value] = key


def _check_outputs(draft: Draft, taken: Sequence[_Taken]) -> None:
    """An output that is also an input would feed on itself; two outputs in one file would tear each other's lines."""
    inputs = [each for each in taken if each.claim.kind in ("input", "socket")]
    outputs: dict[str, str] = {}
    for key, _, _, claim in taken:
        if claim.kind != "output":
            continue
        for source in inputs:
            if _matches(source.claim.value, claim.value):
                draft.problem(key, repr(claim.value), f"a file that {source.key} doesn't read")
        if claim.value in outputs:
            draft.problem(key, repr(claim.value), f"a file that {outputs[claim.value]} doesn't write")
        outputs[claim.value] = key


def _matches(pattern: str, path: str) -> bool:
    """Whether a glob finds a path, part by part; `**` stands for any number of folders, `*` for none hidden."""
    # By their texts alone, since the files need not be there yet.
    return _match_parts(Path(normpath(pattern)).parts, Path(normpath(path)).parts)


def _match_parts(patterns: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not patterns or not parts:
        return not parts and all(pattern == "**" for pattern in patterns)
    pattern, part = patterns[0], parts[0]
    is_hidden = part.startswith(".") and not pattern.startswith(".")
    # It stands for no folder, or for this one and any number more.
    if pattern == "**":
        return _match_parts(patterns[1:], parts) or (not is_hidden and _match_parts(patterns, parts[1:]))
    return not is_hidden and fnmatchcase(part, pattern) and _match_parts(patterns[1:], parts[1:])


def _check_csv(draft: Draft, sections: Sections) -> None:
    """A CSV field is one number: an array can't be in it."""
    record = sections.get(RecordSchema)
    if record is None or not isinstance(record.features, str):
        return
    for name, part in sections.sources.items():
        if part.source.format == "csv":
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
