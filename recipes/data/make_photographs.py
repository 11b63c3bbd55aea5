"""Makes a training set like DIV2K, small, from photographs that lie in packages of Debian and Ubuntu.

    python recipes/data/make_photographs.py datasets/photographs

Packages are downloaded with apt and unpacked into a temporary folder; nothing is installed and no root is needed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from debian_packages import PreparationError, fetch, unpack

PACKAGES = {
    "lomiri-wallpapers-16.04": (
        "usr/share/backgrounds/{}.jpg",
        "Bridge_by_Sander_Klootwijk Dragonfly_by_Bolly Picture_0B_by_freespace Picture_1A_by_freespace Wine_by_Jakkub_Mede "
        "aitzgorri_by_Aitzol_Berasategi free_by_Peter_Nerlich friends_by_Aitzol_Berasategi greentock_by_Peter_Nerlich "
        "life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi seeding_by_Clements_Engelhardt "
        "sunset_by_Aitzol_Berasategi",
    ),
    "lomiri-wallpapers-20.04": ("usr/share/backgrounds/{}.jpg", "Kleiber_by_Lukas_Baubkus"),
    "mate-backgrounds": (
        "usr/share/backgrounds/mate/nature/{}.jpg",
        "Aqua Blinds Dune FreshFlower Garden GreenMeadow LadyBird RainDrops Storm TwoWings Wood YellowFlower",
    ),
    "plasma-workspace-wallpapers": (
        "usr/share/wallpapers/{}.jpg",
        "BytheWater/contents/images/2560x1600 ColdRipple/contents/images/2560x1600 ColorfulCups/contents/images/2560x1600 "
        "DarkestHour/contents/images/2560x1600 EveningGlow/contents/images/2560x1600 FallenLeaf/contents/images/2560x1600 "
        "Grey/contents/images/2560x1600 Kite/contents/images/2560x1600 OneStandsOut/contents/images/2560x1600 "
        "Path/contents/images/2560x1600 summer_1am/contents/images/2560x1600 Volna/contents/images/5120x2880",
    ),
    "lxqt-themes": (
        "usr/share/lxqt/wallpapers/{}",
        "Butterfly-Kenneth-Wimer.jpg Valendas.png after-the-rain.jpg appleflower.png beam.png butterfly.png cloud.png drop.png "
        "flowers.png fog.jpg this-is-not-windows.jpg",
    ),
    "palapeli-data": (
        "usr/share/palapeli/collection/{}.jpg",
        "castle-maintenon cincinnati-bridge citrus-fruits european-honey-bee panther-chameleon-female",
    ),
}
"""Package: where its photographs lie in it, and their names. Drawings and patterns of the same packages are left out."""

VALIDATION = (
    "Bridge_by_Sander_Klootwijk",
    "Dragonfly_by_Bolly",
    "RainDrops",
    "Path",
    "ColorfulCups",
    "life_by_Aitzol_Berasategi",
    "appleflower",
    "castle-maintenon",
)
"""Names of the photographs that are never trained on; none shows the scene of another."""

TILE, STRIDE = 480, 240  # pixels; as DIV2K is cut for ESRGAN
FLAT = 1.5  # mean difference between neighbouring pixels, of 255, below which a tile teaches nothing


class Photograph(NamedTuple):
    """A photograph in a package."""

    name: str
    package: str
    path: str

    @property
    def is_validation(self) -> bool:
        return self.name in VALIDATION


def photographs() -> list[Photograph]:
    """All of them, in the order of their names."""
    found = []
    for package, (template, names) in PACKAGES.items():
        for given in names.split():
            name = given.partition("/")[0].removesuffix(".jpg").removesuffix(".png")
            found.append(Photograph(name, package, template.format(given)))
    return sorted(found)


def read(path: Path) -> Image.Image:
    """A photograph without the traces of JPEG: such files are brought to half their size.

    Returns:
        RGB, turned as its camera says.
    """
    with Image.open(path) as opened:
        is_jpeg = opened.format == "JPEG"
        image = ImageOps.exif_transpose(opened).convert("RGB")
    if not is_jpeg:
        return image
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS)


def tiles(image: Image.Image) -> Iterator[Image.Image]:
    """Squares of `TILE` pixels, `STRIDE` apart and the last ones at the edges, but for the flat ones."""
    for top in _starts(image.height):
        for left in _starts(image.width):
            tile = image.crop((left, top, min(left + TILE, image.width), min(top + TILE, image.height)))
            if detail(tile) >= FLAT:
                yield tile


def _starts(length: int) -> list[int]:
    last = max(length - TILE, 0)
    return [*range(0, last, STRIDE), last]


def detail(image: Image.Image) -> float:
    """Mean absolute difference between neighbouring pixels of the luma, of 255."""
    luma = np.asarray(image.convert("L"), np.float32)
    return float(np.abs(np.diff(luma, axis=0)).mean() + np.abs(np.diff(luma, axis=1)).mean()) / 2


def write(tree: Path, out: Path) -> list[Photograph]:
    """Writes `train/HR`, `train/HR_sub` (tiles), `valid/HR` and `SOURCES.txt` below a folder.

    Returns:
        The photographs that are not in the unpacked packages.
    """
    missing, sources = [], []
    for folder in ("train/HR", "train/HR_sub", "valid/HR"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for photograph in photographs():
        path = tree / photograph.path
        if not path.is_file():
            missing.append(photograph)
            continue
        image = read(path)
        split = "valid" if photograph.is_validation else "train"
        image.save(out / split / "HR" / f"{photograph.name}.png")
        if not photograph.is_validation:
            for number, tile in enumerate(tiles(image), 1):
                tile.save(out / "train/HR_sub" / f"{photograph.name}_s{number:03}.png")
        sources.append(f"{split}/HR/{photograph.name}.png\t{photograph.package}\t{photograph.path}")
    (out / "SOURCES.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
    return missing


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that is made; it must not exist or be empty")
    parser.add_argument("--debs", type=Path, help="folder with the packages; what lacks there is downloaded into it and kept")
    given = parser.parse_args(arguments)
    try:
        if given.out.exists() and any(given.out.iterdir()):
            raise PreparationError(f"{given.out} is not empty: name another folder, or delete it")
        with tempfile.TemporaryDirectory() as scratch:
            debs, tree = given.debs or Path(scratch) / "debs", Path(scratch) / "tree"
            debs.mkdir(parents=True, exist_ok=True)
            tree.mkdir()
            instead = " The recipes' small files need none of this: they use the built-in photographs."
            fetch(debs, list(PACKAGES), what="photographs", size="about 200 MB in all", without=instead)
            unpack(debs, tree, list(PACKAGES))
            missing = write(tree, given.out)
    except PreparationError as error:
        print(error, file=sys.stderr)
        return 1
    for photograph in missing:
        print(f"{photograph.package} of this distribution lacks {photograph.path}: left out", file=sys.stderr)
    counts = {folder: len(list((given.out / folder).iterdir())) for folder in ("train/HR", "train/HR_sub", "valid/HR")}
    print(", ".join(f"{folder}: {count} pictures" for folder, count in counts.items()))
    return 0 if any(counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
