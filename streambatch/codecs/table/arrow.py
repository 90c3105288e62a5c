"""Arrow and Parquet: records are rows of a table, and a batch of them is decoded without looking at one alone."""

from __future__ import annotations

from streambatch.codecs.table.decoder import TableDecoder
from streambatch.codecs.table.encoder import TableEncoder
from streambatch.core.codec import Decoder, Encoder, Framing
from streambatch.core.schema import RecordSchema


class ArrowCodec:
    """Fields are columns, found by name; features are one column of lists, or one column each."""

    name = "arrow"

    def decoder(self, schema: RecordSchema, framing: Framing) -> Decoder:
        return TableDecoder(schema)

    def encoder(self, schema: RecordSchema) -> Encoder:
        """Return what makes a record batch of scores: id, score, carried fields."""
        return TableEncoder(schema)


class ParquetCodec(ArrowCodec):
    """The same: a Parquet file is read as Arrow record batches."""

    name = "parquet"
