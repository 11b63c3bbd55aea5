"""TorToiSe's tokenizer: cleaned texts, tokens, and back."""

from __future__ import annotations

from typing import Any

from dlas.data.text.cleaning import clean
from dlas.data.text.tokenizer import VoiceTokenizer
from parity.harness import Fixture, handles

EXPECTED = {
    "english_cleaned": lambda english, basic, row: clean(row["text"]),
    "basic_cleaned": lambda english, basic, row: clean(row["text"], "basic"),
    "transliteration_cleaned": lambda english, basic, row: clean(row["text"], "transliteration"),
    "ids": lambda english, basic, row: english.encode(row["text"]),
    "ids_basic_cleaners": lambda english, basic, row: basic.encode(row["text"]),
    "decoded": lambda english, basic, row: english.decode(row["ids"]),
}


def rows(fixture: Fixture) -> list[str]:
    return [str(index) for index in range(len(fixture.json["rows"]))]


@handles("golden_tokenizer*", cases=rows)
def check(fixture: Fixture, case: str) -> None:
    row: dict[str, Any] = fixture.json["rows"][int(case)]
    path = fixture.path.parent / "data" / "tokenizer.json"
    tokenizers = VoiceTokenizer(path), VoiceTokenizer(path, "basic")
    unknown = row.keys() - EXPECTED.keys() - {"text"}
    assert not unknown, f"no comparison for {sorted(unknown)}"
    found = {name: EXPECTED[name](*tokenizers, row) for name in row if name != "text"}
    assert found == {name: value for name, value in row.items() if name != "text"}
