"""Your own images: a folder of high-quality images, with or without a folder of low-quality partners."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dlas.data.images.files import list_images
from dlas.data.images.lists import images_of, one_for_each, partner_names, partners_in
from dlas.data.images.pairs import Files, ImagePairs, items_of
from dlas.data.inventory import Alone, Inventory
from dlas.errors import ConfigurationError, DataError, printable
from dlas.registry import DATASETS
from dlas.types import PositiveFloat, PositiveInt

_EXAMPLES = 5


@DATASETS.register("paired_images")
class PairedImages(ImagePairs):
    """Folders of images for super-resolution and restoration.

    Gives `lq` and `hq` (float32 RGB in [0, 1]) and `path`; outside the train phase the whole image and its `name`.

    Args:
        phase: "train" for random crops, anything else for whole images.
        dataroot_gt: folder, or list of folders, of the high-quality images; subfolders are searched.
        dataroot_lq: folder, or a list as long as `dataroot_gt`, of the low-quality partners, under the same relative paths.
            Without it the low-quality image is made with MATLAB's bicubic interpolation.
        scale: how many times larger the high-quality image is.
        meta_info: text file that names the images to take from `dataroot_gt`, one relative path a line (BasicSR's
            `meta_info_file`), or the image and its partner below `dataroot_lq` (`0001.png, 0001_lq.png`); for several folders
            a list of such files.
        repeats: for several folders: how often the images of each are taken in an epoch (train phase).
        filename_template: name of a partner, without extension; `{}` stands for that of the high-quality image (`{}x4` finds
            `0001x4.png` for `0001.png`).
        target_size: height and width in pixels of the high-quality crop (train phase); a multiple of `scale`.
        use_flip: mirror crops left to right at random (train phase).
        use_rot: turn crops by a random multiple of 90 degrees (train phase).
        cache: `none` decodes a file for every sample; `memory` keeps every decoded image, 3 bytes a pixel (6 at 16 bits);
            `mapped` keeps them in files that all processes share and of which a crop reads its own part.
        cache_dir: folder of the mapped cache; by default `$DLAS_CACHE_DIR`, or `dlas/images` in the user's folder of caches.
        cache_gb: size of the mapped cache in 10^9 bytes; what does not fit is decoded for every sample.
        on_bad_file: `error` stops at a damaged, unfit or too small file; `skip` takes another sample instead and reports it.

    Raises:
        ConfigurationError: options contradict each other.
        DataError: a folder is missing or empty, or images have no partner.
    """

    provides = ("lq", "hq", "path", "name")

    def __init__(
        self,
        phase: str,
        /,
        *,
        dataroot_gt: str | list[str],
        dataroot_lq: str | list[str] | None = None,
        scale: PositiveInt,
        meta_info: str | list[str] | None = None,
        repeats: list[PositiveInt] | None = None,
        filename_template: str = "{}",
        target_size: PositiveInt = 128,
        use_flip: bool = True,
        use_rot: bool = True,
        cache: Literal["none", "memory", "mapped"] = "none",
        cache_dir: str | None = None,
        cache_gb: PositiveFloat = 32.0,
        on_bad_file: Literal["error", "skip"] = "error",
    ) -> None:
        check_repeats(phase, repeats)
        super().__init__(
            find_pairs(dataroot_gt, dataroot_lq, filename_template, meta_info, repeats),
            training=phase == "train",
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
        pairing = match_folders(
            options["dataroot_gt"], options["dataroot_lq"], options["filename_template"], options["meta_info"]
        )
        smallest = options["target_size"] if phase == "train" else options["scale"]
        return Inventory(items_of(pairing.pairs), pairing.alone, options["scale"], smallest)


@dataclass
class Pairing:
    """How the files of two trees go together.

    Args:
        pairs: those that do.
        alone: those that do not.
        faults: one line for each pair of folders with files that do not.
    """

    pairs: list[Files] = field(default_factory=list)
    alone: list[Alone] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def find_pairs(
    dataroot_gt: str | list[str],
    dataroot_lq: str | list[str] | None = None,
    filename_template: str = "{}",
    meta_info: str | list[str] | None = None,
    repeats: list[int] | None = None,
) -> list[Files]:
    """The images below each `dataroot_gt`, each with its partner from the `dataroot_lq` at the same place of the list.

    Raises:
        ConfigurationError: the lists differ in length, or the template is unusable.
        DataError: a folder is missing or empty, or an image has no partner, or two.
    """
    pairing = match_folders(dataroot_gt, dataroot_lq, filename_template, meta_info, repeats)
    if pairing.faults:
        raise DataError("; ".join(pairing.faults))
    return pairing.pairs


def match_folders(
    dataroot_gt: str | list[str],
    dataroot_lq: str | list[str] | None,
    filename_template: str,
    meta_info: str | list[str] | None = None,
    repeats: list[int] | None = None,
) -> Pairing:
    """As `find_pairs`; files without a partner are listed instead of refused.

    Raises:
        ConfigurationError: the lists differ in length, or the template is unusable.
        DataError: a folder is missing or empty.
    """
    gt_roots = [dataroot_gt] if isinstance(dataroot_gt, str) else dataroot_gt
    if not gt_roots:
        raise ConfigurationError("dataroot_gt is an empty list; give at least one folder")
    if filename_template.count("{}") != 1 or "/" in filename_template:
        raise ConfigurationError(f"filename_template '{filename_template}' must be a file name with one {{}}, like '{{}}x4'")
    lists = one_for_each(gt_roots, meta_info, "meta_info")
    counts = [count or 1 for count in one_for_each(gt_roots, repeats, "repeats")]
    if dataroot_lq is None:
        if filename_template != "{}":
            raise ConfigurationError(
                "filename_template is for the files in dataroot_lq, which is not given; remove it or give both"
            )
        for names in lists:
            if names is not None and partners_in(names):
                raise ConfigurationError(f"{names} names pairs, and dataroot_lq, where the second of each lies, is not given")
        return Pairing(
            [
                Files(path)
                for root, names, count in zip(gt_roots, lists, counts, strict=True)
                for path in images_of(root, names) * count
            ]
        )
    lq_roots = [dataroot_lq] if isinstance(dataroot_lq, str) else dataroot_lq
    if len(gt_roots) != len(lq_roots):
        raise ConfigurationError(
            f"dataroot_gt has {len(gt_roots)} folders and dataroot_lq {len(lq_roots)}; expected one low-quality folder for each"
        )
    pairing = Pairing()
    for gt, lq, names, count in zip(gt_roots, lq_roots, lists, counts, strict=True):
        found = len(pairing.pairs)
        if names is None:
            _match(gt, lq, filename_template, pairing)
        else:
            _match_listed(gt, lq, names, filename_template, pairing)
        pairing.pairs += pairing.pairs[found:] * (count - 1)
    return pairing


def _match_listed(gt_root: str, lq_root: str, names: str, template: str, pairing: Pairing) -> None:
    gt_base, lq_base = Path(gt_root).expanduser(), Path(lq_root).expanduser()
    there, told = set(list_images(lq_base)), partners_in(names)
    alone = []
    for path in images_of(gt_base, names):
        name = path.relative_to(gt_base)
        wanted = [told[name]] if name in told else partner_names(name, template)
        partner = next((lq_base / each for each in wanted if lq_base / each in there), None)
        if partner is None:
            alone.append(name)
            pairing.alone.append(Alone(path, f"has no low-quality partner in {lq_root}"))
        else:
            pairing.pairs.append(Files(path, partner))
    if alone:
        pairing.faults.append(
            f"{names}: {_some(alone)} have no low-quality partner in {lq_root} (filename_template '{template}')"
        )


def check_repeats(phase: str, repeats: list[int] | None) -> None:
    """Refuses to measure an image more than once.

    Raises:
        ConfigurationError: `repeats` is given for validation.
    """
    if repeats is not None and phase != "train":
        raise ConfigurationError("repeats is for training; in validation every image is taken once: remove it")


def _match(gt_root: str, lq_root: str, template: str, pairing: Pairing) -> None:
    (gt, gt_twins), (lq, lq_twins) = _by_relative_name(gt_root), _by_relative_name(lq_root)
    twins = gt_twins + lq_twins
    pairing.alone += [
        Alone(twin, f"differs only in extension from {other.name}, so its partner is not clear") for twin, other in twins
    ]
    if twins:
        names = _some([path for pair in twins for path in pair])
        pairing.faults.append(f"images differ only in extension, so their partner is not clear: {names}; keep one of each name")
    partner = {name: name.with_name(template.replace("{}", name.name)) for name in gt}
    alone = [name for name, wanted in partner.items() if wanted not in lq]
    wanted_names = set(partner.values())
    left_over = [name for name in lq if name not in wanted_names]
    pairing.pairs += [Files(path, lq[partner[name]]) for name, path in gt.items() if partner[name] in lq]
    pairing.alone += [Alone(gt[name], f"has no low-quality partner {partner[name]}.* in {lq_root}") for name in alone]
    pairing.alone += [Alone(lq[name], f"has no high-quality partner in {gt_root}") for name in left_over]
    if alone or left_over:
        pairing.faults.append(
            f"{gt_root} has {len(gt)} images and {lq_root} has {len(lq)}, and they do not pair up (filename_template "
            f"'{template}'): {_some(alone)} without a low-quality partner, {_some(left_over)} without a high-quality one; "
            "add or remove files, or correct filename_template"
        )


def _by_relative_name(root: str) -> tuple[dict[Path, Path], list[tuple[Path, Path]]]:
    """Images below `root` by their path relative to it, without extension, since partners may differ in file format.

    The second value lists each image of whose name there was one already, with that one.
    """
    base = Path(root).expanduser()
    found: dict[Path, Path] = {}
    twins = []
    for path in list_images(base):
        name = path.relative_to(base).with_suffix("")
        if name in found:
            twins.append((path, found[name]))
        else:
            found[name] = path
    return found, twins


def _some(names: list[Path]) -> str:
    shown = ", ".join(sorted(printable(name) for name in names)[:_EXAMPLES])
    return f"{len(names)} ({shown}{', ...' if len(names) > _EXAMPLES else ''})" if names else "0"
