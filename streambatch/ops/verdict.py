"""Judge which stage limits a pipeline, and what to change. Pure: a load in, a verdict out.

The rules in RULES are tried in order, and the first that applies decides. A stage that stands still comes before one
that is busy, a stage at the end of the way before those that wait for it, and a cheap change before a costly one. A
knob is a config key of this version; where no knob helps, the sentence says what does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args, get_type_hints

import msgspec

from streambatch.codecs.formats import STREAMS
from streambatch.core.units import format_duration, format_size
from streambatch.ops.load import Load
from streambatch.scoring.executors.choice import Workers

LimitingStage = Literal[
    "source", "queue", "batch", "decode", "validate", "preprocess", "score", "encode", "sink", "state", "nothing"
]

BUSY = 0.7
"""A sink that writes this share of the time limits: the rest is needed to get from one write to the next."""
WORKING = 0.5
"""Workers that are busy this share of the time limit while input waits: with small or quick batches, handing them over
takes the rest, which waits for Python's lock as well."""
PRESSED_FILL = 0.1
PRESSED_BLOCKED = 0.2
"""Input waits if the queue is a tenth full, or a source is blocked a fifth of the time."""
SMALL_RECORDS = 64
QUICK_SECONDS = 0.002
"""Any batch costs about 0.1 to 0.5 ms. For few records, done in less than this, it is most of it."""
USUAL_RECORDS = 512
SHORT_WAIT_SECONDS = 0.005
IDLE_CORES = 0.5
"""CPU use that is worth reducing while nothing limits."""
LOOP_CORES = 0.8
"""CPU use at which the event loop, a single thread, has no time left, if it is what uses it."""
WAITING_SHARE = 0.5
"""Workers that use less CPU than this share of their busy time wait for something."""
LOCKED_CORES = 1.5
"""CPU use of threads that take turns at Python's lock; above 1, since numpy and pyarrow release it at times."""
ALL_CORES = 0.9
SYNCING = 0.5
FULL_MEMORY = 0.9
STILL_SECONDS = 2.0
"""Time without a written batch after which something stands still."""

EXECUTORS: tuple[str, ...] = get_args(get_type_hints(Workers)["executor"])
"""Values of `workers.executor` in this version."""
_MAY_WAIT = ("preprocess", "score")
"""Stages that run the user's code, which may wait for something; the others only compute."""


class Knob(msgspec.Struct, frozen=True):
    """A config key to change. now, to: values as the config holds them."""

    key: str
    direction: Literal["raise", "lower", "change"]
    now: Any
    to: Any


_THREAD = Knob("workers.executor", "change", "inline", "thread")


class Verdict(msgspec.Struct, frozen=True):
    """The stage that limits, a sentence with the reason and the remedy, and the figures behind it.

    knob: the config key to change; None if none helps.
    """

    stage: LimitingStage
    sentence: str
    knob: Knob | None
    evidence: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the verdict as a status holds it."""
        verdict: dict[str, Any] = msgspec.to_builtins(self)
        return verdict


class Rule(NamedTuple):
    """One way to be limited. judge: returns the verdict, or None if it doesn't apply. reason: of its place in RULES."""

    judge: Callable[[Load], Verdict | None]
    reason: str


def judge(load: Load | None) -> Verdict | None:
    """Return the verdict on a load; None without a load."""
    if load is None:
        return None
    return next(verdict for rule in RULES if (verdict := rule.judge(load)) is not None)


def is_pressed(load: Load) -> bool:
    """Whether input waits."""
    is_behind = load.parked.get("batch") == "backpressure" and load.queue_fill > 0
    return load.queue_fill >= PRESSED_FILL or load.blocked >= PRESSED_BLOCKED or is_behind


def _sink_is_out(load: Load) -> Verdict | None:
    if load.parked.get("sink") != "retry":
        return None
    sentence = "The sink can't be written and is tried again until it can: cure what its error says; nothing is lost."
    return Verdict("sink", sentence, None, [f"{load.inflight_batches} batches wait for the sink"])


def _sink_stands_still(load: Load) -> Verdict | None:
    if load.batches or load.parked.get("sink") != "backpressure" or load.seconds < STILL_SECONDS:
        return None
    sentence = "The sink took nothing: what reads from it, or its disk, stands still."
    return Verdict("sink", sentence, None, [f"one write has lasted {format_duration(load.seconds)} or more"])


