"""Texts with codes of speech that are files already, as the first autoregressive models of DL-Art-School read them."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from dlas.data.audio.manifests import read_utterances
from dlas.data.base import BadSample, Dataset, Request, Sample, stack_samples
from dlas.data.text.symbols import LetterTokenizer
from dlas.registry import DATASETS
from dlas.types import PositiveInt

SIGNS = 148
"""Signs of Tacotron's table, phonemes included; those that are read come first."""

LONGEST_TEXT = 200
"""Signs of the longest text, with its start and its stop."""

TEXT_STOP, TEXT_START = SIGNS + LONGEST_TEXT, SIGNS + LONGEST_TEXT + 1


@DATASETS.register("gpt_tts")
class GptTts(Dataset):
    """Texts of a list `name|text` with the codes of their clips, which are in `quantized_mels` beside it.

    Gives `padded_text` (B, T), `padded_qmel` (B, S), their lengths `input_lengths` and `output_lengths`, and `filenames`. Both
    begin and end with numbers for start and stop: of texts 349 and 348, of codes V and V + 1. What fills up texts tells its
    place, 148 + place (Ramesh et al., arXiv:2102.12092, section 2.2); what fills up codes is V + 2.

    Args:
        phase: all are alike.
        path: the list; the codes of `wavs/name.wav` are `quantized_mels/name.wav.pth`: one tensor of whole numbers, as
            `torch.save` writes it.
        mel_vocab_size: V, the number of codes.
        on_bad_file: `error` stops at a damaged file, or one that does not fit; `skip` takes another one and reports it.

    Raises:
        DataError: the list is missing or holds something else.
    """

    provides = ("padded_text", "input_lengths", "padded_qmel", "output_lengths", "filenames")

    def __init__(
        self, phase: str, /, *, path: str, mel_vocab_size: PositiveInt, on_bad_file: Literal["error", "skip"] = "error"
    ) -> None:
        del phase
        self.clips = read_utterances(path, "lj")
        self.codes = mel_vocab_size
        self.on_bad_file = on_bad_file
        self.tokenizer = LetterTokenizer()

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images."""

    def __len__(self) -> int:
        return len(self.clips)

    def source(self, index: int) -> str:
        return str(self.clips[index].path)

    def identity(self, index: int) -> str:
        return f"{super().identity(index)} {self.clips[index].text}"

    def __getitem__(self, request: Request) -> Sample:
        clip = self.clips[request.index]
        text = torch.tensor([TEXT_START, *self.tokenizer.encode(clip.text), TEXT_STOP])
        if len(text) > LONGEST_TEXT:
            raise BadSample(clip.path, f"has a text of {len(text) - 2} signs; there may be {LONGEST_TEXT - 2}")
        codes = F.pad(self._read(clip.path), (1, 1))
        codes[0], codes[-1] = self.codes, self.codes + 1
        lengths = {"input_lengths": len(text), "output_lengths": len(codes)}
        return {"padded_text": text, "padded_qmel": codes, "filenames": str(clip.path), **lengths}

    def _read(self, clip: Path) -> Tensor:
        path = clip.parent.parent / "quantized_mels" / f"{clip.name}.pth"
        try:
            codes = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadSample(path, f"cannot be read ({reason}); expected codes as torch.save writes a tensor") from error
        if not isinstance(codes, Tensor) or codes.is_floating_point() or codes.squeeze().dim() > 1 or codes.numel() == 0:
            raise BadSample(path, "holds no row of whole numbers; expected the codes of one clip")
        codes = codes.flatten().long()
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= self.codes:
            raise BadSample(
                path, f"has codes from {low} to {high}; with mel_vocab_size {self.codes} they are 0 to {self.codes - 1}"
            )
        return codes

    def collate(self, samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
        """Fills up texts and codes to the longest of the batch."""
        signs, codes = (max(len(sample[key]) for sample in samples) for key in ("padded_text", "padded_qmel"))
        places = torch.arange(SIGNS, SIGNS + signs)
        filled = [
            {
                **sample,
                "padded_text": torch.cat((sample["padded_text"], places[len(sample["padded_text"]) :])),
                "padded_qmel": F.pad(sample["padded_qmel"], (0, codes - len(sample["padded_qmel"])), value=self.codes + 2),
            }
            for sample in samples
        ]
        return stack_samples(filled, sources)
