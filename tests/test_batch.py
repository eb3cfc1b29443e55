"""A batch: its rows keep their names, however it is cut or moved."""

from __future__ import annotations

import pytest
import torch

from sslim.audio.batch import Batch


def batch(rows: int, samples: int = 6) -> Batch:
    return Batch(
        torch.arange(rows * samples, dtype=torch.float32).reshape(rows, samples),
        tuple(f"clip {row}" for row in range(rows)),
    )


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_pieces_are_the_rows_under_their_names(rows: int, sizes: list[int]) -> None:
    whole = batch(5)

    pieces = whole.split(rows)

    assert [len(piece.waveforms) for piece in pieces] == sizes
    assert torch.equal(torch.cat([piece.waveforms for piece in pieces]), whole.waveforms)
    assert sum((piece.identities for piece in pieces), ()) == whole.identities
    for piece in pieces:
        for row, identity in zip(piece.waveforms, piece.identities, strict=True):
            assert torch.equal(row, whole.waveforms[whole.identities.index(identity)])
    assert sum(piece.samples for piece in pieces) == whole.samples == 30


def test_no_rows_are_no_batch() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        batch(2).split(0)


def test_a_moved_batch_keeps_its_names() -> None:
    moved = batch(3).to("meta", non_blocking=True)

    assert moved.waveforms.device.type == "meta"
    assert moved.identities == batch(3).identities


def test_silence_is_one_row_of_zeros() -> None:
    quiet = Batch.silence(800)

    assert quiet.waveforms.shape == (1, 800)
    assert quiet.waveforms.dtype == torch.float32
    assert not quiet.waveforms.any()
    assert len(quiet.identities) == 1
    assert Batch.silence().waveforms.shape == (1, 400)