def _model_stands_still(load: Load) -> Verdict | None:
    if load.batches or load.parked.get("score") is not None or load.seconds < STILL_SECONDS:
        return None
    sentence = "No batch came back from the workers: a call of the model takes this long, or hangs."
    evidence = [f"none in {format_duration(load.seconds)}, {load.inflight_batches} under way"]
    return Verdict("score", sentence, _smaller_batches(load), evidence)


def _sink_is_slow(load: Load) -> Verdict | None:
    if load.busy["sink"] < BUSY or load.busy["sink"] < load.working:
        return None
    name, sink = next(iter(load.settings["sink"].items()))
    knob = None
    remedy = "make what takes the scores faster, or give it less: fewer carried fields, a denser format"
    if sink.get("compression") not in (None, "none"):
        knob = Knob(f"sink.{name}.compression", "change", sink["compression"], "none")
        remedy = "compression costs most of such a write"
    elif sink["type"] == "http":
        knob = _larger_batches(load)
        remedy = "a request carries one batch, and larger ones need fewer requests"
    elif sink["type"] == "file":
        remedy = "a faster disk, or a denser format, takes more"
    sentence = f"The sink limits: it writes {_share(load.busy['sink'])} of the time; {remedy}."
    return Verdict("sink", sentence, knob, [f"sink busy {_share(load.busy['sink'])}", *_workers_evidence(load)])


def _batches_are_small(load: Load) -> Verdict | None:
    if not is_pressed(load) or not load.batches or load.mean_records > SMALL_RECORDS:
        return None
    seconds = load.working * load.workers * load.seconds / load.batches
    trigger, share = _main_trigger(load)
    if seconds > QUICK_SECONDS or trigger not in ("size", "bytes"):
        return None
    key, now, to = "batch.max_records", load.settings["batch"]["max_records"], USUAL_RECORDS
    if trigger == "size" and now >= to:
        return None
    if trigger == "bytes":
        key, now = "batch.max_bytes", load.settings["batch"]["max_bytes"]
        to = 8 * now
    evidence = [
        f"{load.mean_records:.3g} records a batch, {_share(share)} closed by {trigger}",
        f"{load.rates['batches']:,.0f} batches/s, {format_duration(seconds)} of work each",
        f"queue {_share(load.queue_fill)} full",
    ]
    sentence = (
        f"Batches are too small: handing over {load.mean_records:.3g} records costs more than to work on them; raise"
        f" {key} from {_plain(key, now)} to {_plain(key, to)}."
    )
    return Verdict("batch", sentence, Knob(key, "raise", now, to), evidence)


def _workers_are_busy(load: Load) -> Verdict | None:
    is_behind = is_pressed(load) and load.working >= WORKING
    if not is_behind and not _holds_the_lock(load):
        return None
    stage: Any = load.busiest
    share = load.busy[stage] / max(1e-9, load.working * load.workers)
    why, knob = _of_workers(load, stage)
    sentence = f"{stage.capitalize()} limits: it takes {_share(share)} of the workers' time. {why}"
    evidence = [*_workers_evidence(load), f"{load.mean_records:,.3g} records a batch"]
    return Verdict(stage, sentence, knob, evidence)


def _holds_the_lock(load: Load) -> bool:
    """Whether decoding and encoding take most of what one thread of Python can do, so that reading starves."""
    is_one_core = LOOP_CORES <= load.cores <= LOCKED_CORES and load.settings["workers"]["executor"] != "process"
    return is_one_core and load.busiest not in _MAY_WAIT and load.working * load.workers >= load.cores / 2


