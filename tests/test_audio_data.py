"""Data sets of sound: what they give, which clips tell a voice, padding, and batches of one length."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

from dlas.config import load
from dlas.data.audio.batches import pad_to_longest
from dlas.data.audio.files import read_sound
from dlas.data.audio.manifests import read_utterances
from dlas.data.base import BadSample, Buckets, Request, create_dataset
from dlas.data.loader import build_loader
from dlas.data.sampler import SampleOrder
from dlas.data.text.symbols import LetterTokenizer
from dlas.engine.dryrun import dry_run
from dlas.errors import ConfigurationError, DataError
from dlas.layers.mel import MelSpectrogram
from spoken import MEL_NORMS, TOKENIZER, WORDS, corpus, tone

RATE = 22050


def data(mode, phase="train", **options):
    return create_dataset({"mode": mode, **options}, phase=phase, name="train")


def paired(path, phase="train", **options):
    told = {
        "path": path if isinstance(path, list) else str(path),
        "fetcher_mode": "jsonl",
        "tokenizer_vocab": str(TOKENIZER),
        "sample_rate": RATE,
        **options,
    }
    return data("paired_voice_audio", phase, **told)


def first_batch(dataset, size=2, n_workers=0, seed=0, start=0):
    order = SampleOrder(len(dataset), seed)
    with build_loader(dataset, batch_size=size, order=order, n_workers=n_workers, start_position=start) as loader:
        return next(loader)


def sample(dataset, index=0, position=0, seed=0):
    return dataset[Request(index, position, seed)]


def same(one, two):
    return one.keys() == two.keys() and all(
        torch.equal(value, two[key]) if isinstance(value, torch.Tensor) else value == two[key] for key, value in one.items()
    )


# ---------------------------------------------------------------------------------------------------- layouts


def clip_at(path, seconds=0.7):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(seconds), RATE)


def test_layouts_of_corpora(tmp_path):
    lj = tmp_path / "lj"
    clip_at(lj / "wavs/LJ1.wav")
    (lj / "metadata.csv").write_text("LJ1|Dr. A 1|Doctor A one\n")
    (lj / "train_filelist.txt").write_text("DUMMY/LJ1.wav|said here\nwavs/LJ1.wav|and here\n")
    assert [(c.path, c.text, c.speaker) for c in read_utterances(lj / "metadata.csv", "lj")] == [
        (lj / "wavs/LJ1.wav", "Doctor A one", "")
    ]
    assert [c.path for c in read_utterances(lj / "train_filelist.txt", "lj")] == [lj / "wavs/LJ1.wav"] * 2

    libri = tmp_path / "libri"
    for name in ("14/208/14_208_000001", "22/100/22_100_000002"):
        clip_at(libri / f"{name}.wav")
        (libri / f"{name}.normalized.txt").write_text("Well said.\n")
    found = read_utterances(libri, "libritts")
    assert [(c.path.name, c.text, c.speaker) for c in found] == [
        ("14_208_000001.wav", "Well said.", "14"),
        ("22_100_000002.wav", "Well said.", "22"),
    ]

    vctk = tmp_path / "vctk"
    clip_at(vctk / "wav48_silence_trimmed/p225/p225_001_mic1.flac")
    for name in ("p225/p225_001", "p315/p315_001"):  # the second has no clip
        (vctk / "txt" / name).parent.mkdir(parents=True)
        (vctk / f"txt/{name}.txt").write_text("Please call.")
    assert [(c.path.name, c.speaker) for c in read_utterances(vctk, "vctk")] == [("p225_001_mic1.flac", "p225")]
    shutil.move(vctk / "wav48_silence_trimmed", tmp_path / "gone")
    clip_at(vctk / "wav48/p315/p315_001.wav")
    assert [(c.path.name, c.speaker) for c in read_utterances(vctk, "vctk")] == [("p315_001.wav", "p315")]

    (tmp_path / "list.tsv").write_text("one\ta/1.wav\ntwo\tb/2.wav\t5 6\n")
    found = read_utterances(tmp_path / "list.tsv", "tsv")
    assert [(c.path, c.text) for c in found] == [(tmp_path / "a/1.wav", "one"), (tmp_path / "b/2.wav", "two")]
    assert found[0].speaker != found[1].speaker


@pytest.mark.parametrize(
    ("layout", "content", "words"),
    [
        ("lj", "no bar", r"list:1: expected name\|text; found 'no bar'"),
        ("tsv", "a\tb\nno tab", "list:2: expected text, tab, file"),
        ("jsonl", "{", "list:1: is not JSON"),
        ("jsonl", '{"file": "a.wav"}', 'list:1: expected a line like {"file"'),
        ("tsv", "\n\n", "has no clips in the layout 'tsv'"),
        ("vctk", "", "is that of a folder"),
    ],
)
def test_lists_with_faults_are_refused_with_the_line(tmp_path, layout, content, words):
    (tmp_path / "list").write_text(content)
    with pytest.raises(DataError, match=words):
        read_utterances(tmp_path / "list", layout)


# ---------------------------------------------------------------------------------------------------- with texts


def test_clips_come_with_their_texts_and_lengths(tmp_path):
    dataset = paired(corpus(tmp_path), types=[3])
    batch = first_batch(dataset, 6)
    longest, most = int(batch["wav_lengths"].max()), int(batch["text_lengths"].max())
    assert batch["wav"].shape == (6, 1, longest) and longest == round(1.2 * RATE)
    assert batch["padded_text"].shape == (6, most)
    assert batch["padded_text"].dtype == batch["text_lengths"].dtype == batch["wav_lengths"].dtype == torch.int64
    assert batch["type"].tolist() == [3] * 6
    assert sorted(batch["real_text"]) == sorted(WORDS)
    for row in range(6):
        sound = read_sound(batch["filenames"][row], RATE)
        assert torch.equal(batch["wav"][row, 0, : len(sound)], sound) and len(sound) == batch["wav_lengths"][row]
        assert not batch["wav"][row, 0, len(sound) :].any()
        tokens = dataset.reader.tokenizer.encode(batch["real_text"][row])
        assert batch["padded_text"][row].tolist() == tokens + [0] * (most - len(tokens))
        assert batch["text_lengths"][row] == len(tokens)


def test_conditioning_is_of_the_same_speaker_and_never_the_clip_itself(tmp_path):
    dataset = paired(corpus(tmp_path), load_conditioning=True, num_conditioning_candidates=2, conditioning_length=40000)
    heard = set()
    for index in range(6):
        own = dataset.clips[index].path
        rest = [read_sound(c.path, RATE) for c in dataset.clips if c.path.parent == own.parent and c.path != own]
        for position in range(4):
            found = sample(dataset, index, position)
            assert found["conditioning"].shape == (2, 1, 40000) and found["conditioning_contains_self"] is False
            order = [next(k for k, r in enumerate(rest) if torch.equal(r, c[0, : len(r)])) for c in found["conditioning"]]
            assert sorted(order) == [0, 1]
            heard.add(tuple(order))
    assert heard == {(0, 1), (1, 0)}
    assert first_batch(dataset, 3)["conditioning"].shape == (3, 2, 1, 40000)
    alone = paired(tmp_path / "clips.jsonl", load_conditioning=True, conditioning_length=5000)
    assert first_batch(alone, 3)["conditioning"].shape == (3, 1, 5000)


def test_speakers_of_two_corpora_are_different_ones(tmp_path):
    lists = [str(corpus(tmp_path / name, speakers=1, clips=2)) for name in ("a", "b")]
    dataset = paired(lists, load_conditioning=True)
    assert [clip.voice for clip in dataset.clips] == [(0, "0")] * 2 + [(1, "0")] * 2
    assert sample(paired(lists, types=[5, 6]), index=2)["type"] == 6
    with pytest.raises(ConfigurationError, match="2 paths, 2 fetcher_mode and 1 types"):
        paired(lists, types=[1])


def test_the_only_clip_of_a_speaker(tmp_path):
    listed = corpus(tmp_path)
    with listed.open("a") as file:
        soundfile.write(tmp_path / "alone.wav", tone(0.8), RATE)
        file.write(json.dumps({"file": "alone.wav", "text": "on my own", "speaker": "z"}) + "\n")
    with pytest.raises(DataError, match=r"1 of 7 clips are the only one of their speaker: .*alone.wav.*`only_clip: skip`"):
        paired(listed, load_conditioning=True)
    assert len(paired(listed)) == 7
    assert len(paired(listed, load_conditioning=True, only_clip="skip")) == 6
    found = sample(paired(listed, load_conditioning=True, only_clip="self", conditioning_length=9000), 6)
    assert found["conditioning_contains_self"] is True
    own = read_sound(tmp_path / "alone.wav", RATE)
    start = (own.unfold(0, 100, 1) == found["conditioning"][0, :100]).all(1).nonzero()[0]
    assert torch.equal(found["conditioning"][0], own[start : start + 9000])


def test_samples_depend_on_seed_and_position_alone(tmp_path):
    dataset = paired(corpus(tmp_path, clips=4), load_conditioning=True, conditioning_length=3000)
    assert same(sample(dataset, 1, 5), sample(dataset, 1, 5))
    assert not same(sample(dataset, 1, 5), sample(dataset, 1, 6))
    assert not same(sample(dataset, 1, 5), sample(dataset, 1, 5, seed=1))
    assert same(first_batch(dataset, 4), first_batch(dataset, 4, n_workers=2))
    assert torch.equal(first_batch(dataset, 4, start=4)["wav"], first_batch(dataset, 4, n_workers=1, start=4)["wav"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_wav_length": 20000}, "has 22050 samples at 22050 Hz, and max_wav_length is 20000"),
        ({"max_text_length": 3}, "has a text of .* tokens, and max_text_length is 3"),
        ({"min_seconds": 2.0}, "has 1.00 s, and min_seconds is 2"),
    ],
)
def test_clips_that_do_not_fit_are_bad_files(tmp_path, options, words):
    with pytest.raises(BadSample, match=words):
        sample(paired(corpus(tmp_path), **options))


def test_texts_without_letters_are_bad_files(tmp_path):
    clip_at(tmp_path / "a.wav")
    (tmp_path / "list.tsv").write_text("\u2603\ta.wav\n")
    with pytest.raises(BadSample, match="has no text: nothing is left"):
        sample(paired(tmp_path / "list.tsv", fetcher_mode="tsv", use_bpe_tokenizer=False, tokenizer_vocab=None))


def test_letters_have_the_numbers_of_tacotrons_table():
    assert LetterTokenizer().encode("Ab, $5_!") == [38, 39, 6, 11, *(38 + ord(each) - ord("a") for each in "five"), 11, *(
        38 + ord(each) - ord("a") for each in "dollars"
    ), 2]  # fmt: skip


def test_tokenizers_are_chosen(tmp_path):
    listed = corpus(tmp_path)
    letters = sample(paired(listed, use_bpe_tokenizer=False, tokenizer_vocab=None))
    assert letters["text_lengths"] == len(WORDS[0])
    with pytest.raises(ConfigurationError, match="use_bpe_tokenizer needs tokenizer_vocab"):
        paired(listed, tokenizer_vocab=None)
    with pytest.raises(ConfigurationError, match="tokenizer_vocab has no effect"):
        paired(listed, use_bpe_tokenizer=False)


def test_a_run_can_be_checked_without_its_data(tmp_path):
    text = """
