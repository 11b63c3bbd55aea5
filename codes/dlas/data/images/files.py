"""Image files in and out: finding, reading with every damage named, and writing so that no half file is ever seen."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dlas.data.base import BadSample
from dlas.data.images import lmdb_folder, png_rows, video_folder
from dlas.data.shards import folder as shards
from dlas.errors import DataError, printable

_LOG = logging.getLogger(__name__)

T = TypeVar("T")

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"})

ImageArray: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Pixels of 8 or 16 bits, full range."""

_ORIENTATION_TAG = 0x0112  # EXIF 2.3, table 4
_BITS_PER_SAMPLE_TAG = 258  # TIFF 6.0, section 8
_WITH_ALPHA = ("LA", "PA", "RGBA")
_UNUSUAL_DEPTH = ("I", "F")
_MAX_BYTES = 2 << 30  # an uncompressed image of 16 bits with as many pixels as Pillow accepts has half of that
_transparency_mentioned = False


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of its image beside the pixels.

    Args:
        size_in_bytes: of the file.
        format: by its content, as Pillow names it: "PNG", "JPEG", ...
        mode: kind of pixels, as Pillow names it: "RGB", "L" (grey), "P" (palette), "CMYK", ...
        alpha: "none", "opaque" (every pixel), or "transparent".
        profile: the embedded colour profile, if there is one.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        frames: pictures in the file.
    """

    size_in_bytes: int
    format: str
    mode: str
    alpha: str
    profile: bytes | None
    orientation: int
    frames: int


def read_image(path: str | Path) -> ImageArray:
    """Reads an image file as RGB.

    ====================================  ================================================================================
    file                                  result
    ====================================  ================================================================================
    RGB, 8 bits                           as it is
    grey, 1 or 8 bits                     the grey value in all three channels
    palette                               the colours of the palette
    with alpha (RGBA, grey + alpha)       alpha is dropped, not composited: the colour values stay as stored, as other
                                          super-resolution trainers read them. A warning is given once if it hides something
    CMYK, YCbCr, Lab                      converted to RGB by Pillow's formulas; embedded colour profiles are not applied
    PNG or TIFF, 16 bits, grey or colour  kept at 16 bits
    EXIF orientation                      applied, so width and height are those a viewer shows
    animation, several pages              the first frame
    32-bit integer or float, 16-bit PGM   refused
    ====================================  ================================================================================

    Args:
        path: the file.

    Returns:
        (H, W, 3), uint8, or uint16 for files of 16 bits; contiguous and writable.

    Raises:
        BadSample: missing, unreadable, empty, truncated, not an image, or of a kind that is refused.
    """
    data = read_bytes(path)
    rows = _rows(path, data)
    return _decode(path, data, _mention_transparency)[0] if rows is None else rows[:, :]


def open_rows(path: str | Path) -> png_rows.PngRows | None:
    """Opens a file for reading in part; what a part holds is what `read_image` gives there.

    Returns:
        None where that is not possible, or something is wrong with the file: `read_image` tells more.
    """
    try:
        return _rows(path, read_bytes(path))
    except BadSample:
        return None


def _rows(path: str | Path, data: bytes) -> png_rows.PngRows | None:
    return png_rows.open_rows(data, lambda: _decode(path, data, _mention_transparency)[0])


def read_with_header(path: str | Path) -> tuple[ImageArray, Header]:
    """As `read_image`, and what the file says of itself.

    Raises:
        BadSample: as for `read_image`.
    """
    return _decode(path, read_bytes(path), _header)


def read_with_alpha(path: str | Path) -> tuple[ImageArray, ImageArray | None, Header]:
    """As `read_with_header`, and the alpha channel (H, W) of the same type, if the file has one, a palette's included.

    Raises:
        BadSample: as for `read_image`.
    """
    data = read_bytes(path)
    array, header = _decode(path, data, _header)
    try:
        with Image.open(BytesIO(data)) as image:
            if image.mode not in _WITH_ALPHA and "transparency" not in image.info:
                return array, None, header
            alpha: Any = None
            if array.dtype == np.uint16:
                decoded: Any = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
                alpha = decoded[:, :, 3] if decoded.ndim == 3 and decoded.shape[2] == 4 else None
            else:
                alpha = np.array(image.convert("RGBA").getchannel("A"))
    except Exception as error:  # as above
        raise _broken(path, data, error) from error
    return array, None if alpha is None else np.ascontiguousarray(_upright(alpha, header.orientation)), header


def _decode(path: str | Path, data: bytes, describe: Callable[[Image.Image, str | Path, int], T]) -> tuple[ImageArray, T]:
    try:
        image = Image.open(BytesIO(data))
    except UnidentifiedImageError as error:
        raise BadSample(path, f"{_foreign(data)}; expected one of {_known()}; remove it") from error
    except Image.DecompressionBombError as error:
        raise BadSample(path, f"is too large to decode: {error}; cut it into parts, say of 2048 x 2048 pixels") from error
    except Exception as error:
        raise _broken(path, data, error) from error
    with image:
        if image.width < 1 or image.height < 1:
            raise BadSample(path, f"has no pixels: its header says {image.width} x {image.height}; remove it")
        sixteen_bits = _has_sixteen_bits(image, data)
        if not sixteen_bits and image.mode.split(";")[0] in _UNUSUAL_DEPTH:
            raise BadSample(
                path,
                f"has pixels of kind '{image.mode}' ({image.format}); expected 8 bits, or a 16-bit PNG or TIFF; convert it",
            )
        try:
            image.load()  # also for 16 bits: OpenCV fills what is missing in a truncated file with a flat colour
            orientation = image.getexif().get(_ORIENTATION_TAG, 1)
            array = _decode_sixteen_bits(data) if sixteen_bits else _decode_eight_bits(image)
            description = describe(image, path, len(data))
        except MemoryError as error:
            size = f"{image.width} x {image.height} pixels"
            raise BadSample(path, f"does not fit into memory ({size}); cut it into parts or use fewer n_workers") from error
        except Exception as error:  # each of Pillow's decoders has its own idea of what to raise
            raise _broken(path, data, error) from error
    return np.ascontiguousarray(_upright(array, orientation)), description


def read_size(path: str | Path) -> tuple[int, int, int]:
    """Sides of an image in pixels, as they lie in the file, and bytes a value of what `read_image` makes of it: 1 or 2.

    Only the head of the file is understood, so it may be damaged further on.

    Raises:
        BadSample: missing, unreadable, empty, or not an image.
    """
    data = read_bytes(path)
    try:
        with Image.open(BytesIO(data)) as image:
            return image.height, image.width, 2 if _has_sixteen_bits(image, data) else 1
    except Exception as error:  # each of Pillow's decoders has its own idea of what to raise
        raise _broken(path, data, error) from error


def to_tensor(array: ImageArray) -> Tensor:
    """(H, W, 3) uint8 or uint16 to float32 (3, H, W) in [0, 1]."""
    return unit_range(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))))


def unit_range(pixels: Tensor) -> Tensor:
    """uint8 or uint16 of any shape to float32 in [0, 1]: full range is 255 or 65535."""
    return pixels.to(torch.float32).div_(torch.iinfo(pixels.dtype).max)


def write_png(path: str | Path, image: Tensor, bits: int = 8) -> None:
    """Writes a PNG file, complete or not at all: a reader never sees a half-written one.

    Args:
        path: the file; its folder is made if it is missing.
        image: (3, H, W) RGB or (1, H, W) grey, in [0, 1]; values outside are clipped, NaN becomes 0.
        bits: 8 or 16 per channel.

    Raises:
        ValueError: the shape or `bits` is wrong.
    """
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.numel() == 0:
        raise ValueError(f"write_png takes a (3, H, W) or (1, H, W) image, got shape {tuple(image.shape)}")
    if bits not in (8, 16):
        raise ValueError(f"a PNG has 8 or 16 bits here, got {bits}")
    values = image.detach().float().nan_to_num(nan=0.0).clamp(0, 1).mul(2**bits - 1).round()
    array: ImageArray = values.permute(1, 2, 0).cpu().numpy().astype(np.uint8 if bits == 8 else np.uint16)
    write_whole(Path(path), encode_png(array))


def encode_png(array: ImageArray) -> bytes:
    """A PNG file of (H, W, 3) RGB or (H, W, 1) grey pixels, of their depth."""
    done, data = cv2.imencode(".png", array[:, :, ::-1])  # OpenCV's channel order is BGR
    assert done
    return data.tobytes()


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file, complete or not at all; its folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def list_images(root: str | Path) -> list[Path]:
    """All image files below a folder, links followed, hidden files left out, in natural order (`2.png` before `10.png`).

    Of a folder that ends in `.lmdb`, the entries of the database; of a video, its frames; of shards, the images in them.

    Args:
        root: the folder, a video, or shards like `a/{00..99}.tar`.

    Raises:
        DataError: the folder is missing, or holds no image; what it holds is said.
    """
    root = Path(root).expanduser()
    shown = printable(root)
    if video_folder.is_video(root):
        return [root / name for name in video_folder.entries(root)]
    in_shards = shards.is_shards(root)
    if not in_shards and not _is_folder(root):
        kind = "is a file" if root.exists() else "does not exist"
        raise DataError(f"{shown}: {kind}; expected a folder of images, or a video (the path is relative to {Path.cwd()})")
    if root.suffix == lmdb_folder.ENDING:
        return sorted(
            (root / name for name in lmdb_folder.entries(root)), key=lambda file: natural_order(file.relative_to(root))
        )
    files = [root / name for name in shards.entries(root)] if in_shards else list(walk(root))
    images = [file for file in files if file.suffix.lower() in EXTENSIONS]
    if not images:
        kinds = Counter(file.suffix.lower() or "no extension" for file in files)
        found = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(8)) or "nothing"
        raise DataError(f"{shown}: no image in this folder or below; found {found}; expected files ending in {_known()}")
    return sorted(images, key=lambda file: natural_order(file.relative_to(root)))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # may not be looked at, a name too long, ...
        raise DataError(
            f"{printable(path)}: cannot be looked at: {error.strerror}; check the path and its permissions"
        ) from error


def walk(root: Path) -> Iterator[Path]:
    """All files below a folder, links followed, hidden ones left out.

    Raises:
        DataError: a folder cannot be listed.
    """
    seen = set()  # a link to a folder above would otherwise never end
    for folder, folders, names in os.walk(root, followlinks=True, onerror=_unlistable):
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(folder, name) for name in names if not name.startswith("."))


def _unlistable(error: OSError) -> None:
    """os.walk would pass over the folder, and the set would be smaller without a word."""
    raise DataError(
        f"{printable(error.filename)}: this folder cannot be listed: {error.strerror}; change its permissions (chmod +rx) "
        "or move it elsewhere"
    ) from error


def natural_order(path: Path) -> tuple[list[list[int | str]], str]:
    """A key that sorts numbers by value and letters without case; the plain text decides between what is then equal."""
    parts = [
        [int(t) if t.isdecimal() else t for t in re.split(r"(\d+)", part.casefold())] for part in path.with_suffix("").parts
    ]
    return parts, str(path)  # every second piece is a number, so unlike kinds are never compared


def _known() -> str:
    return " ".join(sorted(EXTENSIONS))


def read_bytes(path: str | Path) -> bytes:
    """The content of a file that may be an image.

    Raises:
        BadSample: missing, empty, unreadable, too large, or no regular file.
    """
    if lmdb_folder.is_inside(path):
        entry = lmdb_folder.content(Path(path))
        if entry is None:
            raise BadSample(path, "is named by meta_info.txt and not in the database; make the database again")
        return entry
    if video_folder.is_inside(path):
        frame = video_folder.content(Path(path))
        if frame is None:
            raise BadSample(path, "cannot be decoded; the video is damaged or has no such frame: fetch it again")
        return frame
    if shards.is_inside(path):
        return _in_shards(path)
    try:
        found = Path(path).stat()
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):  # a pipe would never answer
            raise BadSample(path, "is a pipe, socket or device; expected an image file; remove it")
        if found.st_size > _MAX_BYTES:
            raise BadSample(
                path, f"has {found.st_size / 2**30:.1f} GB, more than any image that can be decoded; cut it into parts"
            )
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        if Path(path).is_symlink():
            raise BadSample(
                path, f"is a link to {printable(Path(path).readlink())}, which does not exist; mend or remove the link"
            ) from error
        raise BadSample(path, "does not exist; it may have been moved or deleted since the start of the run") from error
    except PermissionError as error:
        raise BadSample(path, "may not be read by this user; change its permissions (chmod +r)") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise BadSample(path, "is a link that leads back to itself; remove it") from error
        raise BadSample(path, f"cannot be read: {error.strerror or error}; check the disk or the connection to it") from error
    if not data:
        raise BadSample(path, "is empty (0 bytes); expected an image; fetch it again or remove it")
    return data


def _in_shards(path: str | Path) -> bytes:
    try:
        data = shards.content(path)
    except shards.Unreadable as error:
        raise BadSample(path, str(error)) from error
    if not data:
        raise BadSample(path, "is empty (0 bytes) or not in the shards; pack them anew")
    return data


def _foreign(data: bytes) -> str:
    if data.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the image (git lfs pull fetches it)"
    if data[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not an image: it was saved from an address that no longer gives the image"
    if data[4:12] in (b"ftypheic", b"ftypmif1"):
        return "is a HEIC photograph, which cannot be read; convert it to PNG"
    return f"is not an image that can be read (it starts with {data[:12]!r})"


def _broken(path: str | Path, data: bytes, error: Exception) -> BadSample:
    return BadSample(
        path, f"is damaged or truncated ({len(data)} bytes): {error}; expected a complete image; fetch it again or remove it"
    )


def _has_sixteen_bits(image: Image.Image, data: bytes) -> bool:
    """Pillow opens colour images of 16 bits as 8 bits, so its mode does not tell."""
    if image.format == "PNG":
        return data[24] == 16  # IHDR is the first chunk and holds the bit depth there (PNG specification, 11.2.2)
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS_PER_SAMPLE_TAG, (1,))  # type: ignore[attr-defined]
        return set(bits) == {16} and image.mode != "F"
    return False


def _decode_eight_bits(image: Image.Image) -> ImageArray:
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _decode_sixteen_bits(data: bytes) -> ImageArray:
    array: Any = cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED
    )  # UNCHANGED: neither 8 bits nor EXIF rotation
    if array is None or array.dtype != np.uint16:
        raise ValueError("OpenCV cannot decode it at 16 bits")
    if array.ndim == 2:
        return np.repeat(array[:, :, None], 3, axis=2)
    return array[:, :, 2::-1]  # BGR or BGRA


def _upright(array: ImageArray, orientation: int) -> ImageArray:
    """Undoes an EXIF orientation (2 to 8); 1 and unknown values mean upright."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    return array


def _header(image: Image.Image, path: str | Path, size: int) -> Header:
    mode = image.mode
    alpha = "none"
    if mode in _WITH_ALPHA:
        alpha = "transparent" if _is_transparent(image) else "opaque"
    profile = image.info.get("icc_profile")
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    try:
        frames = getattr(image, "n_frames", 1)  # looks through the file, so it comes last
    except Exception:  # damaged after the first frame, which is the one that is used
        frames = 2
    return Header(size, str(image.format), mode, alpha, profile if isinstance(profile, bytes) else None, orientation, frames)


def _is_transparent(image: Image.Image) -> bool:
    return image.mode in _WITH_ALPHA and image.getchannel("A").getextrema()[0] != 255


def _mention_transparency(image: Image.Image, path: str | Path, size: int) -> None:
    global _transparency_mentioned
    if not _transparency_mentioned and _is_transparent(image):
        _transparency_mentioned = True
        _LOG.warning(
            "%s has transparent pixels; alpha is dropped here and in further files (this is said once)", printable(path)
        )
