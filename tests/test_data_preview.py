"""`dlas data preview`: the sheet shows what training will take."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from dlas.cli.main import main
from dlas.config import load
from dlas.engine.preview import draw_samples, render
from dlas.engine.trainer import Trainer
from runs import batches
from test_data_images import noise, save

TEXT = """
name: look
scale: 4
seed: 5
device: cpu
datasets:
  train: {{mode: {mode}, dataroot_gt: {root}, target_size: 32, batch_size: 2, n_workers: 0{more}}}
networks:
  generator: {{which_model: SRVGGNetCompact, num_feat: 4, num_conv: 1}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1.0e-4}}
    injectors:
{injectors}
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, weight: 1, criterion: l1, real: hq, fake: gen}}
train: {{niter: 2}}
"""
DEGRADED = {"mode": "degraded_images", "more": ", degradation_size: 48, degradation: {type: bsrgan}"}


@pytest.fixture
def write(tmp_path):
    for index in range(3):
        save(tmp_path / "gt" / f"{index}.png", noise(64, 72, seed=index))

    def make(mode="paired_images", more="", injectors=""):
        path = tmp_path / "look.yml"
        path.write_text(TEXT.format(mode=mode, root=tmp_path / "gt", more=more, injectors=injectors))
        return path

    return make


@pytest.mark.parametrize("options", [{}, DEGRADED])
def test_the_samples_are_those_of_training(write, tmp_path, options):
    path = write(**options)
    drawn = draw_samples(load(path), 4)
    trained = batches(Trainer(load(path, [f"path.experiments={tmp_path}"])), 2)
    for key in ("lq", "hq"):
        assert torch.equal(getattr(drawn, key), torch.cat([batch[key] for batch in trained]))
    for number, caption in enumerate(drawn.captions):
        batch = trained[number // 2]
        assert caption.startswith(f"{number}: {batch['path'][number % 2].rpartition('/')[2]}")
        assert caption.endswith(batch["recipe"][number % 2] if options else ".png")


def test_degradations_on_the_device_are_carried_out(write):
    injector = (
        "      low: {type: degrade, in: hq, out: low, scale: 4, degradation: {type: bsrgan}, target_size: 16, out_hq: cut}"
    )
    drawn = draw_samples(load(write(injectors=injector)), 3)
    assert drawn.lq.shape == (3, 3, 4, 4)
    assert drawn.hq.shape == (3, 3, 16, 16)
    assert all("|" in caption for caption in drawn.captions)
    again = draw_samples(load(write(injectors=injector)), 1)
    assert torch.equal(again.lq, drawn.lq[:1])


def test_the_sheet_shows_each_pair(write):
    drawn = draw_samples(load(write()), 3)
    pixels = np.asarray(render(drawn), np.float32)
    for lq, hq in zip(drawn.lq, drawn.hq, strict=True):
        enlarged = lq.repeat_interleave(4, 1).repeat_interleave(4, 2)
        wanted = (torch.cat([enlarged, torch.ones(3, 32, 6), hq], 2).permute(1, 2, 0) * 255).round().numpy()
        places = np.argwhere((pixels == wanted[0, 0]).all(2))
        assert any(
            pixels[y : y + 32, x : x + 70].shape == wanted.shape and (pixels[y : y + 32, x : x + 70] == wanted).all()
            for y, x in places
        )


def test_the_command_writes_a_file_and_overwrites_none(write, tmp_path, capsys):
    path, sheet = write(**DEGRADED), tmp_path / "sheet.png"
    assert main(["data", "preview", "-opt", str(path), "-o", str(sheet), "--count", "5"]) == 0
    assert "5 samples" in capsys.readouterr().out
    with Image.open(sheet) as image:
        assert image.width > 5 * 64
    content = sheet.read_bytes()
    assert main(["data", "preview", "-opt", str(path), "-o", str(sheet)]) == 2
    assert sheet.read_bytes() == content
    assert main(["data", "preview", "-opt", str(path), "-o", str(tmp_path / "sheet.jpg")]) == 2
    assert not (tmp_path / "sheet.jpg").exists()