name: r
datasets:
  train: {mode: paired_voice_audio, batch_size: 3, path: nowhere, tokenizer_vocab: none, max_wav_length: 4096,
          max_text_length: 7, load_conditioning: true, num_conditioning_candidates: 2, conditioning_length: 2048}
networks:
  gpt: {which_model: unified_voice2, layers: 1, model_dim: 8, heads: 2}
  dvae: {which_model: dvae, positional_dims: 1, channels: 80, num_layers: 2}
steps:
  gpt:
    training: gpt
    optimizer: adamw
    optimizer_params: {lr: 1e-3}
    injectors:
      mel: {type: torch_mel_spectrogram, in: wav, out: mel, mel_norm_file: NORMS}
      codes: {type: discrete_token, in: mel, out: all_codes}
      cut: {type: slice, in: all_codes, out: codes, dim: 1, end: -1}
      clips: {type: for_each, subtype: torch_mel_spectrogram, in: conditioning, out: clips}
      gpt:
        type: generator
        generator: gpt
        in: [clips, padded_text, text_lengths, codes, wav_lengths]
        args: {clip_inputs: false}
        out: [text_loss, mel_loss, logits]
    losses:
      text: {type: direct, key: text_loss, weight: 0.01}
      mel: {type: direct, key: mel_loss, weight: 1}
