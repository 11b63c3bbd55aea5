"""`dlas data tokenizer`: vocabularies of other languages."""

from __future__ import annotations

import pytest

from dlas.cli.main import main
from dlas.data.text.tokenizer import SPECIAL, VoiceTokenizer

POLISH = ["Zażółć gęślą jaźń, proszę pana!", "Gęś i żółw poszły nad rzekę.", "Proszę, zażółć to: gęślą jaźń.", "Pan i żółw"] * 5


@pytest.fixture
def texts(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(POLISH), encoding="utf-8")
    return path


def test_a_vocabulary_is_learned_and_reads_what_it_was_learned_from(texts, tmp_path, capsys):
    output = tmp_path / "pl/tokenizer.json"
    assert main(["data", "tokenizer", str(texts), "-o", str(output), "--size", "60"]) == 0
    assert "60 tokens of 20 lines" in capsys.readouterr().out
    tokenizer = VoiceTokenizer(output, cleaner="basic", training_signs=True)
    assert tokenizer.size == 60
    assert [tokenizer._tokenizer.token_to_id(token) for token in SPECIAL] == [0, 1, 2]
    for text in POLISH[:4]:
        tokens = tokenizer.encode(text)
        assert tokenizer.decode(tokens) == text.lower()
        assert 1 not in tokens
        assert len(tokens) < len(text)  # pieces, not signs
    assert 1 in tokenizer.encode("\u2603")


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ("20", "different signs, which with 3 special tokens are more than 20"),
        ("5000", "pieces that are worth a token, and 5000"),
    ],
)
def test_sizes_that_cannot_be(texts, tmp_path, capsys, size, words):
    assert main(["data", "tokenizer", str(texts), "-o", str(tmp_path / "t.json"), "--size", size]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_nothing_is_overwritten_and_texts_must_be_there(texts, tmp_path, capsys):
    assert main(["data", "tokenizer", str(texts), "-o", str(texts)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert texts.read_text(encoding="utf-8").startswith("Za")
    assert main(["data", "tokenizer", str(tmp_path / "none.txt"), "-o", str(tmp_path / "t.json")]) == 1
    assert "cannot be read" in capsys.readouterr().err
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["data", "tokenizer", str(tmp_path / "empty.txt"), "-o", str(tmp_path / "t.json")]) == 1
    assert "no texts" in capsys.readouterr().err
