"""The data set `gpt_tts`: texts with codes that are files."""

from __future__ import annotations

import pytest
import torch

from dlas.data.audio.quantized import LONGEST_TEXT, SIGNS, TEXT_START, TEXT_STOP
from dlas.data.base import BadSample, Request, create_dataset
from dlas.data.text.symbols import LETTERS
from dlas.errors import DataError


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "quantized_mels").mkdir()
    (tmp_path / "list.txt").write_text("wavs/a.wav|Hi.\nwavs/b.wav|A longer one.\n")
    torch.save(torch.tensor([3, 0, 7]), tmp_path / "quantized_mels/a.wav.pth")
    torch.save(torch.tensor([[1, 2, 3, 4, 5]], dtype=torch.int32), tmp_path / "quantized_mels/b.wav.pth")
    return tmp_path


def made(corpus, **options):
    section = {"mode": "gpt_tts", "path": str(corpus / "list.txt"), "mel_vocab_size": 8, **options}
    return create_dataset(section, phase="train", name="train")


def sample(dataset, index):
    return dataset[Request(index=index, position=index, seed=0)]


def test_a_batch_is_what_the_model_was_trained_on(corpus):
    dataset = made(corpus)
    batch = dataset.collate([sample(dataset, 0), sample(dataset, 1)], ["a", "b"])
    said = [TEXT_START, *(LETTERS.index(sign) for sign in "hi."), TEXT_STOP]
    places = list(range(SIGNS + len(said), SIGNS + batch["padded_text"].shape[1]))
    assert batch["padded_text"][0].tolist() == said + places
    assert (TEXT_START, TEXT_STOP) == (349, 348)
    assert batch["padded_text"].shape == (2, len("a longer one.") + 2)
    assert batch["padded_qmel"].tolist() == [[8, 3, 0, 7, 9, 10, 10], [8, 1, 2, 3, 4, 5, 9]]
    assert (batch["input_lengths"].tolist(), batch["output_lengths"].tolist()) == ([5, 15], [5, 7])
    assert batch["filenames"] == [str(corpus / "wavs/a.wav"), str(corpus / "wavs/b.wav")]


def test_files_that_do_not_fit_are_named(corpus):
    torch.save(torch.tensor([3, 8]), corpus / "quantized_mels/a.wav.pth")
    with pytest.raises(BadSample, match=r"codes from 3 to 8; with mel_vocab_size 8 they are 0 to 7"):
        sample(made(corpus), 0)
    torch.save({"codes": torch.tensor([3])}, corpus / "quantized_mels/a.wav.pth")
    with pytest.raises(BadSample, match="no row of whole numbers"):
        sample(made(corpus), 0)
    (corpus / "quantized_mels/a.wav.pth").write_bytes(b"nothing")
    with pytest.raises(BadSample, match="cannot be read"):
        sample(made(corpus), 0)
    (corpus / "quantized_mels/a.wav.pth").unlink()
    with pytest.raises(BadSample, match=r"a\.wav\.pth"):
        sample(made(corpus), 0)
    (corpus / "list.txt").write_text(f"wavs/b.wav|{'a' * LONGEST_TEXT}\n")
    with pytest.raises(BadSample, match=f"there may be {LONGEST_TEXT - 2}"):
        sample(made(corpus), 0)
    with pytest.raises(DataError, match=r"none\.txt"):
        made(corpus, path=str(corpus / "none.txt"))
