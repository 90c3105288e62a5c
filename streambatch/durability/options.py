"""What a config says of checkpoints and of past runs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from streambatch.core.options import options
from streambatch.core.units import Duration

_DAY_SECONDS = 86400.0


@options
class Delivery:
    """When what was written is made durable, and how long a stop may take."""

    checkpoint_interval: Annotated[Duration, Field(gt=0)] = 1.0
    """Time between two checkpoints."""
    drain_timeout: Annotated[Duration, Field(ge=0)] = 20.0
    """Time a graceful stop may take before what is in flight is given up."""


@options
class RunsOptions:
    """What is kept of past runs."""

    keep: Annotated[Duration, Field(gt=0)] = 30 * _DAY_SECONDS
    """How long a run's manifest and its journal are kept after its last checkpoint, such as `30d`."""
