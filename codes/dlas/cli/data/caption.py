"""`dlas data caption`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from dlas.cli.numbers import positive
from dlas.errors import ConfigurationError, printable

SUMMARY = "write a list of captions for a folder of images, by a function of yours or from a template"
_TEMPLATE = "template"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="images; subfolders are searched")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="LIST", help=".jsonl; captions in it are kept")
    parser.add_argument(
        "--captioner",
        default=_TEMPLATE,
        metavar="FILE.py[:FUNCTION]",
        help="a function caption(images) -> list of texts, of RGB arrays (H, W, 3); by default the template, which does not "
        "see what is shown",
    )
    parser.add_argument(
        "--template",
        metavar="TEXT",
        help="with fields {folder} {name} {tone} {colour} {shape}; '{folder}, {tone}, {colour}, {shape}' by default",
    )
    parser.add_argument("--batch-size", type=positive, default=16, metavar="N", help="images at once (16)")


def run(arguments: argparse.Namespace) -> int:
    """Captions, and says how many. Returns 1 if images could not be read."""
    from dlas.data.captioning.captioners import DEFAULT_TEMPLATE, plugin_captioner, template_captioner
    from dlas.data.captioning.captioning import caption_folder
    from dlas.data.images.files import list_images
    from dlas.observe.console import progress_bar
    from dlas.observe.lock import locked

    if arguments.captioner == _TEMPLATE:
        captioner = template_captioner(arguments.template or DEFAULT_TEMPLATE)
    elif arguments.template is not None:
        raise ConfigurationError("--template is for the captioner 'template'; leave one of the two out")
    else:
        captioner = plugin_captioner(arguments.captioner)
    output: Path = arguments.output
    try:
        with (
            locked(output.with_name(f".{output.name}.lock"), f"captioning into {output}", "give another --output"),
            progress_bar(len(list_images(arguments.folder)), 0) as bar,
        ):
            result = caption_folder(
                arguments.folder, output, captioner, arguments.batch_size, lambda count: bar.update(count) and None
            )
    except KeyboardInterrupt:
        print("stopped; the same call goes on where it was", file=sys.stderr)
        return 130
    for path, reason in result.bad_files.items():
        print(f"left out {printable(path)}: {reason}", file=sys.stderr)
    print(f"{result.made} images captioned, {result.kept} had a caption; {printable(output)}")
    return 1 if result.bad_files else 0
