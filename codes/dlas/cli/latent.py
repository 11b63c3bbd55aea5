"""`dlas latent COMMAND`: pictures in the latent space of a flow, and of StyleGAN2's generator."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from dlas.cli.upscale import add_model_argument
from dlas.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from dlas.archs.srflow import SRFlow

_DAMAGED = "the picture; its low-resolution one is made by shrinking it"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares each command with its arguments."""
    commands = parser.add_subparsers(dest="latent_command", required=True, metavar="COMMAND")

    def command(name: str, words: str, **files: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}.")
        add_model_argument(made)
        for argument, meaning in files.items():
            made.add_argument(argument, type=Path, metavar=argument.upper(), help=meaning)
        made.add_argument("-o", "--output", required=True, type=Path, metavar="FILE", help="file to write")
        return made

    encode = command("encode", "write the latents of a picture", picture="the high-resolution picture")
    encode.add_argument("--low", type=Path, metavar="FILE", help="its low-resolution picture; by default it is shrunk")
    command("decode", "make the picture of latents", latents="file of `dlas latent encode`")
    restore = command("restore", "take damage out of a picture by shrinking its latents", picture=_DAMAGED)
    restore.add_argument("--share", type=_share, default=0.8, metavar="X", help="of the latents that is left, 0 to 1 (0.8)")
    command(
        "transfer",
        "give a picture the detail of another one",
        style="high-resolution picture whose latents are taken",
        content="low-resolution picture that is enlarged with them",
    )
    between = command("interpolate", "make a sheet of pictures between two", first="a picture", second="another of its size")
    between.add_argument("--count", type=_several, default=7, metavar="N", help="pictures, with both ends (7)")
    sweep = command("sweep", "make a sheet of samples at several heats", low="a low-resolution picture")
    sweep.add_argument(
        "--heats", type=_heat, nargs="+", default=[0.0, 0.3, 0.6, 0.9, 1.2], metavar="H", help="columns (0 0.3 0.6 0.9 1.2)"
    )
    sweep.add_argument("--samples", type=_several, default=3, metavar="N", help="rows (3)")
    sweep.add_argument("--seed", type=int, default=0, metavar="N", help="of the samples (0)")
    project = command(
        "project",
        "find the latent with which StyleGAN2's generator makes a picture; it is written beside OUTPUT, as .safetensors",
        picture="the picture; the square in its middle is taken",
    )
    project.add_argument("--steps", type=_several, default=1000, metavar="N", help="of the search (1000)")
    project.add_argument("--seed", type=int, default=0, metavar="N", help="of the search (0)")
    project.add_argument(
        "--lpips", nargs=2, metavar=("VGG16", "HEADS"), help="files of weights: the perceptual distance counts, too"
    )
    project.add_argument("--device", default="auto", metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")


def run(arguments: argparse.Namespace) -> int:
    """Writes the file."""
    from dlas.inference.latents import load_flow
    from dlas.inference.pictures import WRITABLE, Picture, write_picture

    name, output = arguments.latent_command, arguments.output.expanduser()
    wanted = [".safetensors"] if name == "encode" else sorted(WRITABLE)
    if output.suffix.lower() not in wanted:
        raise UserError(f"{output}: what {name} writes must end with {' or '.join(wanted)}")
    if name == "project":
        _project(arguments, output)
    elif name == "encode":
        _encode(load_flow(arguments.model, arguments.network), arguments, output)
    else:
        write_picture(output, Picture(_made(load_flow(arguments.model, arguments.network), arguments)))
    print(output)
    return 0


def _encode(flow: SRFlow, arguments: argparse.Namespace, output: Path) -> None:
    import torch

    from dlas.inference.latents import read_pair, save_latents

    picture, low_res = read_pair(flow, arguments.picture, arguments.low)
    with torch.no_grad():
        latents, bits, _ = flow.encode(picture, low_res)
    save_latents(output, latents, low_res)
    mean = sum(each.square().sum().item() for each in latents) / picture.numel()
    print(
        f"{bits.item() / flow.out_nc:.3f} bits a dimension; latents of deviation {math.sqrt(mean):.3f}, 1 is what was learned"
    )


def _project(arguments: argparse.Namespace, output: Path) -> None:
    from safetensors.torch import save_file

    from dlas.engine.device import choose_device
    from dlas.inference.pictures import Picture, write_picture
    from dlas.inference.projection import load_generator, project, read_target
    from dlas.layers import lpips

    device = choose_device(arguments.device)
    generator = load_generator(arguments.model, arguments.network).to(device)
    target = read_target(arguments.picture, generator.size).to(device)
    perceptual = None
    if arguments.lpips:
        classifier, heads = arguments.lpips
        perceptual = lpips.load_lpips("vgg", classifier, heads, "dlas latent project", device)
    latent, made = project(generator, target, steps=arguments.steps, seed=arguments.seed, perceptual=perceptual)
    write_picture(output, Picture(made[0].cpu()))
    save_file({"latent": latent.cpu()}, output.with_suffix(".safetensors"))
    print(f"mean squared error {(made - target).square().mean().item():.6f} of pictures in [0, 1]")


def _made(flow: SRFlow, arguments: argparse.Namespace) -> Tensor:
    import torch

    from dlas.inference import latents as space

    match arguments.latent_command:
        case "decode":
            with torch.no_grad():
                return flow.decode(*space.read_latents(flow, arguments.latents))[0]
        case "restore":
            return space.restored(flow, *space.read_pair(flow, arguments.picture), arguments.share)[0]
        case "transfer":
            style, content = space.read_pair(flow, arguments.style), space.read_low(flow, arguments.content)
            return space.transferred(flow, style, content)[0]
        case "interpolate":
            pairs = [space.read_pair(flow, path) for path in (arguments.first, arguments.second)]
            shares = torch.linspace(0, 1, arguments.count).tolist()
            return space.sheet(space.interpolated(flow, pairs[0], pairs[1], shares), len(shares))
        case _:
            torch.manual_seed(arguments.seed)
            low_res = space.read_low(flow, arguments.low)
            return space.sheet(space.swept(flow, low_res, arguments.heats, arguments.samples), len(arguments.heats))


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text}")
    return value


def _heat(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of at least 0, got {text}")
    return value


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)
