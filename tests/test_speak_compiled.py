"""Speaking with compiled networks: what is traced computes what the plain networks do. Kernels are not generated here."""

from __future__ import annotations

import torch
from torch import nn

from dlas.inference.speech.pipeline import Speaker
from tiny_speech import QUICK, make_models

TEXT = "The sentence is said at once."
FEW = QUICK | {"steps": 2, "candidates": 1, "batch": 1}


def test_compiled_networks_say_the_same(tmp_path, monkeypatch):
    compiled = []

    def traced(self, **options):
        compiled.append(type(self).__name__)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="eager", **options)

    folder = make_models(tmp_path / "models")
    plain = Speaker.load(folder, device="cpu")
    monkeypatch.setattr(nn.Module, "compile", traced)
    other = Speaker.load(folder, device="cpu", compile=True)
    assert compiled == ["DiffusionTTS", "UnivNet"]
    for one, two in zip(*(each.say(TEXT, each.voices.random(1), **FEW) for each in (plain, other)), strict=True):
        assert one.text == two.text
        torch.testing.assert_close(two.sound, one.sound, rtol=0, atol=1e-4)
