"""Several processes that encode a data set together, and codes in the fewest bits."""

from __future__ import annotations

import argparse

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dlas.cli.data.encode import _share
from dlas.cli.main import main
from dlas.data.base import Request, create_dataset
from dlas.data.latents.store import Share, Writer
from dlas.engine.encoding import encode_data_sets
from dlas.errors import ConfigurationError, DataError
from runs import configure
from test_latents import ToyAutoencoder, ahead


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(3)
    path = tmp_path / "autoencoder.safetensors"
    save_file(ToyAutoencoder().state_dict(), path)
    return f"path.pretrain.autoencoder={path}"


def encode(tmp_path, weights, share=(0, 1), folder="encoded", **options):
    config = configure(tmp_path, ahead(tmp_path), weights, f"datasets.train.folder={tmp_path / folder}", "encode.part_size=300")
    return encode_data_sets(config, share=Share(*share), **options)[0]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("lock")}


def test_shares_make_the_files_that_one_process_makes(tmp_path, weights):
    whole = encode(tmp_path, weights, folder="whole")
    made = []
    for number in (2, 0, 1):
        with pytest.raises(DataError, match=r"no encoded samples|not complete"):
            create_dataset({"mode": "latents", "folder": str(tmp_path / "encoded"), "keep": ["latent"]}, phase="val", name="x")
        result = encode(tmp_path, weights, share=(number, 3))
        made.append(result.made)
        assert result.complete == (number == 1)
    assert sum(made) == whole.made
    assert min(made) >= 300
    assert files(tmp_path / "encoded") == files(tmp_path / "whole")
    assert encode(tmp_path, weights, share=(0, 3)).made == 0


def test_a_share_that_was_killed_goes_on_and_leaves_what_others_write(tmp_path, weights, monkeypatch):
    encode(tmp_path, weights, share=(1, 2))
    folder = tmp_path / "encoded"
    (folder / ".00000.safetensors.7.tmp").write_bytes(b"left by the killed one")
    (folder / ".00001.safetensors.8.tmp").write_bytes(b"being written by another")
    put, parts = Writer.put, []
    monkeypatch.setattr(Writer, "put", lambda self, part, *rest: (parts.append(part), put(self, part, *rest)))
    assert encode(tmp_path, weights, share=(0, 2)).complete
    assert parts == [0, 2, 4]
    assert [path.name for path in folder.glob(".*.tmp")] == [".00001.safetensors.8.tmp"]


def test_together_nothing_is_overwritten_and_other_plans_are_refused(tmp_path, weights):
    with pytest.raises(ConfigurationError, match="several processes encode together, and none may remove"):
        encode(tmp_path, weights, share=(0, 2), overwrite=True)
    encode(tmp_path, weights, share=(0, 2))
    with pytest.raises(ConfigurationError, match=r"networks\.autoencoder\.weights was"):
        encode(tmp_path, "path.pretrain={}", share=(1, 2))


def test_the_launcher_or_an_argument_tells_the_share(tmp_path, weights, monkeypatch, capsys):
    path = tmp_path / "options.yml"
    path.write_text(ahead(tmp_path))
    command = ["data", "encode", "-opt", str(path), "--set", weights, "--set", "device=cpu"]
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert main(command) == 0
    assert "other shares are not there yet" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "encoded").glob("*.safetensors")) == ["00001.safetensors"]
    assert main([*command, "--share", "0/2"]) == 0
    assert "not there yet" not in capsys.readouterr().out
    assert (tmp_path / "encoded" / "store.json").is_file()
    for wrong in ("2/2", "1", "a/b", "0/0"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected K/N"):
            _share(wrong)


def test_codes_take_as_many_bits_as_they_need(tmp_path):
    codes = torch.randint(0, 8192, (5, 1, 12), generator=torch.Generator().manual_seed(0))
    long = codes + 70_000
    writer = Writer(tmp_path / "codes", {"networks": {}})
    for part in range(2):
        writer.put(part, {"codes": codes, "long": long if part else codes, "mask": codes > 9}, {})
    writer.finish(2)
    with safe_open(tmp_path / "codes" / "00001.safetensors", "pt") as file:
        kinds = {key: file.get_slice(key).get_dtype() for key in ("codes", "long", "mask")}
    assert kinds == {"codes": "I16", "long": "I32", "mask": "BOOL"}
    options = {"mode": "latents", "folder": str(tmp_path / "codes"), "keep": ["codes", "long", "mask"]}
    data = create_dataset(options, phase="val", name="x")
    for index in range(10):
        sample = data[Request(index, index, 0)]
        assert sample["codes"].dtype == sample["long"].dtype == torch.int64
        assert torch.equal(sample["codes"], codes[index % 5, 0])
        assert torch.equal(sample["long"], (long if index >= 5 else codes)[index % 5, 0])
        assert torch.equal(sample["mask"], codes[index % 5, 0] > 9)
    assert data.sample_spec("val", options | {"source": None})["codes"].dtype == torch.int64
