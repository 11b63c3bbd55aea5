"""`dlas data caption`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dlas.cli.main import main
from dlas.data.base import Request, create_dataset
from dlas.data.captioning.captioners import attributes, plugin_captioner, template_captioner
from dlas.data.captioning.captioning import caption_folder
from dlas.errors import ConfigurationError, DataError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pictures"
    for number, (name, size) in enumerate((("red_cars/a.png", (8, 20)), ("red_cars/b.png", (20, 8)), ("c.png", (9, 9)))):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((*size, 3), np.uint8)
        pixels[..., number] = 200
        Image.fromarray(pixels).save(root / name)
    return root


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_template_says_what_can_be_measured(folder, tmp_path, capsys):
    output = tmp_path / "captions.jsonl"
    assert main(["data", "caption", str(folder), "-o", str(output)]) == 0
    assert {each["file"]: each["caption"] for each in lines(output)} == {
        "c.png": "a picture, dark, blue, square",
        "red_cars/a.png": "red cars, dark, red, wide",
        "red_cars/b.png": "red cars, dark, green, tall",
    }
    assert "3 images captioned, 0 had a caption" in capsys.readouterr().out
    options = {"mode": "captioned_images", "paths": str(folder), "captions": str(output), "target_size": 8}
    data = create_dataset(options, phase="val", name="val")
    assert data[Request(1, 1, 0)]["caption"] == "red cars, dark, red, wide"
    white = np.full((4, 4, 3), 65535, np.uint16)
    assert attributes(white, Path("x/Big-white_1.png")) == {
        "folder": "x", "name": "Big white 1", "tone": "bright", "colour": "grey", "shape": "square"
    }  # fmt: skip


def test_captions_that_are_there_stay_and_new_images_get_one(folder, tmp_path):
    output = tmp_path / "captions.jsonl"
    written = '{"file": "c.png", "caption": "by hand"}'
    output.write_text(written)
    result = caption_folder(folder, output, template_captioner("{name}"), 2)
    assert (result.made, result.kept) == (2, 1)
    assert output.read_text().startswith(written + "\n")
    assert [each["caption"] for each in lines(output)] == ["by hand", "a", "b"]
    before = output.read_text()
    result = caption_folder(folder, output, template_captioner("other"), 2)
    assert (result.made, result.kept) == (0, 3)
    assert output.read_text() == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_stopped_call_goes_on_where_it_was(folder, tmp_path):
    output, seen = tmp_path / "captions.jsonl", []

    def dies(images, paths):
        seen.extend(paths)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return [path.stem for path in paths]

    with pytest.raises(KeyboardInterrupt):
        caption_folder(folder, output, dies, 1)
    assert not output.exists()
    partial = tmp_path / ".captions.jsonl.partial"
    partial.write_bytes(partial.read_bytes() + b'{"file": "red_')  # killed in the middle of a line
    result = caption_folder(folder, output, dies, 1)
    assert result.made == 2
    assert sorted(each["file"] for each in lines(output)) == ["c.png", "red_cars/a.png", "red_cars/b.png"]
    assert len(seen) == 4  # the one that died is captioned again, the first is not


def test_a_function_of_a_users_file_sees_the_pixels(folder, tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "def caption(images):\n    return [f'{image.shape[1]} wide, {image.max()}' for image in images]\n"
        "def short(images):\n    return ['one']\n"
    )
    output = tmp_path / "captions.jsonl"
    assert main(["data", "caption", str(folder), "-o", str(output), "--captioner", str(plugin)]) == 0
    assert lines(output)[0]["caption"] == "9 wide, 200"
    with pytest.raises(DataError, match="'short' gave list for 3 images"):
        caption_folder(folder, tmp_path / "b.jsonl", plugin_captioner(f"{plugin}:short"), 4)
    with pytest.raises(ConfigurationError, match="has no function 'long"):
        plugin_captioner(f"{plugin}:long")
    with pytest.raises(ConfigurationError, match="neither 'template' nor a Python file"):
        plugin_captioner("blip")


def test_mistakes_and_damaged_files_are_told(folder, tmp_path, capsys):
    (folder / "c.png").write_bytes(b"no picture")
    output = tmp_path / "captions.jsonl"
    assert main(["data", "caption", str(folder), "-o", str(output)]) == 1
    assert "c.png" in capsys.readouterr().err
    assert len(lines(output)) == 2
    assert main(["data", "caption", str(folder), "-o", str(output), "--template", "{what}"]) == 2
    assert "unknown field what" in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"ends in \.jsonl"):
        caption_folder(folder, tmp_path / "captions.txt", template_captioner("x"), 1)
    output.write_text("not a list")
    with pytest.raises(DataError, match="is no JSON"):
        caption_folder(folder, output, template_captioner("x"), 1)