def _of_workers(load: Load, stage: str) -> tuple[str, Knob | None]:
    """Return the remedy for workers that are busy, mostly with this stage."""
    count, cpus = load.workers, load.cpus
    in_stages = load.working * count
    lighter = _lighter_knob(load, stage)
    if stage == "score" and load.mean_records <= SMALL_RECORDS and (knob := _larger_batches(load)):
        return f"Each call scores {load.mean_records:.3g} records; most models take more for little more time.", knob
    if load.cores >= ALL_CORES * cpus and (cpus > 1 or count > 1):
        return f"All {cpus} CPUs are in use: more workers will not help. {_lighter(load, stage)}", lighter
    if stage in _MAY_WAIT and load.cores < WAITING_SHARE * in_stages:
        knob = _THREAD if load.settings["workers"]["executor"] == "inline" else _more_workers(load, 2 * count)
        return "It waits more than it computes, so that more workers do more at once.", knob
    is_one_core = load.cores <= LOCKED_CORES and (stage not in _MAY_WAIT or load.cores < BUSY * in_stages)
    if is_one_core and count > 1 and cpus > 1 and load.settings["workers"]["executor"] == "thread":
        why = f"{count} threads use {load.cores:.2g} of {cpus} CPUs: they take turns at Python's lock (GIL)"
        return f"{why}, and more threads will not help. {_lighter(load, stage)}", lighter
    if stage in _MAY_WAIT and cpus > count:
        if load.settings["workers"]["executor"] == "inline":
            return "It runs in the event loop, where only one batch can be worked on.", _THREAD
        return "Most models compute without Python's lock, so that more workers help.", _more_workers(load, cpus)
    return _lighter(load, stage), lighter


def _lighter(load: Load, stage: str) -> str:
    """Return the sentence on how to give this stage less work."""
    knob = _lighter_knob(load, stage)
    if knob is None:
        return "A cheaper model or fewer steps helps." if stage in _MAY_WAIT else "Fewer fields help."
    if knob.key == "workers.executor":
        return "Processes have a lock each."
    if knob.key == "batch.max_records":
        return "Larger batches cost less per record."
    return "A format of columns costs a fraction of text."


def _lighter_knob(load: Load, stage: str) -> Knob | None:
    executor, has_cpus_left = load.settings["workers"]["executor"], load.cores < ALL_CORES * load.cpus
    if "process" in EXECUTORS and executor != "process" and load.cpus > 1 and has_cpus_left:
        return Knob("workers.executor", "change", executor, "process")
    if (knob := _larger_batches(load)) is not None:
        return knob
    section = {"decode": "source", "validate": "source", "encode": "sink"}.get(stage)
    for name, part in load.settings[section].items() if section else ():
        if part.get("format") in STREAMS and part["type"] == "file":
            return Knob(f"{section}.{name}.format", "change", part["format"], "arrow")
    return None


def _checkpoints_are_slow(load: Load) -> Verdict | None:
    if load.syncing < SYNCING or not is_pressed(load):
        return None
    now = load.settings.get("delivery", {}).get("checkpoint_interval", 1.0)
    knob = Knob("delivery.checkpoint_interval", "raise", now, max(1.0, 5 * now))
    sentence = (
        f"Checkpoints limit: they take {_share(load.syncing)} of the time; make them rarer "
        f"(delivery.checkpoint_interval = {format_duration(knob.to)}), or put state and output on a faster disk."
    )
    evidence = [f"checkpoints {_share(load.syncing)} of the time", *_workers_evidence(load)]
    return Verdict("state", sentence, knob, evidence)


def _memory_is_short(load: Load) -> Verdict | None:
    if load.memory_fill < FULL_MEMORY or not is_pressed(load):
        return None
    now = load.settings["limits"]["memory"]
    knob = Knob("limits.memory", "raise", now, 2 * now)
    sentence = f"The memory that records may take is used up: raise limits.memory to {format_size(2 * now)}."
    return Verdict("queue", sentence, knob, [f"memory {_share(load.memory_fill)} in use", *_workers_evidence(load)])


def _queue_is_short(load: Load) -> Verdict | None:
    now, wanted = load.settings["queue"]["max_records"], 2 * load.settings["batch"]["max_records"]
    if now >= wanted or load.blocked < PRESSED_BLOCKED:
        return None
    knob = Knob("queue.max_records", "raise", now, 8 * load.settings["batch"]["max_records"])
    sentence = f"The queue can't hold the next batch while one is scored: raise queue.max_records to {knob.to}."
    return Verdict("queue", sentence, knob, [f"source blocked {_share(load.blocked)}", *_workers_evidence(load)])


def _wait_is_short(load: Load) -> Verdict | None:
    max_wait = load.settings["batch"]["max_wait"]
    trigger, share = _main_trigger(load)
    is_costly = load.cores >= IDLE_CORES and trigger == "time" and load.mean_records <= SMALL_RECORDS
    if is_pressed(load) or max_wait is None or max_wait > SHORT_WAIT_SECONDS or not is_costly:
        return None
    knob = Knob("batch.max_wait", "raise", max_wait, 0.02)
    sentence = "Batches close too early: most CPU goes into handing them over; raise batch.max_wait to 20 ms."
    closed = f"{load.mean_records:.3g} records a batch, {_share(share)} closed by time"
    evidence = [closed, f"{load.cores:.2g} CPUs in use"]
    return Verdict("batch", sentence, knob, evidence)


