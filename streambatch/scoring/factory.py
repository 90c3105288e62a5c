"""From the formats that sources and sink name, and the parts as they were built, to the transform of a pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import takewhile

from streambatch.codecs.formats import format_of
from streambatch.codecs.rows import validate
from streambatch.core.codec import Encoder
from streambatch.core.events import Observer
from streambatch.core.parts import Model, Source
from streambatch.core.schema import RecordSchema
from streambatch.scoring.states import Steps
from streambatch.scoring.transform import SourceFormat, Transform


def encoder_for(output_format: str, schema: RecordSchema) -> Encoder:
    """Return what writes scores in a sink's format."""
    return format_of(output_format).new_codec().encoder(schema)


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
    # The shape that a step gets is known only up to the first step that may change it; steps after that are not bound.
    known = takewhile(lambda step: step.keeps_shape, steps)
    bound = [step.bind(schema.feature_shape, schema.numpy_dtype) for step in known]
    if len(bound) == len(steps):
        # No step changed the shape, so that the model gets that of the records.
        model.bind(schema.feature_shape)
    replying = _reply_encoder(schema, encoder) if any(source.reply for source in sources) else None
    return Transform(formats, [*bound, *steps[len(bound) :]], model, encoder, reply_encoder=replying, observer=observer)


def _reply_encoder(schema: RecordSchema, encoder: Encoder) -> Encoder:
    """Return what writes JSON lines: the output's own encoder if it does, so that nothing is encoded twice."""
    lines = encoder_for("jsonl", schema)
    return encoder if type(encoder) is type(lines) else lines


def _source_format(name: str, schema: RecordSchema) -> SourceFormat:
    format = format_of(name)
    check = partial(validate, schema=schema, strip=format.framing.strip)
    return SourceFormat(format.new_codec().decoder(schema, format.framing), format.framing, check)
