"""`streambatch audit`: check that every record is accounted for, from state and files alone."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from streambatch.cli.printing import print_json, print_rows
from streambatch.config.assemble import load_config
from streambatch.core.text import encodable
from streambatch.durability.store.database import FILE_NAME
from streambatch.durability.store.store import StateStore
from streambatch.ops.audit import Audit, audit

RIGHT, WRONG = 0, 1
SHOWN = 60
"""With more checks than this, only failed ones are printed without --json."""


def audit_state(path: Path, overrides: Sequence[str], *, is_json: bool) -> int:
    """Print all checks and whether they hold. Returns the exit code: 1 if one doesn't."""
    config = load_config(path, overrides=overrides)
    if not (config.state_dir / FILE_NAME).exists():
        if is_json:
            print_json(None)
        else:
            print_rows([("state", f"{config.state_dir}: none yet; nothing to audit")])
        return RIGHT
    with StateStore.read(config.state_dir) as store:
        result = audit(config, store)
    if is_json:
        print_json({"is_right": result.is_right, **msgspec.to_builtins(result)})
    else:
        _print(result)
    return RIGHT if result.is_right else WRONG


def _print(result: Audit) -> None:
    print_rows([("state", result.state_dir), *result.counts.items()])
    lines = [""]
    wrong = [check for check in result.checks if not check.is_right]
    shown = result.checks if len(result.checks) <= SHOWN else wrong
    for check in shown:
        word = "ok" if check.is_right else "WRONG"
        numbers = (
            str(check.found) if check.expected == check.found else f"expected {check.expected}, found {check.found}"
        )
        lines.append(f"{word:<7}{check.what}: {numbers}{f'; {check.why}' if check.why else ''}")
    lines += [f"note   {note}" for note in result.notes]
    lines.append(f"\n{len(result.checks) - len(wrong)} of {len(result.checks)} checks hold")
    lines.append(f"verdict: {'not every' if wrong else 'every'} record is accounted for")
    print(encodable("\n".join(lines)))
