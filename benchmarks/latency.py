"""How long records wait: a real daemon, clients that send on time whatever comes back, and their answers.

Latency is counted from the moment a record was *due* to be sent, so that a stall counts for every record it delays.
Run with `python -m benchmarks.latency`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import quantiles

import numpy as np

from benchmarks.feed import FEATURES

MAX_WAIT = 0.02
MARGIN = 0.01
"""What a record may take beyond `max_wait`, at the 99th percentile."""
CONFIG = f"""
name = "latency"
[source.live]
type = "tcp"
listen = "127.0.0.1:0"
max_connections = 2000
reply = true
[record]
id = "id"
features = "features"
shape = [{FEATURES}]
[batch]
max_wait = "{MAX_WAIT * 1000:g}ms"
[model]
type = "linear"
path = "model.npz"
[workers]
executor = "EXECUTOR"
[sink.scores]
type = "none"
[http]
listen = "off"
"""
_RECORD = '{"id":%d,"features":[' + ",".join(["0.5"] * FEATURES) + "]}\n"


class Client(asyncio.Protocol):
    """One connection: when its records were due, in order, and how long each took to be answered."""

    def __init__(self) -> None:
        self.due: dict[int, float] = {}
        self.took: list[float] = []
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def send(self, number: int, due: float) -> None:
        self.due[number] = due
        self._transport.write((_RECORD % number).encode())

    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self.took.append(now - self.due.pop(json.loads(line)["id"]))

    def close(self) -> None:
        self._transport.close()


async def trickle(address: tuple[str, int], clients: int, per_second: float, seconds: float) -> list[float]:
    """Return the latencies of clients that each send so many records a second, evenly apart, after a warm-up."""
    loop = asyncio.get_running_loop()
    opened = [(await loop.create_connection(Client, *address))[1] for _ in range(clients)]
    started, gap, sent = time.monotonic() + 0.5, 1 / (clients * per_second), 0
    total = int(seconds * clients * per_second)
    while sent < total:
        now = time.monotonic()
        while sent < total and (due := started + sent * gap) <= now:
            opened[sent % clients].send(sent, due)
            sent += 1
        await asyncio.sleep(0.001)
    await asyncio.sleep(1)
    for client in opened:
        client.close()
    if lost := sum(len(client.due) for client in opened):
        raise RuntimeError(f"{lost} of {total} records were not answered")
    return [took for client in opened for took in client.took[len(client.took) // 5 :]]


async def measure(executor: str, clients: int, per_second: float, seconds: float) -> list[float]:
    """Run a daemon and the clients against it. Returns seconds per record."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "model.npz", weights=np.ones(FEATURES), bias=0.0)
        (folder / "pipeline.toml").write_text(CONFIG.replace("EXECUTOR", executor))
        command = [sys.executable, "-m", "streambatch", "run", str(folder / "pipeline.toml")]
        daemon = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        try:
            host, _, port = (await _listening(daemon)).rpartition(":")
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_drain(daemon))
                took = await trickle((host, int(port)), clients, per_second, seconds)
                daemon.terminate()
            return took
        finally:
            if daemon.returncode is None:
                daemon.kill()
            await daemon.wait()


async def _listening(daemon: asyncio.subprocess.Process) -> str:
    assert daemon.stderr is not None
    async for line in daemon.stderr:
        event = json.loads(line)
        if event["event"] == "listening":
            return str(event["address"])
    raise RuntimeError("the daemon did not come up")


async def _drain(daemon: asyncio.subprocess.Process) -> None:
    assert daemon.stderr is not None
    await daemon.stderr.read()


def main() -> None:
    """Print a line per case: clients, median, 99th percentile, and what is allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds: float = parser.parse_args().seconds
    print(f"max_wait {MAX_WAIT * 1000:g} ms; allowed at p99: {(MAX_WAIT + MARGIN) * 1000:g} ms")
    for executor in ("inline", "thread"):
        for clients, per_second in ((1, 2.0), (1000, 10.0)):
            took = asyncio.run(measure(executor, clients, per_second, max(seconds, 20 / per_second)))
            cuts = quantiles(took, n=100)
            verdict = "reached" if cuts[98] <= MAX_WAIT + MARGIN else "missed"
            print(
                f"{executor:>7} {clients:>5} clients x {per_second:g}/s: p50 {cuts[49] * 1000:.1f} ms, "
                f"p99 {cuts[98] * 1000:.1f} ms, max {max(took) * 1000:.1f} ms: {verdict}"
            )


if __name__ == "__main__":
    main()
