"""Made-up taxi rides, and a linear model of their fares, for `init` and `demo`. Equal seeds give equal rides."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

_ZONES = ("Centre", "Harbour", "Hills", "Station")
_MEAN, _SCALE = np.array([5.0, 14.0, 1.5]), np.array([3.0, 8.0, 0.8])
_FARE = np.array([2.1, 0.45, 0.0])
"""Per km, per minute, per rider."""
_BASE_FARE = 3.2
_ENCODER = msgspec.json.Encoder()


def rides(rng: np.random.Generator, first: int, count: int, *, broken_every: int) -> bytes:
    """Return `count` rides from number `first` on, as lines of JSON. Every `broken_every`th one is broken.

    In turn, a broken one is cut off, lacks a feature, or has a text for a number.
    """
    km = rng.gamma(2.8, 1.8, count).round(2)
    minutes = (km * 2.4 + rng.gamma(2.0, 1.2, count)).round(1)
    riders = rng.choice((1, 2, 3, 4), count, p=(0.7, 0.18, 0.08, 0.04))
    zones = rng.integers(0, len(_ZONES), count)
    columns = zip(range(first, first + count), km.tolist(), minutes.tolist(), riders.tolist(), zones, strict=True)
    lines = [
        _ENCODER.encode({"ride": ride, "km": far, "minutes": long, "riders": many, "zone": _ZONES[zone]})
        for ride, far, long, many, zone in columns
    ]
    for at in range(-first % broken_every, count, broken_every):
        if first + at:
            lines[at] = _broken(lines[at], (first + at) // broken_every)
    return b"\n".join(lines) + b"\n"


def write_model(path: Path) -> None:
    """Write the model of the fares, as `weights` and `bias` for standardized features."""
    # The pipeline standardizes features first: x = scaled * scale + mean, put into the fare's formula.
    np.savez(path, weights=_FARE * _SCALE, bias=_BASE_FARE + _FARE @ _MEAN)


def _broken(line: bytes, turn: int) -> bytes:
    ride = msgspec.json.decode(line)
    if turn % 3 == 1:
        return line[:-9]
    if turn % 3 == 2:
        del ride["minutes"]
    else:
        ride["km"] = "far"
    return _ENCODER.encode(ride)
