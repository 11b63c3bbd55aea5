"""RRDBNet, the residual-in-residual dense network of ESRGAN.

Wang et al., "ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks", ECCV workshops 2018 (arXiv:1809.00219),
section 3.1 and figure 4. The small-scale form that folds the input into channels is that of Wang et al., "Real-ESRGAN:
Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCV workshops 2021 (arXiv:2107.10833), section 3.4.

The layers carry the names that published checkpoints carry: ``conv_first``, ``body.<i>.rdb<j>.conv<k>``, ``conv_body``,
``conv_up<k>``, ``conv_hr``, ``conv_last``. Two families of checkpoint share these names but not the function: see `long_skip`.
"""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlas.layers.dense_block import training_plainly
from dlas.layers.doubled_conv import convolve_doubled
from dlas.layers.doubled_conv import pays as convolve_doubled_pays
from dlas.layers.rrdb import RESIDUAL_SCALE, RRDB, activate, present_name
from dlas.registry import ARCHS
from dlas.types import PositiveInt


class GatedRRDB(RRDB):
    """An RRDB whose residual branch is weighted per pixel by a learned map in (0, 1), made from the branch's input and result.

    Source: DL-Art-School.
    """

    def __init__(self, nf: int, gc: int, lean: bool = False) -> None:
        super().__init__(nf, gc, lean)
        self.bypass = nn.Sequential(
            _GateLayer(2 * nf, nf, norm=True, bias=True, activation=True),
            _GateLayer(nf, nf // 2, norm=False, bias=False, activation=True),
            _GateLayer(nf // 2, 1, norm=False, bias=False, activation=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, nf, height, width) -> the same shape."""
        branch = self.rdb3(self.rdb2(self.rdb1(x)))
        gate = self.bypass(torch.cat((x, branch), dim=1))
        return torch.addcmul(x, branch, gate, value=RESIDUAL_SCALE)


class _GateLayer(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, *, norm: bool, bias: bool, activation: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias)
        self.gn = nn.GroupNorm(8, out_channels) if norm else nn.Identity()
        self.activation = nn.SiLU() if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.gn(self.conv(x)))


class _ResidualInResidualNet(nn.Module):
    """What both registered networks are, given the kind of block. Options: see `RRDBNet`."""

    def __init__(
        self,
        block: type[RRDB],
        /,
        *,
        in_nc: int,
        out_nc: int,
        nf: int,
        nb: int,
        gc: int,
        scale: int,
        initial_stride: int,
        additive_mode: str,
        output_mode: str,
        long_skip: str,
        pixel_unshuffle: bool,
        blocks_per_checkpoint: int,
        zero_init_last: bool,
        lean: bool,
    ) -> None:
        super().__init__()
        _check_choice("scale", scale, (1, 2, 4, 8))
        _check_choice("additive_mode", additive_mode, ("not", "additive", "additive_enforced", "bicubic"))
        _check_choice("output_mode", output_mode, ("hq_only", "hq+features", "features_only"))
        _check_choice("long_skip", long_skip, ("first", "trunk"))
        if additive_mode != "not" and in_nc != out_nc:
            raise ValueError(
                f"additive_mode '{additive_mode}' adds the input to the output, so in_nc ({in_nc}) and out_nc ({out_nc}) "
                "must be equal"
            )
        if additive_mode == "additive_enforced" and scale % initial_stride:
            raise ValueError(
                f"additive_mode 'additive_enforced' needs a whole number of output pixels per input pixel, but scale {scale} "
                f"with initial_stride {initial_stride} gives {scale / initial_stride:.3g}; initial_stride must divide scale"
            )
        self.additive_mode = additive_mode
        self.output_mode = output_mode
        self.long_skip = long_skip
        self.initial_stride = initial_stride
        self.blocks_per_checkpoint = blocks_per_checkpoint
        self.checkpointing = False
        # A scale of 2 or 1 keeps the two enlargements of the x4 network and starts from a smaller, deeper picture.
        self.unshuffle = 4 // scale if pixel_unshuffle and scale < 4 else 1
        self.enlargements = (scale * self.unshuffle).bit_length() - 1

        channels = in_nc * self.unshuffle**2
        if initial_stride > 1:
            self.conv_first = nn.Conv2d(channels, nf, 7, stride=initial_stride, padding=3)
        else:
            self.conv_first = nn.Conv2d(channels, nf, 3, padding=1)
        self.body = nn.Sequential(*(block(nf, gc, lean) for _ in range(nb)))
        self.conv_body = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_up1 = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_up2 = nn.Conv2d(nf, nf, 3, padding=1)
        if scale == 8:
            self.conv_up3 = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_hr = nn.Conv2d(nf, nf, 3, padding=1)
        self.conv_last = nn.Conv2d(nf, out_nc, 3, padding=1)
        if zero_init_last:
            nn.init.zeros_(self.conv_last.weight)
            assert self.conv_last.bias is not None
            nn.init.zeros_(self.conv_last.bias)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Enlarges pictures.

        Args:
            x: (batch, in_nc, height, width), RGB in [0, 1]. Height and width are multiples of 4 / scale where the input is
                pixel-unshuffled, and of initial_stride with an additive mode.

        Returns:
            By `output_mode`: the picture (batch, out_nc, height * scale / initial_stride, ...), not clamped; or the picture
            and the features behind the long skip (batch, nf, ...); or the features alone. With an additive mode the picture is
            float32 under autocast too.

        Raises:
            ValueError: height or width is not such a multiple.
        """
        self._check_size(x)
        features = self.conv_first(F.pixel_unshuffle(x, self.unshuffle) if self.unshuffle > 1 else x)
        trunk = self._run_body(features)
        features = (trunk if self.long_skip == "trunk" else features) + self.conv_body(trunk)
        if self.output_mode == "features_only":
            return features
        picture = self._add_enlarged_input(self._enlarge(features), x)
        return (picture, features) if self.output_mode == "hq+features" else picture

    def _run_body(self, features: Tensor) -> Tensor:
        if not (self.checkpointing and self.training and torch.is_grad_enabled()):
            return self.body(features)
        for start in range(0, len(self.body), self.blocks_per_checkpoint):
            # Nothing in a block is random, so there is no generator state to keep for the second run.
            features = checkpoint(self._run_blocks, features, start, use_reentrant=False, preserve_rng_state=False)
        return features

    def _run_blocks(self, features: Tensor, start: int) -> Tensor:
        for index in range(start, min(start + self.blocks_per_checkpoint, len(self.body))):
            features = self.body[index](features)
        return features

    def _enlarge(self, features: Tensor) -> Tensor:
        convs = [self.conv_up1, self.conv_up2] + ([self.conv_up3] if self.enlargements == 3 else [])
        for index, conv in enumerate(convs):
            features = activate(_doubled(features, conv) if index < self.enlargements else conv(features))
        return self.conv_last(activate(self.conv_hr(features)))

    def _add_enlarged_input(self, picture: Tensor, x: Tensor) -> Tensor:
        if self.additive_mode == "not":
            return picture
        # In bfloat16 a pixel has 8 bits of precision: neither the input nor the sum may be rounded to that under autocast.
        dtype = torch.promote_types(x.dtype, torch.float32)
        picture, x = picture.to(dtype), x.to(dtype)
        size = picture.shape[-2:]
        if self.additive_mode == "bicubic":
            # antialias changes nothing when enlarging but the kernel: a = -0.5 in place of -0.75 (Keys, "Cubic Convolution
            # Interpolation for Digital Image Processing", 1981). With that kernel low-resolution pictures are made and the
            # bicubic baseline of metrics is computed, so the network starts at its baseline. It also is the faster of the two.
            return picture + F.interpolate(x, size=size, mode="bicubic", antialias=True)
        if self.additive_mode == "additive_enforced":
            # The mean of each output block that belongs to one input pixel is replaced by the input.
            pixels = size[0] // x.shape[-2]
            picture = picture - F.interpolate(F.avg_pool2d(picture, pixels), size=size, mode="nearest")
        return picture + F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def _check_size(self, x: Tensor) -> None:
        multiple = self.unshuffle * (self.initial_stride if self.additive_mode != "not" else 1)
        height, width = x.shape[-2:]
        if height % multiple or width % multiple:
            raise ValueError(
                f"a picture of {height}x{width} pixels does not fit: height and width must be multiples of {multiple}; "
                "crop or pad it"
            )

    @staticmethod
    def rename_state_dict(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
        """Gives the layers of older published checkpoints their present names.

        Args:
            state_dict: with the names of the first ESRGAN release (``model.1.sub.0.RDB1...``), of the second
                (``RRDB_trunk.0.RDB1...``) or the present ones.

        Returns:
            The same tensors under present names. Names of no known form stay as they are.
        """
        return {present_name(key): value for key, value in _undo_numbering(state_dict).items()}

    @staticmethod
    def tiny() -> tuple[dict[str, Any], tuple[Any, ...]]:
        """Options of a small network, and arguments for its `forward`."""
        return {"nf": 16, "nb": 2, "gc": 8, "scale": 4}, (torch.rand(2, 3, 12, 8),)


@ARCHS.register("RRDBNet")
class RRDBNet(_ResidualInResidualNet):
    """The generator of ESRGAN, Real-ESRGAN and SRFlow's encoder; the defaults are the published x4 networks.

    Args:
        in_nc: input channels.
        out_nc: output channels.
        nf: width of the trunk.
        nb: number of residual-in-residual blocks.
        gc: channels that each convolution of a dense block adds.
        scale: enlargement: 1, 2, 4 or 8.
        initial_stride: stride of the first convolution, which is 7x7 when this is above 1; the output shrinks by it.
        additive_mode: what is added to the output: nothing (`not`), the bilinearly enlarged input (`additive`), that in place
            of the output's own mean over each input pixel (`additive_enforced`), or the bicubically enlarged input (`bicubic`).
        output_mode: what is returned: the picture (`hq_only`), picture and features (`hq+features`), or `features_only`.
        long_skip: where the skip connection over the trunk starts: at its beginning (`first`; checkpoints of ESRGAN, BasicSR
            and Real-ESRGAN) or behind its last block (`trunk`; checkpoints of DL-Art-School and SRFlow).
        pixel_unshuffle: at scale 2 or 1, fold the input into channels by 2 or 4 and enlarge by 4 (Real-ESRGAN). If false,
            work at the input's size and skip one or both enlargements.
        blocks_per_checkpoint: blocks whose activations are recomputed together when activation checkpointing is on.
        zero_init_last: start with a last convolution of zeros, so that the output starts as what `additive_mode` adds.
        lean: keep a quarter of what dense blocks otherwise hold for the backward pass, which then takes a little longer; the
            gradients are the same up to rounding. Goes with activation checkpointing and without.

    Raises:
        ValueError: a value is not one of those named, or `additive_mode` does not go with the channels or the stride.
    """

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        out_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        nb: PositiveInt = 23,
        gc: PositiveInt = 32,
        scale: Literal[1, 2, 4, 8] = 4,
        initial_stride: PositiveInt = 1,
        additive_mode: Literal["not", "additive", "additive_enforced", "bicubic"] = "not",
        output_mode: Literal["hq_only", "hq+features", "features_only"] = "hq_only",
        long_skip: Literal["first", "trunk"] = "first",
        pixel_unshuffle: bool = True,
        blocks_per_checkpoint: PositiveInt = 1,
        zero_init_last: bool = False,
        lean: bool = False,
    ) -> None:
        super().__init__(
            RRDB,
            in_nc=in_nc,
            out_nc=out_nc,
            nf=nf,
            nb=nb,
            gc=gc,
            scale=scale,
            initial_stride=initial_stride,
            additive_mode=additive_mode,
            output_mode=output_mode,
            long_skip=long_skip,
            pixel_unshuffle=pixel_unshuffle,
            blocks_per_checkpoint=blocks_per_checkpoint,
            zero_init_last=zero_init_last,
            lean=lean,
        )


@ARCHS.register("RRDBNetBypass")
class RRDBNetBypass(_ResidualInResidualNet):
    """RRDBNet whose blocks are gated per pixel, in the form that DL-Art-School trains.

    Args:
        in_nc: input channels.
        out_nc: output channels.
        nf: width of the trunk, a multiple of 8.
        nb: number of residual-in-residual blocks.
        gc: channels that each convolution of a dense block adds.
        scale: enlargement: 1, 2, 4 or 8.
        initial_stride: stride of the first convolution, which is 7x7 when this is above 1; the output shrinks by it.
        additive_mode: what is added to the output: nothing (`not`), the bilinearly enlarged input (`additive`), that in place
            of the output's own mean over each input pixel (`additive_enforced`), or the bicubically enlarged input (`bicubic`).
        output_mode: what is returned: the picture (`hq_only`), picture and features (`hq+features`), or `features_only`.
        blocks_per_checkpoint: blocks whose activations are recomputed together when activation checkpointing is on.
        zero_init_last: start with a last convolution of zeros, so that the output starts as what `additive_mode` adds.
        lean: keep a quarter of what dense blocks otherwise hold for the backward pass, which then takes a little longer; the
            gradients are the same up to rounding. Goes with activation checkpointing and without.

    Raises:
        ValueError: a value is not one of those named, or `additive_mode` does not go with the channels or the stride.
    """

    def __init__(
        self,
        *,
        in_nc: PositiveInt = 3,
        out_nc: PositiveInt = 3,
        nf: PositiveInt = 64,
        nb: PositiveInt = 23,
        gc: PositiveInt = 32,
        scale: Literal[1, 2, 4, 8] = 4,
        initial_stride: PositiveInt = 1,
        additive_mode: Literal["not", "additive", "additive_enforced", "bicubic"] = "not",
        output_mode: Literal["hq_only", "hq+features", "features_only"] = "hq_only",
        blocks_per_checkpoint: PositiveInt = 1,
        zero_init_last: bool = False,
        lean: bool = False,
    ) -> None:
        if nf % 8:
            raise ValueError(f"nf must be a multiple of 8 (the gates normalise in 8 groups), got {nf}")
        super().__init__(
            GatedRRDB,
            in_nc=in_nc,
            out_nc=out_nc,
            nf=nf,
            nb=nb,
            gc=gc,
            scale=scale,
            initial_stride=initial_stride,
            additive_mode=additive_mode,
            output_mode=output_mode,
            long_skip="trunk",
            pixel_unshuffle=False,
            blocks_per_checkpoint=blocks_per_checkpoint,
            zero_init_last=zero_init_last,
            lean=lean,
        )


def _doubled(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """A convolution of the enlarged; what is exported keeps the plain operations."""
    if training_plainly(conv) and convolve_doubled_pays(x):
        return convolve_doubled(x, conv.weight, conv.bias)
    return conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _check_choice(option: str, value: Any, choices: tuple[Any, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(str, choices))}, got {value!r}")


def _undo_numbering(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names of the first release, where layers are numbered, to names of the second.

    The numbers count (first conv, trunk, then enlargement, conv and activation per factor of 2, then conv, activation, conv);
    within the trunk the convolution behind the blocks is numbered as if it were one more block.
    """
    numbers = {int(found[1]) for key in state_dict if (found := re.match(r"model\.(\d+)\.", key))}
    if not {0, 1} < numbers:
        return state_dict
    last = max(numbers)
    names = {number: f"upconv{number // 3}" for number in numbers} | {0: "conv_first", last - 2: "HRconv", last: "conv_last"}
    renamed = {}
    for key, value in state_dict.items():
        if block := re.match(r"model\.1\.sub\.(\d+)\.(RDB\d\.conv\d)\.0\.(.+)", key):
            key = f"RRDB_trunk.{block[1]}.{block[2]}.{block[3]}"
        elif trunk_conv := re.match(r"model\.1\.sub\.\d+\.(weight|bias)$", key):
            key = f"trunk_conv.{trunk_conv[1]}"
        elif layer := re.match(r"model\.(\d+)\.(weight|bias)$", key):
            key = f"{names[int(layer[1])]}.{layer[2]}"
        renamed[key] = value
    return renamed
