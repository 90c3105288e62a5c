"""Scores a file of JSON lines, plain or compressed, in a loop of its own: `python microbatches_script.py in.jsonl`."""

import asyncio
import json
import sys

import numpy as np

import streambatch as sb

WEIGHTS = np.array([1.0, 0.5])


async def main(path: str) -> None:
    highest, best = -np.inf, None
    async with sb.microbatches(sb.FileSource(path), max_records=512, max_wait=0.05) as batches:
        async for batch in batches:
            rows = [json.loads(record) for record in batch.records()]
            scores = np.array([row["features"] for row in rows]) @ WEIGHTS
            print(f"batch {batch.sequence}: {batch.count} records, closed by {batch.trigger}, mean {scores.mean():.2f}")
            if scores.max() > highest:
                highest, best = scores.max(), rows[scores.argmax()]["id"]
    print(f"the highest score is {highest}, of record {best}")


asyncio.run(main(sys.argv[1]))
