"""A data set from the built-in photographs with one fault of each kind in it."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageCms

from dlas.data.images.files import read_image
from dlas.data.images.pairs import shrink
from dlas.data.images.photographs import split

SCALE = 4
SIDE = 160


def part(index: int, top: int = 60, left: int = 60, side: int = SIDE, training: bool = True) -> np.ndarray:
    """A square of one of the built-in photographs."""
    return read_image(split(training)[index].hq)[top : top + side, left : left + side]


def save(path: Path, array: np.ndarray, **options) -> Path:
    """Writes an image file, folders included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


def encoded(array: np.ndarray, kind: str, **options) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def shifted(array: np.ndarray, pixels: int) -> np.ndarray:
    """The low-quality image of a picture that lies `pixels` high-quality pixels further to the right."""
    return shrink(np.roll(array, pixels, axis=1), SCALE)


def plant(root: Path) -> str:
    """Writes the folders `train` and `val` below `root`, and gives the YAML file that reads them."""
    train, val = root / "train", root / "val"
    for index in range(4):  # sound pairs
        hq = part(index)
        save(train / f"hq/good{index}.png", hq)
        save(train / f"lq/good{index}.png", shrink(hq, SCALE))
    pairs = {
        "alone": (part(4), None),
        "blank": (np.full((SIDE, SIDE, 3), 90, np.uint8), np.full((SIDE // SCALE, SIDE // SCALE, 3), 90, np.uint8)),
        "copy": (part(0), shrink(part(0), SCALE)),
        "other": (part(5), shrink(part(2), SCALE)),
        "scale2": (part(7, 0, 0), shrink(part(7, 0, 0), 2)),
        "shift_half": (part(8), shifted(part(8), 2)),
        "shift_one": (part(9), shifted(part(9), 4)),
        "shift_quarter": (part(6), shifted(part(6), 1)),
        "small": (part(1, side=100), shrink(part(1, side=100), SCALE)),
        "truncated": (part(3, 0, 100), shrink(part(3, 0, 100), SCALE)),
    }
    for name, (hq, lq) in pairs.items():
        save(train / f"hq/{name}.png", hq)
        if lq is not None:
            save(train / f"lq/{name}.png", lq)
    cut = train / "hq/truncated.png"
    cut.write_bytes(cut.read_bytes()[:5000])
    save(train / "lq/widow.png", part(0, side=40))

    save(val / "a_sound.png", part(0, training=False))
    save(val / "b_leak.png", part(2))
    (val / "c_near_leak.jpg").write_bytes(encoded(part(1), "JPEG", quality=60))
    save(val / "d_deep.png", part(1, training=False))
    cv2.imwrite(str(val / "d_deep.png"), part(1, training=False).astype(np.uint16)[:, :, ::-1] * 257)
    alpha = np.concatenate([part(2, training=False), np.full((SIDE, SIDE, 1), 200, np.uint8)], axis=2)
    save(val / "e_alpha.png", alpha)
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    save(val / "f_profile.png", part(3, training=False), icc_profile=lab.tobytes())
    frames = [Image.fromarray(part(index, 0, 0, training=False)) for index in (0, 3)]
    frames[0].save(val / "g_animation.gif", save_all=True, append_images=frames[1:])
    save(val / "h_grey.png", part(1, 100, 200, 200, training=False)[:, :, 0])
    Image.fromarray(part(2, 200, 300, training=False)).convert("CMYK").save(val / "i_cmyk.jpg")
    exif = Image.Exif()
    exif[0x0112] = 6
    save(val / "j_turned.png", part(3, 200, 300, training=False), exif=exif)
    (val / "k_named.png").write_bytes(encoded(part(2, 0, 0, training=False), "JPEG"))
    (val / "l_web.png").write_bytes(b"<!DOCTYPE html><title>Not found</title>")
    (val / "m_empty.png").write_bytes(b"")
    return f"""\
name: planted
scale: {SCALE}
datasets:
  train:
    mode: paired_images
    dataroot_gt: {train}/hq
    dataroot_lq: {train}/lq
    target_size: 128
    batch_size: 4
  val: {{mode: paired_images, dataroot_gt: {val}}}
  gone: {{mode: paired_images, dataroot_gt: {root}/nowhere}}
networks:
  generator: {{which_model_G: RRDBNet, nf: 8, nb: 1, gc: 4}}
steps:
  generator:
    training: generator
    optimizer: adam
    optimizer_params: {{lr: 1e-4}}
    injectors:
      gen: {{type: generator, generator: generator, in: lq, out: gen}}
    losses:
      pix: {{type: pix, criterion: l1, weight: 1, real: hq, fake: gen}}
train: {{niter: 2}}
"""
