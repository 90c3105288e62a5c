"""The objects that the stages of one run share."""

from __future__ import annotations

from dataclasses import dataclass

from streambatch.core.budget import Budget
from streambatch.core.clock import Clock
from streambatch.core.events import Observer
from streambatch.core.ledger import Ledger
from streambatch.pipeline.feedback import Feedback


@dataclass(frozen=True, slots=True, kw_only=True)
class RunContext:
    """The objects of one run."""

    run_id: str
    clock: Clock
    observer: Observer
    ledger: Ledger
    """Counts each record once: Reading as received, Cutting as batched, Delivering as settled."""
    budget: Budget
    """Bytes of records: sources take those they read, Cutting those of scores, Delivering gives both back."""
    feedback: Feedback
