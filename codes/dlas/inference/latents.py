"""The latent space of a flow at work on picture files: what a picture is in it, and what may be done there.

Lugmayr et al., "SRFlow", ECCV 2020 (arXiv:2006.14200), section 4.4: restoring, and transferring content between pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from dlas.archs.srflow import Latents, SRFlow
from dlas.errors import CheckpointError, DataError
from dlas.inference.model import Found, find
from dlas.inference.pictures import read_picture
from dlas.interop.mismatch import numbered
from dlas.interop.state_dicts import read_state_dict
from dlas.layers.resize import imresize

GAP = 4
"""Pixels between the pictures of a sheet."""

_LAYERS_OF_SCALE = {58: 4, 78: 8}
_BLOCKS = {(23, 4): [1, 8, 15, 22], (23, 8): [1, 3, 5, 7], (8, 8): [1, 3, 5, 7]}
"""Of the published networks, by encoder blocks and scale."""


def load_flow(path: str | Path, network: str | None = None) -> SRFlow:
    """A flow of a run, of a released file or of a published checkpoint.

    Args:
        path: as for `find`.
        network: which of a run's networks.

    Raises:
        CheckpointError: there is none, or it is another network.
    """
    published = Path(path).expanduser()
    found = _published(published) if published.is_file() else None
    found = found or find(path, network)
    flow = found.build()
    if not isinstance(flow, SRFlow):
        name = found.options.get("which_model", type(flow).__name__)
        raise CheckpointError(f"{found.source}: a network with latents is needed (srflow), and this is {name}")
    return flow


def _published(path: Path) -> Found | None:
    if path.suffix.lower() not in (".pth", ".pt"):
        return None
    weights = read_state_dict(path)
    if "flowUpsamplerNet.f.0.weight" not in weights:
        return None
    groups = numbered(SRFlow.rename_state_dict(dict(weights)))
    layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("flowUpsamplerNet.layers."))
    blocks, scale = groups.get("RRDB.body", 0), _LAYERS_OF_SCALE.get(layers)
    if scale is None or (blocks, scale) not in _BLOCKS:
        raise CheckpointError(
            f"{path}: a flow of {layers} layers over an encoder of {blocks} blocks is none of the published ones; "
            "give the folder of its run, or a file of `dlas release`"
        )
    options = {"which_model": "srflow", "scale": scale, "nb": blocks, "flow": {"stackRRDB": {"blocks": _BLOCKS[blocks, scale]}}}
    return Found(options, weights, str(path))


def read_pair(flow: SRFlow, path: Path, low_path: Path | None = None) -> tuple[Tensor, Tensor]:
    """A picture and its low-resolution one: (1, 3, H, W) and (1, 3, H / scale, W / scale).

    Args:
        flow: which it is for. The picture is cropped at its right and bottom to a size that fits.
        path: of the picture.
        low_path: of its low-resolution one; by default the picture is shrunk (bicubic, antialiased, as `imresize` does).

    Raises:
        DataError: they cannot be read, or do not fit.
    """
    picture = _read(path)
    step = flow.scale * flow.multiple
    height, width = (side // step * step for side in picture.shape[-2:])
    if not height or not width:
        raise DataError(
            f"{path}: {picture.shape[-1]}x{picture.shape[-2]} pixels are too few; it must have {step}x{step} or more"
        )
    picture = picture[..., :height, :width]
    if low_path is None:
        return picture, imresize(picture, 1 / flow.scale).clamp(0, 1)
    low = _read(low_path)
    expected = height // flow.scale, width // flow.scale
    if any(side < least for side, least in zip(low.shape[-2:], expected, strict=True)):
        raise DataError(
            f"{low_path}: {low.shape[-1]}x{low.shape[-2]} pixels do not go with {width}x{height} of {path}: at scale "
            f"{flow.scale} it must have {expected[1]}x{expected[0]}"
        )
    return picture, low[..., : expected[0], : expected[1]]


def read_low(flow: SRFlow, path: Path) -> Tensor:
    """A low-resolution picture, (1, 3, h, w), cropped at its right and bottom to a size that fits."""
    picture = _read(path)
    height, width = (side // flow.multiple * flow.multiple for side in picture.shape[-2:])
    if not height or not width:
        raise DataError(f"{path}: it must have {flow.multiple}x{flow.multiple} pixels or more")
    return picture[..., :height, :width]


def _read(path: Path) -> Tensor:
    color = read_picture(path).color
    return color.expand(3, -1, -1)[None].float()


def save_latents(path: Path, latents: Latents, low_res: Tensor) -> None:
    """Writes a safetensors file: `latents.<i>`, finest level first, and `low_res`."""
    tensors = {f"latents.{place}": each.contiguous() for place, each in enumerate(latents)}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors | {"low_res": low_res.contiguous()}, path)


def read_latents(flow: SRFlow, path: Path) -> tuple[Latents, Tensor]:
    """What `save_latents` wrote.

    Raises:
        DataError: it cannot be read, or is of a flow of another shape.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read as a file of `dlas latent encode`: {error}") from error
    low_res = tensors.pop("low_res", None)
    if low_res is None or low_res.ndim != 4:
        raise DataError(f"{path}: holds no latents; `dlas latent encode` writes such files")
    sides = [side * flow.scale for side in low_res.shape[-2:]]
    expected = flow.flowUpsamplerNet.latent_sizes(flow.out_nc, *sides)
    latents = tuple(tensors[f"latents.{place}"] for place in range(len(tensors)) if f"latents.{place}" in tensors)
    if [tuple(each.shape[1:]) for each in latents] != expected:
        sizes = [tuple(each.shape[1:]) for each in latents]
        raise DataError(f"{path}: its latents are {sizes}, and this flow's are {expected}; decode with the flow that encoded")
    return latents, low_res