def _reading_is_busy(load: Load) -> Verdict | None:
    if is_pressed(load) or load.cores < LOOP_CORES or load.rates["received"] <= 0:
        return None
    sentence = (
        "Reading limits: framing, or decompressing, takes the event loop's time; "
        "give it input that is not compressed or has fewer connections, or run a second pipeline on a part of it."
    )
    evidence = [f"queue {_share(load.queue_fill)} full", *_workers_evidence(load)]
    return Verdict("source", sentence, None, evidence)


def _something_is_behind(load: Load) -> Verdict | None:
    if not is_pressed(load):
        return None
    stage: Any = "sink" if load.busy["sink"] > load.working else load.busiest
    sentence = f"Input waits, and {stage} is busiest, though not all the time: the machine may have other work."
    return Verdict(stage, sentence, None, [f"sink busy {_share(load.busy['sink'])}", *_workers_evidence(load)])


def _input_is_scarce(load: Load) -> Verdict:
    received = load.rates["received"] + load.rates["recovered"]
    came = f"{received:,.{0 if received >= 10 else 2}f} records/s come in" if received else "no records come in"
    sentence = f"Nothing limits: the pipeline waits for input ({came})."
    return Verdict("nothing", sentence, None, [f"queue {_share(load.queue_fill)} full", *_workers_evidence(load)])


RULES: tuple[Rule, ...] = (
    Rule(_sink_is_out, "a sink in an outage holds everything, however busy the rest was"),
    Rule(_sink_stands_still, "a write that doesn't end is in no sum of busy seconds yet"),
    Rule(_model_stands_still, "nor is a call of the model that doesn't end"),
    Rule(_sink_is_slow, "all else waits for the end of the way"),
    Rule(_batches_are_small, "larger batches cost nothing, and the rest can't be judged before"),
    Rule(_workers_are_busy, "the usual case: one stage of the workers takes the time"),
    Rule(_checkpoints_are_slow, "workers and sink are idle, and the disk is not"),
    Rule(_memory_is_short, "no stage is busy, and there is no room for more"),
    Rule(_queue_is_short, "no stage is busy, and the queue can't hold the next batch"),
    Rule(_wait_is_short, "no input waits, but it costs more CPU than it must"),
    Rule(_reading_is_busy, "the CPU is in use, by none of the stages after the source"),
    Rule(_something_is_behind, "input waits, and no stage is busy enough to be the cause"),
    Rule(_input_is_scarce, "no input waits"),
)


def _larger_batches(load: Load) -> Knob | None:
    """Return the knob for larger batches, if batches are full and not large yet."""
    now = load.settings["batch"]["max_records"]
    is_full = load.mean_records >= BUSY * now
    if not is_full or now >= USUAL_RECORDS:
        return None
    return Knob("batch.max_records", "raise", now, min(USUAL_RECORDS, 8 * now))


def _smaller_batches(load: Load) -> Knob | None:
    now = load.settings["batch"]["max_records"]
    return Knob("batch.max_records", "lower", now, max(1, now // 8)) if now > 1 else None


def _more_workers(load: Load, count: int) -> Knob:
    return Knob("workers.count", "raise", load.settings["workers"]["count"], count)


def _main_trigger(load: Load) -> tuple[str, float]:
    """Return the trigger that closed most batches, and its share."""
    closed = sum(load.triggers.values())
    if not closed:
        return "", 0.0
    trigger = max(load.triggers, key=lambda name: load.triggers[name])
    return trigger, load.triggers[trigger] / closed


def _workers_evidence(load: Load) -> list[str]:
    workers = f"{load.workers} workers" if load.workers > 1 else "the worker"
    return [f"{workers} busy {_share(load.working)}", f"{load.cores:.2g} of {load.cpus} CPUs in use"]


def _plain(key: str, value: int) -> str:
    return format_size(value) if key.endswith("bytes") else f"{value}"


def _share(share: float) -> str:
    return f"{min(share, 1.0):.0%}"
