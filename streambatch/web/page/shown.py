"""Turn the view of a pipeline (`ops/live_view.py`) into the contents of the page's places. Pure.

`html` holds the escaped content of each place, and `tone` its severity: `good`, `warn`, `bad` or `idle`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streambatch.web.page.figures import (
    bar,
    count,
    digest,
    items,
    line,
    moment,
    rate,
    rows,
    seconds,
    share,
    size,
    text,
)

DEAD_SHARE_WARN, DEAD_SHARE_BAD = 0.001, 0.01
"""The second is also the threshold of the alert on dead letters."""
FILL_WARN, FILL_BAD = 0.8, 0.95
ROWS_MAX = 10
"""Most rows in a list."""
_STATES = {
    "starting": ("Starting", "warn"),
    "running": ("Not ready", "bad"),
    "draining": ("Draining", "warn"),
    "stopped": ("Stopped", "idle"),
    "failed": ("Failed", "bad"),
}
_ACCOUNT = ("received", "recovered", "scored", "dead_lettered", "dropped", "unacked", "refused")
_UNKNOWN = "Not known yet: this takes a few seconds of records."

View = Mapping[str, Any]


def shown(view: View) -> dict[str, dict[str, str]]:
    """Return `html` and `tone` by place."""
    word, tone = _state(view)
    html = {
        "state": word,
        "title": f"{word} · {text(view['pipeline'])} · streambatch",
        "name": text(view["pipeline"]),
        "reasons": items(text(reason) for reason in view["not_ready"] or ()),
        "run": text(view["run"]),
        "version": text(view["version"]),
        "uptime": seconds(view["uptime_seconds"]),
        "at": moment(view["at"], view["at"]),
        **_glance(view),
        **_verdict(view["verdict"]),
        **_time(view),
        **_batches(view),
        **_machine(view),
        **_account(view),
        "sources": _sources(view),
        "errors": _errors(view["errors"], view["at"]),
        "dead": _dead(view["dead_letters"], view["at"]),
        "model": _model(view["model"] or {}),
        "config": digest(view["config_digest"]),
        "settings": _settings(view["settings"] or {}),
        "runs": _runs(view["runs"]),
    }
    return {"html": html, "tone": {"state": tone, **_tones(view)}}


def _state(view: View) -> tuple[str, str]:
    if view["down"] is not None:
        return "Down", "bad"
    if view["ready"]:
        return "Ready", "good"
    return _STATES.get(view["state"], ("Unknown", "idle"))


def _dead_share(view: View) -> float | None:
    """Return the recent share of dead letters; None if no record was settled."""
    done = view["rates"]["scored"] + view["rates"]["dead_lettered"]
    return view["rates"]["dead_lettered"] / done if done else None


def _tones(view: View) -> dict[str, str]:
    died, fill = _dead_share(view) or 0.0, view["queue"].get("fill", 0.0)
    lasting = any(error["over_at"] is None for error in view["errors"])
    verdict = view["verdict"] or {}
    return {
        "dead": "bad" if died > DEAD_SHARE_BAD else "warn" if died >= DEAD_SHARE_WARN else "idle",
        "queue": "bad" if fill >= FILL_BAD else "warn" if fill >= FILL_WARN else "idle",
        "errors": "bad" if lasting else "idle",
        "verdict": "idle" if verdict.get("stage", "nothing") == "nothing" else "warn",
        "account": "good" if not view["records"].get("imbalance", 0) else "bad",
    }


def _glance(view: View) -> dict[str, str]:
    rates, records, latency, queue = view["rates"], view["records"], view["latency_seconds"], view["queue"]
    history = view["history"]
    return {
        "rate": rate(rates["scored"]),
        "rate_in": rate(rates["received"] + rates["recovered"]),
        "bytes_in": size(rates["bytes"]),
        "rate_line": line(history["scored"]),
        "p99": seconds(latency["p99"]),
        "p95": seconds(latency["p95"]),
        "p50": seconds(latency["p50"]),
        "p99_line": line(history["p99"]),
        "dead_share": share(_dead_share(view)),
        "dead_rate": rate(rates["dead_lettered"]),
        "dead_count": count(records.get("dead_lettered")),
        "dead_line": line(history["dead_lettered"]),
        "fill": share(queue.get("fill")),
        "queued": count(queue.get("records")),
        "queued_bytes": size(queue.get("bytes")),
        "oldest": seconds(queue.get("oldest_seconds")),
        "fill_line": line(history["queue_fill"], top=1.0),
    }


def _verdict(verdict: View | None) -> dict[str, str]:
    if verdict is None:
        return {"limit": "What limits", "sentence": _UNKNOWN, "knob": "", "evidence": ""}
    return {
        "limit": f"What limits: {text(verdict['stage'])}",
        "sentence": text(verdict["sentence"]),
        "knob": _knob(verdict["knob"]) if verdict["knob"] else "",
        "evidence": items(text(one) for one in verdict["evidence"]),
    }


def _knob(knob: View) -> str:
    """Return a key of the config with its value as it is, and as it might be."""
    return (
        f"<strong>What to turn:</strong> {text(knob['direction'])} <code>{text(knob['key'])}</code> "
        f"from <code>{text(knob['now'])}</code> to <code>{text(knob['to'])}</code>"
    )


def _time(view: View) -> dict[str, str]:
    parts = (
        (_part_name(part["part"]), seconds(part["seconds"]), share(part["share"]), bar(part["share"], _kind(part)))
        for part in view["latency_parts"]
    )
    stages = (
        (text(stage["stage"]), count(stage["workers"]), share(stage["busy"]), bar(stage["busy"]))
        for stage in view["stages"]
    )
    return {
        "parts": rows(parts, none="no record was written of late", columns=4),
        "stages": rows(stages, none="not known yet", columns=4),
    }


def _part_name(part: str) -> str:
    return text(part.replace("wait_", "waiting: ", 1))


def _kind(part: View) -> str:
    return "wait" if part["part"].startswith("wait_") else "work"


def _batches(view: View) -> dict[str, str]:
    batch = view["batch"]
    triggers = ((text(trigger), share(part), bar(part)) for trigger, part in batch.get("triggers", {}).items() if part)
    return {
        "batch_mean": count(batch.get("mean_records")),
        "batch_max": count(batch.get("max_records")),
        "batch_fill": bar(batch.get("fill")),
        "batch_rate": rate(view["rates"]["batches"]),
        "triggers": rows(triggers, none="no batch was closed of late", columns=3),
    }


def _machine(view: View) -> dict[str, str]:
    process, memory = view["process"], view["memory"]
    return {
        "cores": f"{process['cores']:.2f}",
        "cpus": count(process["cpus"]),
        "cores_bar": bar(process["cores"] / (process["cpus"] or 1)),
        "rss": size(process["rss_bytes"]),
        "pid": text(process["pid"]),
        "memory": size(memory.get("bytes")),
        "memory_capacity": size(memory.get("capacity_bytes")),
        "memory_bar": bar(memory.get("fill")),
    }


def _account(view: View) -> dict[str, str]:
    records = view["records"]
    imbalance = records.get("imbalance", 0)
    names = {f"sum_{name}": count(records.get(name)) for name in _ACCOUNT}
    return {
        **names,
        "balance": "every record is accounted for" if not imbalance else f"{count(imbalance)} records are unaccounted",
    }


def _sources(view: View) -> str:
    return rows(
        (
            (
                text(name),
                count(source["received"] + source["recovered"]),
                size(source.get("bytes")),
                count(source["scored"]),
                count(source["dead_lettered"]),
                count(source["dropped"]),
                count(source["unacked"]),
                count(source.get("connections")),
                seconds(source.get("blocked_seconds")),
            )
            for name, source in view["sources"].items()
        ),
        none="not known yet",
        columns=9,
    )


def _errors(errors: Iterable[View], now: float | None) -> str:
    return rows(
        (
            (
                text(error["where"]),
                text(error["error"]),
                count(error["times"]),
                moment(error["last_at"], now),
                moment(error["over_at"], now) if error["over_at"] else '<em class="bad">not over</em>',
            )
            for error in list(errors)[:ROWS_MAX]
        ),
        none="no error in this run",
        columns=5,
    )


def _dead(letters: Iterable[View], now: float | None) -> str:
    return rows(
        (
            (
                moment(letter["at"], now),
                f"{text(letter['stage'])}, {text(letter['reason'])}",
                text(letter["error"]),
                text(letter["source"]),
                f"{text(letter['partition'])}, {text(letter['position'])}",
            )
            for letter in list(letters)[:ROWS_MAX]
        ),
        none="no record died in this run",
        columns=5,
    )


def _model(model: View) -> str:
    return f"{text(model.get('format'))} {digest(model.get('digest'))}"


def _settings(settings: View) -> str:
    """Return options as a config has them, by section."""
    return items(
        f"<code>{text(section)}.{text(key)} = {text(value)}</code>"
        for section, table in settings.items()
        for key, value in table.items()
        if value is not None and not isinstance(value, Mapping)
    )


def _runs(runs: Iterable[View]) -> str:
    return rows(
        (
            (
                text(run["run"]),
                moment(run["started_at"]),
                moment(run["ended_at"]),
                text(run.get("error") or run["why"]),
                count(run["records"]["received"]),
                count(run["records"]["scored"]),
                count(run["records"]["dead_lettered"]),
            )
            for run in list(runs)[:ROWS_MAX]
        ),
        none="no earlier run is kept",
        columns=7,
    )
