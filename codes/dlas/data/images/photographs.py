"""Photographs that come with two scientific Python packages, so that a first training run needs no download."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from dlas.data.images.pairs import Files, ImagePairs, items_of
from dlas.data.inventory import Inventory
from dlas.errors import DataError, MissingPackageError
from dlas.registry import DATASETS
from dlas.types import PositiveFloat, PositiveInt


class Photograph(NamedTuple):
    """A file inside an installed package."""

    package: str
    file: str


_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}

# The two motorcycles are a stereo pair, the same scene: they must stay on one side of the split.
TRAIN = (
    Photograph("skimage", "data/motorcycle_left.png"),
    Photograph("skimage", "data/motorcycle_right.png"),
    Photograph("sklearn", "datasets/images/flower.jpg"),
    Photograph("skimage", "data/rocket.jpg"),
    Photograph("skimage", "data/ihc.png"),
    Photograph("skimage", "data/camera.png"),
    Photograph("skimage", "data/brick.png"),
    Photograph("skimage", "data/coins.png"),
    Photograph("skimage", "data/grass.png"),
    Photograph("skimage", "data/gravel.png"),
)
VALIDATION = (
    Photograph("skimage", "data/astronaut.png"),
    Photograph("skimage", "data/chelsea.png"),
    Photograph("sklearn", "datasets/images/china.jpg"),
    Photograph("skimage", "data/coffee.png"),
)


@DATASETS.register("builtin_photos")
class BuiltinPhotos(ImagePairs):
    """The photographs inside the packages scikit-image (0.22 to 0.26) and scikit-learn, split by scene.

    Gives `lq` and `hq` (float32 RGB in [0, 1]) and `path`; outside the train phase the whole image and its `name`.
    The low-quality image is made with MATLAB's bicubic interpolation. Small and fixed: good for a first run and for
    tests, not for a model to publish.

    ====================  ===========  =====  ===========================================================================
    file                  size         split  origin and licence, as the packages state them
    ====================  ===========  =====  ===========================================================================
    motorcycle_left.png   741 x 500    train  Middlebury 2014 stereo, Scharstein et al.
    motorcycle_right.png  741 x 500    train  the same scene from the right
    flower.jpg            640 x 427    train  vultilion (Flickr), CC BY 2.0
    rocket.jpg            640 x 427    train  SpaceX, public domain
    ihc.png               512 x 512    train  stained tissue under a microscope; no known restrictions
    camera.png            512 x 512    train  grey; Lav Varshney, CC0
    brick.png             512 x 512    train  grey; CC0Textures, CC0
    coins.png             384 x 303    train  grey; Brooklyn Museum, no known restrictions
    grass.png             512 x 512    train  grey; linolafett (DeviantArt), CC0
    gravel.png            512 x 512    train  grey; CC0Textures, CC0
    astronaut.png         512 x 512    val    NASA, public domain
    chelsea.png           451 x 300    val    Stefan van der Walt, CC0
    china.jpg             640 x 427    val    danielbuechele (Flickr), CC BY 2.0
    coffee.png            600 x 400    val    Rachel Michetti, CC0
    ====================  ===========  =====  ===========================================================================

    Args:
        phase: "train" for random crops of the train split, anything else for whole images of the other.
        scale: how many times larger the high-quality image is.
        target_size: height and width in pixels of the high-quality crop (train phase); a multiple of `scale`.
        use_flip: mirror crops left to right at random (train phase).
        use_rot: turn crops by a random multiple of 90 degrees (train phase).
        cache: `memory` keeps the decoded images (9 MB); `none` decodes a file for every sample; `mapped` keeps them in files
            that all processes share.
        cache_dir: folder of the mapped cache; by default `$DLAS_CACHE_DIR`, or `dlas/images` in the user's folder of caches.
        cache_gb: size of the mapped cache in 10^9 bytes; what does not fit is decoded for every sample.
        on_bad_file: `error` stops at a damaged or too small file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: options contradict each other.
        MissingPackageError: a package is not installed.
        DataError: the installed version of a package lacks a file.
    """

    provides = ("lq", "hq", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        scale: PositiveInt,
        target_size: PositiveInt = 128,
        use_flip: bool = True,
        use_rot: bool = True,
        cache: Literal["none", "memory", "mapped"] = "memory",
        cache_dir: str | None = None,
        cache_gb: PositiveFloat = 32.0,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        training = phase == "train"
        super().__init__(
            split(training),
            training=training,
            scale=scale,
            target_size=target_size,
            use_flip=use_flip,
            use_rot=use_rot,
            cache=cache,
            cache_dir=cache_dir,
            cache_gb=cache_gb,
            on_bad_file=on_bad_file,
        )

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> Inventory:
        smallest = options["target_size"] if phase == "train" else options["scale"]
        return Inventory(items_of(split(phase == "train")), scale=options["scale"], smallest=smallest)


def split(training: bool) -> list[Files]:
    """One side of the fixed split.

    Raises:
        MissingPackageError: a package is not installed.
        DataError: the installed version of a package lacks a file.
    """
    return [Files(locate(photograph)) for photograph in (TRAIN if training else VALIDATION)]


def locate(photograph: Photograph, user: str = "the dataset mode builtin_photos") -> Path:
    """The file's path; its package is found without being imported.

    Args:
        photograph: the file, which need not be a photograph.
        user: what needs it, for the message.

    Raises:
        MissingPackageError: the package is not installed.
        DataError: the installed version lacks the file.
    """
    distribution = _DISTRIBUTIONS[photograph.package]
    spec = importlib.util.find_spec(photograph.package)
    if spec is None or spec.origin is None:
        raise MissingPackageError(distribution, user)
    path = Path(spec.origin).parent / photograph.file
    if not path.is_file():
        raise DataError(
            f"{path} is missing from the installed {distribution}; expected the wheel of scikit-image 0.22 to 0.26 or of "
            f"scikit-learn 1.3 or later; install it again: pip install --force-reinstall {distribution}"
        )
    return path
