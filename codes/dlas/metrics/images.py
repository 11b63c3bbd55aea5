"""What all image metrics share: which pixels are compared, on which scale, and the rounding to 8 bits before it."""

from __future__ import annotations

from torch import Tensor

from dlas.layers.color import rgb_to_y


def quantize_8bit(image: Tensor) -> Tensor:
    """The image as it would be read back from an 8-bit file: clamped to [0, 1] and rounded to multiples of 1/255.

    Published scores are measured on saved images, so this comes before `psnr` and `ssim` where they are to be compared.

    Args:
        image: float, any shape; values outside [0, 1] are cut off.

    Returns:
        Same shape and dtype, in [0, 1].
    """
    return image.clamp(0, 1).mul(255).round().div(255)


def compared_pixels(prediction: Tensor, target: Tensor, crop_border: int, test_y_channel: bool) -> tuple[Tensor, Tensor]:
    """Both images cropped, optionally turned to luma, as float64 (N, C, H, W) in 0..255.

    Args:
        prediction: (N, C, H, W) or (C, H, W), float, in [0, 1].
        target: like `prediction`.
        crop_border: pixels cut off at each side.
        test_y_channel: compare luma (BT.601, 16..235) of RGB images.

    Raises:
        ValueError: the images do not fit each other, `crop_border` or `test_y_channel`.
    """
    if prediction.shape != target.shape:
        raise ValueError(
            f"prediction {tuple(prediction.shape)} and target {tuple(target.shape)} must have the same shape; "
            "crop the target to what the network gives"
        )
    if prediction.ndim not in (3, 4):
        raise ValueError(f"expected images (N, C, H, W) or (C, H, W), not a tensor of shape {tuple(prediction.shape)}")
    for name, image in (("prediction", prediction), ("target", target)):
        if not image.is_floating_point():
            raise ValueError(f"{name} must be float in [0, 1], not {image.dtype}; convert 8-bit images with image / 255")
    height, width = prediction.shape[-2:]
    if crop_border < 0:
        raise ValueError(f"crop_border must be 0 or more pixels, not {crop_border}")
    if 2 * crop_border >= min(height, width):
        raise ValueError(f"crop_border {crop_border} leaves nothing of a {height}x{width} image; use a smaller one")
    if test_y_channel and prediction.shape[-3] != 3:
        raise ValueError(
            f"the Y channel needs RGB images, but these have {prediction.shape[-3]} channel(s); set test_y_channel=False"
        )
    return _prepare(prediction, crop_border, test_y_channel), _prepare(target, crop_border, test_y_channel)


def cropped(image: Tensor, border: int, what: str) -> Tensor:
    """The image without `border` pixels at each side.

    Raises:
        ValueError: nothing is left; `what` names the metric.
    """
    height, width = image.shape[-2:]
    if 2 * border >= min(height, width):
        raise ValueError(f"{what}: crop_border {border} leaves nothing of a {height}x{width} image; use a smaller one")
    return image[..., border : height - border, border : width - border]


def _prepare(image: Tensor, crop_border: int, test_y_channel: bool) -> Tensor:
    height, width = image.shape[-2:]
    image = image[..., crop_border : height - crop_border, crop_border : width - crop_border].double()
    if test_y_channel:
        image = rgb_to_y(image)
    return (image if image.ndim == 4 else image.unsqueeze(0)) * 255
