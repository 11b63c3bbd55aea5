"""Batches of so many seconds of speech, runs on them, and the layouts of Common Voice and VoxPopuli."""

from __future__ import annotations

import json

import pytest

from dlas.data.audio.manifests import read_utterances
from dlas.data.audio.paired import PairedVoiceAudio
from dlas.errors import ConfigurationError, DataError
from runs import assert_same_tensors, rows, trainer
from spoken import TOKENIZER, corpus

RUN = """
name: run
precision: fp32
device: cpu
datasets:
  train:
    mode: paired_voice_audio
    path: CLIPS
    fetcher_mode: jsonl
    tokenizer_vocab: TOKENIZER
    bucket_batches: 2
    batch_seconds: 2.5
    batch_size: 6
networks:
  classifier:
    which_model: mini_audio_encoder_classifier
    base_channels: 4
    depth: 2
    embedding_dim: 8
    resnet_blocks: 1
    attn_blocks: 1
    num_attn_heads: 2
steps:
  classifier:
    training: classifier
    optimizer_params: {lr: 1e-3}
    injectors:
      out: {type: generator, generator: classifier, in: [wav, type], out: out}
    losses:
      kind: {type: direct, key: out, weight: 1}
train: {niter: 6, val_freq: 0, mega_batch_factor: 2}
eval: {output_state: out, metrics: []}
logger: {print_freq: 1, save_checkpoint_freq: 3, tensorboard: false}
"""


def paired(path, **more):
    given = {"path": str(path), "fetcher_mode": "jsonl", "tokenizer_vocab": str(TOKENIZER)}
    return PairedVoiceAudio("train", **{**given, **more})


def test_a_budget_goes_by_seconds(tmp_path):
    path = corpus(tmp_path)
    found = paired(path, bucket_batches=3, batch_seconds=30).buckets()
    assert found.budget == 30
    assert found.lengths == pytest.approx([1.0, 1.1, 1.2] * 2, abs=1e-3)
    lines = [json.loads(line) | {"duration": 7} for line in path.read_text().splitlines()]
    lines.append({"file": "gone.wav", "text": "nobody"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert paired(path, bucket_batches=3, batch_seconds=30).buckets().lengths == [7] * 6 + [0.0]  # told, or not there
    with pytest.raises(ConfigurationError, match="write bucket_batches"):
        paired(path, batch_seconds=30)
    path.write_text('{"file": "a.wav", "text": "a", "duration": "long"}\n')
    with pytest.raises(DataError, match=r'clips.jsonl:1: expected "duration": seconds'):
        paired(path)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = corpus(tmp_path_factory.mktemp("clips"), clips=4, seconds=0.7)
    return RUN.replace("CLIPS", str(path)).replace("TOKENIZER", str(TOKENIZER))


def test_a_run_of_uneven_batches_goes_on_exactly(text, tmp_path):
    whole = trainer(tmp_path, text, "name=whole")
    sizes = []
    iterate = whole.iterate
    whole.iterate = lambda batch, **more: sizes.append(len(batch["positions"])) or iterate(batch, **more)
    whole.run()
    assert len(set(sizes)) > 1
    assert max(sizes) <= 3  # of 0.7 s; 2.5 s hold no more
    assert whole.progress.samples == sum(sizes) < 6 * 6
    trainer(tmp_path, text, "name=parts", "train.niter=3").run()
    trainer(tmp_path, text, "name=parts").run()
    assert_same_tensors(tmp_path / "whole/checkpoints/6", tmp_path / "parts/checkpoints/6")
    assert rows(tmp_path / "whole", "train") == rows(tmp_path / "parts", "train")


def test_what_goes_by_the_size_of_batches_is_refused(text, tmp_path):
    with pytest.raises(ConfigurationError, match="batch_seconds makes batches of different sizes"):
        trainer(tmp_path, text, "train.noise_scale={}")


def test_common_voice(tmp_path):
    path = tmp_path / "validated.tsv"
    path.write_text("client_id\tpath\tsentence\tup_votes\na1\tcv_1.mp3\tHello.\t2\nb2\tcv_2\tGood day.\t0\n")
    found = read_utterances(path, "mozilla_cv")
    assert [(c.path, c.text, c.speaker) for c in found] == [
        (tmp_path / "clips/cv_1.mp3", "Hello.", "a1"),
        (tmp_path / "clips/cv_2.mp3", "Good day.", "b2"),
    ]


def test_voxpopuli(tmp_path):
    path = tmp_path / "asr_train.tsv"
    row = "20160118-0900-PLENARY-8-en_20160118-19:22:42_{}\tRaw.\t{}\t1234\ttrain\tmale\n"
    path.write_text("id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\n" + row.format(0, "said") + row.format(1, ""))
    (found,) = read_utterances(path, "voxpopuli")
    clip = tmp_path / "2016/20160118-0900-PLENARY-8-en_20160118-19:22:42_0.ogg"
    assert (found.path, found.text, found.speaker) == (clip, "said", "1234")


@pytest.mark.parametrize(
    ("layout", "content", "words"),
    [
        ("mozilla_cv", "client_id\tpath\nx\ty\n", "its first line names no column sentence; expected a list of the layout"),
        ("mozilla_cv", "client_id\tpath\tsentence\nx\ty\n", "list:2: has 2 columns, and the first line 3"),
        ("voxpopuli", "a\tb\n", "no column id and no normalized_text and no speaker_id"),
    ],
)
def test_lists_with_faults_are_refused(layout, content, words, tmp_path):
    (tmp_path / "list").write_text(content)
    with pytest.raises(DataError, match=words):
        read_utterances(tmp_path / "list", layout)
