"""A web service that scores one row a request, with a model that sees batches: `uvicorn fastapi_service:app`."""

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

import streambatch as sb

WEIGHTS = np.array([0.5, -1.0, 2.0])
app = FastAPI()


class Row(BaseModel):
    features: list[float] = Field(min_length=3, max_length=3)


@sb.batched(max_records=64, max_wait=0.005, max_pending=1024)
async def predict(rows: list[Row]) -> list[float | ValueError]:
    """Return one score per row, in order, or in a row's place the error that its caller gets."""
    scores = np.array([row.features for row in rows]) @ WEIGHTS
    return [score if np.isfinite(score) else ValueError("the score is not finite") for score in scores.tolist()]


@app.post("/score")
async def score(row: Row) -> dict[str, float]:
    return {"score": await predict(row)}


@app.exception_handler(ValueError)
async def refuse(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 422)


@app.exception_handler(sb.FullError)
async def send_away(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"detail": str(error)}, 503, {"Retry-After": "1"})
