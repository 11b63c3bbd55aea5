"""Codes, texts and spectrograms of speech made once, and an autoregressive model trained on them."""

from __future__ import annotations

import pytest
import torch

from dlas.data.base import Request
from dlas.data.latents.dataset import Latents
from dlas.engine.build import build_dataset
from dlas.engine.encoding import encode_data_sets
from dlas.errors import ConfigurationError
from runs import assert_same_tensors, batches, configure, trainer
from spoken import DVAE, GPT, MEL_NORMS, TOKENIZER, corpus, networks

INJECTORS = f"""
    mel: {{type: torch_mel_spectrogram, in: wav, out: mel, mel_norm_file: {MEL_NORMS}}}
    all_codes: {{type: discrete_token, in: mel, out: all_codes}}
    codes: {{type: slice, in: all_codes, out: codes, dim: 1, end: -1}}
    clips: {{type: torch_mel_spectrogram, in: conditioning, out: clips, mel_norm_file: {MEL_NORMS}}}
"""
SMALL = str(GPT | {"max_text_tokens": 60})[1:-1].replace("'", "")
FILE = f"""
name: run
precision: fp32
device: cpu
datasets:
  train: DATA
networks:
  dvae: {{which_model: dvae, trainable: false, {str(DVAE)[1:-1].replace("'", "")}}}
  gpt: {{which_model: unified_voice2, number_text_tokens: 255, {SMALL}, dropout: 0}}
steps:
  gpt:
    training: gpt
    optimizer_params: {{lr: 1e-3}}
    injectors:ONLINE
      gpt:
        type: generator
        generator: gpt
        in: [clips, padded_text, text_lengths, codes, wav_lengths]
        args: {{clip_inputs: false}}
        out: [text_loss, mel_loss, logits]
    losses:
      text: {{type: direct, key: text_loss, weight: 0.01}}
      mel: {{type: direct, key: mel_loss, weight: 1}}
train: {{niter: 4, val_freq: 0}}
encode:
  batch_size: 1
  dtype: fp32
  copies: 2
  part_size: 3
  injectors:{INJECTORS}
eval: {{output_state: logits, metrics: []}}
logger: {{print_freq: 1, save_checkpoint_freq: 2, tensorboard: false}}
"""
KEEP = "[codes, wav_lengths, padded_text, text_lengths, clips, real_text]"


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file that trains on what is encoded from eight clips of different lengths."""
    folder = tmp_path_factory.mktemp("speech")
    clips = corpus(folder / "clips", clips=4, seconds=0.7)
    source = f"{{mode: paired_voice_audio, path: {clips}, fetcher_mode: jsonl, tokenizer_vocab: {TOKENIZER}, "
    source += "load_conditioning: true, conditioning_length: 4704}"
    data = f"{{mode: latents, folder: {folder}/encoded, keep: {KEEP}, batch_size: 4, source: {source}}}"
    torch.save(networks()["dvae"].state_dict(), folder / "dvae.pth")
    text = FILE.replace("DATA", data).replace("ONLINE", "") + f"path: {{pretrain: {{dvae: {folder}/dvae.pth}}}}\n"
    (done,) = encode_data_sets(configure(folder, text, "name=encoding"))
    assert (done.samples, done.made) == (8, 8)
    return text


def test_samples_are_as_long_as_they_are(text, tmp_path):
    config = configure(tmp_path, text)
    cached = build_dataset(config, "train")
    source = cached.store.plan["source"]
    assert isinstance(cached, Latents)
    assert cached.store.uneven == {"codes", "padded_text"}
    assert len(cached) == 8
    for index in range(8):
        found = cached[Request(index, index, 0)]
        seconds = 0.7 + 0.1 * (index % 4)
        assert int(found["wav_lengths"]) == round(22050 * seconds)
        assert found["codes"].dtype == torch.int64
        assert abs(len(found["codes"]) - 22050 * seconds / 1024) < 2
        assert len(found["padded_text"]) == int(found["text_lengths"])
        assert found["clips"].shape == (80, 19)
    assert source["mode"] == "paired_voice_audio"
    views = {tuple(cached[Request(3, position, 0)]["clips"].flatten().tolist()) for position in range(20)}
    assert len(views) == 2  # two draws of the voice's clips


def test_batches_are_filled_up_and_a_run_goes_on_exactly(text, tmp_path):
    (batch,) = batches(trainer(tmp_path, text), 1)
    assert batch["codes"].shape[0] == 4
    assert batch["codes"].shape[1] == int(batch["wav_lengths"].max()) // 1024
    for row, length in zip(batch["padded_text"], batch["text_lengths"], strict=True):
        assert not row[length:].any()
    trainer(tmp_path, text, "name=whole").run()
    trainer(tmp_path, text, "name=parts", "train.niter=2").run()
    trainer(tmp_path, text, "name=parts").run()
    assert_same_tensors(tmp_path / "whole/checkpoints/4", tmp_path / "parts/checkpoints/4")


def test_a_budget_of_tokens(text, tmp_path):
    options = ["datasets.train.bucket_by=codes", "datasets.train.max_tokens=40", "datasets.train.bucket_batches=2"]
    found = batches(trainer(tmp_path, text, *options), 8)
    sizes = [tuple(batch["codes"].shape) for batch in found]
    assert {count for count, _ in sizes} == {1, 2}
    assert all(count * length <= 40 for count, length in sizes)
    assert sorted(position for batch in found for position in batch["positions"])[:8] == list(range(8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["datasets.train.max_tokens=40"], "max_tokens counts the places of an entry; write which"),
        (["datasets.train.bucket_by=clips"], "'clips' does not differ in size .*; those that do: codes, padded_text"),
    ],
)
def test_options_that_do_not_go_together(options, message, text, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        build_dataset(configure(tmp_path, text, *options), "train")


def test_padding_is_not_encoded(text, tmp_path):
    config = configure(tmp_path, text, "encode.batch_size=4", f"datasets.train.folder={tmp_path}/other", "encode.part_size=8")
    with pytest.raises(ConfigurationError, match=r"'padded_text' of the source differs in size .*write `encode.batch_size: 1`"):
        encode_data_sets(config)
