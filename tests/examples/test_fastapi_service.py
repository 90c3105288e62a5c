"""The service with `@batched`, served by uvicorn in a process of its own and asked as its clients would."""

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import pytest

from tests.e2e.pages import Page

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    command = [sys.executable, "-m", "uvicorn", "fastapi_service:app", "--app-dir", str(EXAMPLES), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as service:
        assert service.stderr is not None
        try:
            yield _port_of(service.stderr)
        finally:
            service.send_signal(signal.SIGINT)
            log = service.communicate(timeout=10)[1]
    assert "Traceback" not in log


def _port_of(log: IO[str]) -> int:
    """Wait until the service says where it listens."""
    lines = []
    for line in log:
        lines.append(line)
        if "http://127.0.0.1:" in line:
            return int(line.split("http://127.0.0.1:")[1].split()[0])
    raise AssertionError("".join(lines))


async def send(port: int, features: object) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Post one row on a connection of its own."""
    body = json.dumps({"features": features}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /score HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    await writer.drain()
    return reader, writer


async def ask(port: int, features: object) -> tuple[int, dict[str, object]]:
    """Post one row; return status and answer."""
    reader, writer = await send(port, features)
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return int(answer.split()[1]), json.loads(answer.partition(b"\r\n\r\n")[2])


async def hang_up(port: int, features: object) -> None:
    """Post one row and go away."""
    _, writer = await send(port, features)
    writer.transport.abort()


async def ask_all(port: int, rows: list[list[float]]) -> list[tuple[int, dict[str, object]]]:
    return await asyncio.gather(*(ask(port, row) for row in rows))


def test_the_page_shows_the_example() -> None:
    (_, shown), *_ = Page(ROOT / "docs" / "how-to" / "embed-batched.md").blocks("python")
    assert shown == "# fastapi_service.py\n" + (EXAMPLES / "fastapi_service.py").read_text()


def test_many_clients_at_once_get_their_own_answers_and_a_bad_row_only_its_own_error(port: int) -> None:
    rows = [[float(number), 0.0, 0.0] for number in range(300)]
    rows[7] = rows[200] = [1e308, 0.0, 1e308]
    rows[9] = [1.0, 2.0]
    answers = asyncio.run(ask_all(port, rows))
    for number, (status, answer) in enumerate(answers):
        if number in (7, 200):
            assert (status, answer) == (422, {"detail": "the score is not finite"})
        elif number == 9:
            assert status == 422
        else:
            assert (status, answer) == (200, {"score": number / 2})


def test_clients_that_hang_up_harm_no_others(port: int) -> None:
    async def main() -> None:
        async with asyncio.TaskGroup() as callers:
            for number in range(50):
                callers.create_task(hang_up(port, [float(number), 0.0, 0.0]))
            answers = callers.create_task(ask_all(port, [[float(number), 0.0, 0.0] for number in range(50)]))
        assert answers.result() == [(200, {"score": number / 2}) for number in range(50)]

    asyncio.run(main())


def test_one_caller_too_many_is_told_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    service = import_module("fastapi_service")
    [answer] = asyncio.run(_refused(service))
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "1"


async def _refused(service: Any) -> list[Any]:
    rows = [service.Row(features=[number, 0, 0]) for number in range(1025)]
    answers = await asyncio.gather(*(service.score(row) for row in rows), return_exceptions=True)
    assert answers[:1024] == [{"score": number / 2} for number in range(1024)]
    return [await service.app.exception_handlers[type(error)](None, error) for error in answers[1024:]]
