"""Writes the dashboards from `overview.py` and `compare.py`. `make dashboards` runs it.

The JSON is checked in, so that Grafana needs nothing but files, and a test compares it with fresh ones.
"""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from grafana.compare import compare
from grafana.overview import overview

FOLDER = Path(__file__).parent / "dashboards"


def dashboards() -> dict[str, str]:
    """Return the text of each file, by its name."""
    boards = (made.build() for made in (overview(), compare()))
    return {f"{board.uid}.json": _text(board) for board in boards}


def main() -> None:
    """Write every dashboard."""
    for name, text in dashboards().items():
        (FOLDER / name).write_text(text)


def _text(board: Dashboard) -> str:
    panels = [one for panel in board.panels or () for one in (panel, *getattr(panel, "panels", ()))]
    for number, panel in enumerate(panels, start=1):
        panel.id_val = number
    return JSONEncoder(sort_keys=True, indent=2).encode(board) + "\n"


if __name__ == "__main__":
    main()
