"""From the formats that sources and sink name, and the parts as they were built, to the transform of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from importlib import import_module
from itertools import takewhile
from typing import Protocol

from streambatch.codecs.formats import TABLES, framing_for_format, resolve_format
from streambatch.codecs.rows import validate
from streambatch.core.codec import Decoder, Encoder, Framing
from streambatch.core.events import Observer
from streambatch.core.parts import Model, Source
from streambatch.core.schema import RecordSchema
from streambatch.scoring.states import Steps
from streambatch.scoring.transform import SourceFormat, Transform


class Codec(Protocol):
    """Makes the two directions between bytes and records."""

    def decoder(self, schema: RecordSchema, framing: Framing) -> Decoder: ...

    def encoder(self, schema: RecordSchema) -> Encoder: ...


CODECS = {
    "json": "streambatch.codecs.text.json:JsonCodec",
    "csv": "streambatch.codecs.csv.codec:CsvCodec",
    "arrow": "streambatch.codecs.table.arrow:ArrowCodec",
    "parquet": "streambatch.codecs.table.arrow:ParquetCodec",
}
"""Where each codec is; imported when it is asked for, since what some need is slow to import."""


def encoder_for(output_format: str, schema: RecordSchema) -> Encoder:
    """Return what writes scores in a sink's format."""
    if output_format in TABLES:
        from streambatch.codecs.table.encoder import TableEncoder

        return TableEncoder(schema)
    return _codec(output_format).encoder(schema)


def transform_for(
    sources: Sequence[Source],
    schema: RecordSchema,
    steps: Steps,
    model: Model,
    encoder: Encoder,
    observer: Observer | None = None,
) -> Transform:
    """Return the transform; steps and model are fitted to the shape and dtype of the records.

    observer: sees features and scores as they pass.

    Raises ShapeError or StepError for a part that doesn't fit.
    """
    formats = {source.name: _source_format(source.format, schema) for source in sources}
    known = takewhile(lambda step: step.keeps_shape, steps)
    bound = [step.bind(schema.feature_shape, schema.numpy_dtype) for step in known]
    if len(bound) == len(steps):
        model.bind(schema.feature_shape)
    replying = _reply_encoder(schema, encoder) if any(source.reply for source in sources) else None
    return Transform(formats, [*bound, *steps[len(bound) :]], model, encoder, reply_encoder=replying, observer=observer)


def _reply_encoder(schema: RecordSchema, encoder: Encoder) -> Encoder:
    """Return what writes JSON lines: the output's own encoder if it does, so that nothing is encoded twice."""
    lines = encoder_for("jsonl", schema)
    return encoder if type(encoder) is type(lines) else lines


def _source_format(name: str, schema: RecordSchema) -> SourceFormat:
    framing = framing_for_format(name)
    check = partial(validate, schema=schema, strip=framing.strip)
    return SourceFormat(_codec(name).decoder(schema, framing), framing, check)


def _codec(name: str) -> Codec:
    module, _, attribute = CODECS[resolve_format(name)[1]].partition(":")
    codec: Codec = getattr(import_module(module), attribute)()
    return codec