@torch.no_grad()
def restored(flow: SRFlow, picture: Tensor, low_res: Tensor, share: float) -> Tensor:
    """A damaged picture with its latents shrunk: at 1 as it is, at 0 what the flow holds most likely for `low_res`.

    Damage makes a picture unlikely, so its latents are longer than those of good pictures.
    """
    latents, *_ = flow.encode(picture, low_res)
    return flow.decode([share * each for each in latents], low_res)


@torch.no_grad()
def transferred(flow: SRFlow, style: tuple[Tensor, Tensor], content: Tensor) -> Tensor:
    """A picture with the detail (latents) of `style`, a pair, on the low-resolution picture `content` of the same size."""
    if style[1].shape != content.shape:
        raise DataError(
            f"style and content must have the same size: {style[1].shape[-1]}x{style[1].shape[-2]} and "
            f"{content.shape[-1]}x{content.shape[-2]} pixels in low resolution"
        )
    latents, *_ = flow.encode(*style)
    return flow.decode(latents, content)


@torch.no_grad()
def interpolated(flow: SRFlow, first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor], shares: Sequence[float]) -> Tensor:
    """Pictures between two pairs of one size, one for each share of the second: (len(shares), 3, H, W).

    Latents are interpolated along the great circle and in length, low-resolution pictures along the line.
    """
    if first[1].shape != second[1].shape:
        raise DataError(
            f"both pictures must have the same size: {first[0].shape[-1]}x{first[0].shape[-2]} and "
            f"{second[0].shape[-1]}x{second[0].shape[-2]}"
        )
    ends = [flow.encode(*pair)[0] for pair in (first, second)]
    made = []
    for share in shares:
        latents = [_between(one, other, share) for one, other in zip(*ends, strict=True)]
        made.append(flow.decode(latents, torch.lerp(first[1], second[1], share)))
    return torch.cat(made)


def _between(one: Tensor, other: Tensor, share: float) -> Tensor:
    cosine = torch.cosine_similarity(one.flatten(), other.flatten(), dim=0).clamp(-1, 1)
    angle = cosine.acos()
    if angle.sin() < 1e-4:  # along the line: there is no one great circle, or it is as straight
        return torch.lerp(one, other, share)
    length = torch.lerp(one.norm(), other.norm(), share)
    direction = ((1 - share) * angle).sin() * one / one.norm() + (share * angle).sin() * other / other.norm()
    return length * direction / angle.sin()


@torch.no_grad()
def swept(flow: SRFlow, low_res: Tensor, heats: Sequence[float], samples: int) -> Tensor:
    """Pictures of one low-resolution picture, (samples len(heats), 3, H, W): of each sample in turn all heats.

    A sample has the same latents at every heat but for their length.
    """
    drawn = flow.draw(low_res.expand(samples, -1, -1, -1), 1.0)
    factors = torch.tensor(heats, dtype=low_res.dtype)
    latents = [(each[:, None] * factors[:, None, None, None]).flatten(0, 1) for each in drawn]
    return flow.decode(latents, low_res)


def sheet(pictures: Tensor, columns: int) -> Tensor:
    """Pictures (N, 3, H, W) in rows on white: (3, height, width)."""
    count, _, height, width = pictures.shape
    rows = -(-count // columns)
    canvas = pictures.new_ones(3, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    for place, picture in enumerate(pictures):
        top, left = place // columns * (height + GAP), place % columns * (width + GAP)
        canvas[:, top : top + height, left : left + width] = picture
    return canvas