train: {niter: 2}
"""
    (tmp_path / "o.yml").write_text(text.replace("NORMS", str(MEL_NORMS)))
    found = dry_run(load(tmp_path / "o.yml"))
    assert found.problems == []
    shapes = {entry.key: entry.value for entry in found.iterations[0].state}
    assert "(3, 4)" in shapes["codes"]
    assert "(3, 2, 80, 9)" in shapes["clips"]


# ---------------------------------------------------------------------------------------------------- lists of any size


def test_lines_of_a_list_are_read_as_they_are_needed(tmp_path):
    corpus(tmp_path)
    lines = [f"{word}\ts{n // 3}/{n % 3}.wav\t{n} {n + 1}" for n, word in enumerate(WORDS)]
    (tmp_path / "a.tsv").write_text("\n".join(lines[:4]) + "\n\n")
    (tmp_path / "b.tsv").write_bytes("\r\n".join(lines[4:]).encode())
    options = {"path": [str(tmp_path / "a.tsv"), str(tmp_path / "b.tsv")], "load_conditioning": True}
    dataset = data("fast_paired_voice_audio", **options, load_aligned_codes=True, conditioning_length=30000)
    assert len(dataset) == 6
    for index, word in enumerate(WORDS):
        found = sample(dataset, index)
        own = tmp_path / f"s{index // 3}/{index % 3}.wav"
        assert (found["real_text"], found["filenames"], dataset.source(index)) == (word, str(own), str(own))
        assert found["aligned_codes"].tolist() == [index, index + 1] and found["aligned_codes_lengths"] == 2
        rest = [read_sound(each, RATE) for each in own.parent.iterdir() if each != own]
        assert any(torch.equal(r, found["conditioning"][0, : len(r)]) for r in rest)
    assert first_batch(dataset, 4)["aligned_codes"].shape == (4, 2)


def test_faults_of_lists_of_any_size(tmp_path):
    corpus(tmp_path)
    (tmp_path / "a.tsv").write_text("no tab\nwords\ts0/0.wav\n")
    dataset = data("fast_paired_voice_audio", path=str(tmp_path / "a.tsv"), load_aligned_codes=True)
    with pytest.raises(DataError, match=r"a\.tsv, line of byte 0: expected text, tab, file"):
        sample(dataset, 0)
    with pytest.raises(BadSample, match="no third column of whole numbers"):
        sample(dataset, 1)
    (tmp_path / "b.tsv").write_text("\n")
    with pytest.raises(DataError, match="has no lines"):
        data("fast_paired_voice_audio", path=str(tmp_path / "b.tsv"))


def test_tacotron_gets_spectrograms_gates_and_lengths(tmp_path):
    dataset = data("nv_tacotron", path=str(corpus(tmp_path)), fetcher_mode="jsonl")
    batch = first_batch(dataset, 3)
    frames = 1 + batch["wav_lengths"] // 256
    assert torch.equal(batch["output_lengths"], frames)
    assert torch.equal(batch["input_lengths"], batch["text_lengths"])
    assert batch["padded_mel"].shape == (3, 80, int(frames.max()))
    for row in range(3):
        last = int(frames[row])
        expected = MelSpectrogram()(batch["wav"][row, :, : batch["wav_lengths"][row]])[0]
        assert torch.equal(batch["padded_mel"][row, :, :last], expected)
        assert batch["padded_gate"][row].tolist() == [0.0] * (last - 1) + [1.0] * (int(frames.max()) - last + 1)


# ---------------------------------------------------------------------------------------------------- without texts


def sounds(tmp_path, **options):
    return data("unsupervised_audio", options.pop("phase", "train"), path=str(tmp_path), sampling_rate=RATE, **options)


def test_parts_of_files(tmp_path):
    corpus(tmp_path)
    dataset = sounds(tmp_path, pad_to_samples=5000)
    whole = read_sound(dataset.files[2], RATE)
    starts = set()
    for position in range(5):
        found = sample(dataset, 2, position)
        assert found["clip"].shape == (1, 5000) and found["clip_lengths"] == found["prepad_length"] == 5000
        start = int((whole.unfold(0, 200, 1) == found["clip"][0, :200]).all(1).nonzero()[0])
        assert torch.equal(found["clip"][0], whole[start : start + 5000])
        starts.add(start)
    assert len(starts) == 5
    assert same(sample(dataset, 2, 1), sample(dataset, 2, 1))
    first = sample(sounds(tmp_path, pad_to_seconds=0.1, phase="val"), 2, 9)
    assert torch.equal(first["clip"][0], whole[:2205])


def test_short_files_are_filled_up_and_whole_ones_padded_to_the_longest(tmp_path):
    corpus(tmp_path)
    found = sample(sounds(tmp_path, pad_to_seconds=3))
    assert found["clip"].shape == (1, 3 * RATE) and found["prepad_length"] == RATE and not found["clip"][0, RATE:].any()
    batch = first_batch(sounds(tmp_path), 6)
    assert batch["clip"].shape == (6, 1, int(batch["prepad_length"].max()))


def test_files_are_chosen_and_refused(tmp_path):
    corpus(tmp_path)
    (tmp_path / "without.txt").write_text("0.wav\n")
    assert len(sounds(tmp_path, exclusions=[str(tmp_path / "without.txt")])) == 4
    assert len(sounds(tmp_path, endswith=["1.wav", "2.wav"], not_endswith=["s0/1.wav"])) == 3
    with pytest.raises(DataError, match="leave none of 6 files"):
        sounds(tmp_path, endswith=[".flac"])
    with pytest.raises(BadSample, match="and min_length is 90000"):
        sample(sounds(tmp_path, min_length=90000))
    with pytest.raises(BadSample, match="more than 5000; split it"):
        sample(sounds(tmp_path, pad_to_samples=5000, dont_clip=True))
    with pytest.raises(ConfigurationError, match="say the same"):
        sounds(tmp_path, pad_to_samples=5, pad_to_seconds=5)


def test_other_clips_of_the_folder(tmp_path):
    corpus(tmp_path)
    dataset = sounds(tmp_path, pad_to_samples=5000, extra_samples=2, extra_sample_length=40000)
    found = sample(dataset)
    rest = [read_sound(file, RATE) for file in dataset.files[1:3]]
    assert {next(k for k, r in enumerate(rest) if torch.equal(r, c[0, : len(r)])) for c in found["alt_clips"]} == {0, 1}
    assert found["alt_contains_self"] is False
    (tmp_path / "t").mkdir()
    shutil.copy(dataset.files[0], tmp_path / "t/0.wav")
    with pytest.raises(BadSample, match="only clip of its speaker"):
        sample(sounds(tmp_path / "t", extra_samples=1))
    assert sample(sounds(tmp_path / "t", extra_samples=1, only_clip="self"))["alt_contains_self"] is True


def test_loudness_and_silence(tmp_path):
    quiet = np.zeros(RATE, np.float32)
    soundfile.write(tmp_path / "a.wav", np.concatenate([quiet, 0.2 * np.ones(RATE, np.float32), quiet]), RATE)
    found = sample(sounds(tmp_path, trim_below=-50.0, loudness=-20.0))["clip"]
    assert found.shape[1] == pytest.approx(1.2 * RATE, abs=900)
    assert 10 * found.square().mean().log10() == pytest.approx(-20, abs=0.01)
    assert sample(sounds(tmp_path, trim_below=-50.0, pad_to_samples=4000))["clip"].shape == (1, 4000)


# ---------------------------------------------------------------------------------------------------- batches


def test_every_dimension_is_filled_up_to_the_longest():
    samples = [{"x": torch.ones(2, 3), "n": 1}, {"x": torch.ones(1, 5), "n": 2}]
    batch = pad_to_longest(samples, ["a", "b"])
    assert batch["x"].shape == (2, 2, 5) and batch["n"].tolist() == [1, 2]
    assert batch["x"].sum() == 11
    with pytest.raises(DataError, match="cannot be stacked"):
        pad_to_longest([{"x": torch.ones(2)}, {"x": torch.ones(2, 2)}], ["a", "b"])


@pytest.mark.parametrize(("length", "batch_size"), [(103, 4), (64, 8), (5, 8), (50, 7)])
def test_batches_of_one_length_take_each_sample_once_an_epoch(length, batch_size):
    lengths = np.random.default_rng(0).integers(1, 1000, length)
    order = SampleOrder(length, 3, buckets=Buckets(lengths.tolist(), 4), batch_size=batch_size)
    taken = [order.index(position) for position in range(3 * length)]
    for epoch in range(3):
        assert sorted(taken[epoch * length : (epoch + 1) * length]) == list(range(length))
    assert taken[:length] != taken[length : 2 * length] or length < 6
    again = SampleOrder(length, 3, buckets=Buckets(lengths.tolist(), 4), batch_size=batch_size)
    assert [again.index(position) for position in range(length, 2 * length)] == taken[length : 2 * length]


def test_batches_of_one_length_waste_little():
    lengths = np.random.default_rng(0).integers(100, 1000, 1003)

    def filled(order):
        batches = [[lengths[order.index(16 * b + k)] for k in range(16)] for b in range(3 * 1003 // 16)]
        return sum(map(sum, batches)) / sum(16 * max(batch) for batch in batches)

    assert filled(SampleOrder(1003, 0)) < 0.65
    assert filled(SampleOrder(1003, 0, buckets=Buckets(lengths.tolist(), 20), batch_size=16)) > 0.93


def test_clips_are_put_together_by_the_sizes_of_their_files(tmp_path):
    dataset = paired(corpus(tmp_path), bucket_batches=3)
    found = dataset.buckets()
    assert found.batches == 3 and list(found.lengths[:3]) == sorted(found.lengths[:3]) and len(found.lengths) == 6
    assert paired(tmp_path / "clips.jsonl").buckets() is None
