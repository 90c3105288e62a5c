"""Numbers of batches go up over all runs, and a batch that is cut again keeps its own."""

from streambatch.core.batches import Batch, Stamps
from streambatch.durability.numbering import BatchNumbers, batch_id, number_in, revision_in
from tests.chunks import chunk_of


def batch(sequence: int, id: str | None = None) -> Batch:
    return Batch(sequence, [chunk_of([b"x"])], 1, 2, "size", Stamps(0.0, 0.0), id)


def test_an_id_holds_number_and_revision() -> None:
    assert batch_id("0af3", 17) == "0af3-17"
    assert batch_id("0af3", 17, 2) == "0af3-17r2"
    assert (number_in("0af3-17"), revision_in("0af3-17")) == (17, 0)
    assert (number_in("0af3-17r2"), revision_in("0af3-17r2")) == (17, 2)


def test_new_batches_get_the_next_numbers_and_one_cut_again_keeps_its_own() -> None:
    numbers = BatchNumbers("0af3", 7)
    assert numbers.number_of(batch(0, "0af3-3r1")) == 3
    assert numbers.id_of(batch(0, "0af3-3r1")) == "0af3-3r1"
    new = batch(1)
    assert (numbers.number_of(new), numbers.id_of(new), numbers.number_of(batch(2))) == (7, "0af3-7", 8)
    numbers.forget(new)
    assert numbers.number_of(batch(3)) == 9
