"""`dlas explain`: words that name everything, a picture that shows everything, learning rates that are the trainer's."""

from __future__ import annotations

import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch

import toys
from dlas.cli.main import main
from dlas.config import Config, load, to_plain
from dlas.explain.flow import Gate, training_flow, validation_flow
from dlas.explain.layout import Box, Spacing, arrange
from dlas.explain.mermaid import mermaid
from dlas.explain.picture import draw, text_width
from dlas.explain.rates import learning_rates
from dlas.explain.words import explain
from dlas.optim.optimizers import build_optimizer
from dlas.optim.schedules import build_schedule
from runs import configure

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"

MANY = """\
name: many
scale: 2
datasets:
  train: {mode: toy_pairs, batch_size: 4, length: 11}
  val: {mode: toy_pairs}
  other_pictures: {mode: toy_pairs}
networks:
  generator: {which_model_G: ToyGenerator, width: 6}
  judge: {type: discriminator, which_model_D: ToyDiscriminator}
  teacher: {which_model_G: ToyGenerator, trainable: false}
steps:
  judging:
    training: judge
    every: 2
    optimizer: sgd
    optimizer_params: {lr: 1e-4, momentum: 0.9}
    lr_scheme: {type: StepLR, step_size: 20}
    injectors:
      draft: {type: generator, generator: generator, in: lq, out: sketch, no_grad: true}
    losses:
      versus: {type: discriminator_gan, gan_type: ragan, weight: 1, real: hq, fake: sketch, after: 10}
  making:
    training: generator
    clip_grad_eps: 0.5
    optimizer_params: {lr: 2e-4, param_groups: {head: {match: "last", lr: 5e-5}}}
    injectors:
      noisy: {type: add_noise, in: lq, out: lq_noisy, scale: 0.1, train: true}
      clean: {type: direct, in: lq, out: lq_noisy, eval: true}
      gen: {type: generator, generator: generator, in: lq_noisy, out: gen}
      aim: {type: generator, generator: teacher, in: lq, out: taught, before: 50}
      patches: {type: image_patch, in: gen, out: patch, patch_size: 4}
      level: {type: scheduled_scalar, out: amount, scheduler: {type: fixed, weight: 0.1}}
      each: {type: for_each, subtype: add_noise, scale: amount, in: patch, out: parts}
    losses:
      pix: {type: pix, criterion: l1, weight: 1, real: hq, fake: gen}
      distil: {type: pix, criterion: l2, weight: 0.1, real: taught, fake: gen, before: 50}
      fool: {type: generator_gan, gan_type: ragan, weight: 0.005, discriminator: judge, real: hq, fake: gen,
             after: 20, before: 80}
      mark: {type: pix, criterion: l1, weight: 0.25, real: sketch, fake: gen, every: 4}
train:
  niter: 100
  warmup_iter: 5
  val_freq: 30
  lr_scheme: {type: MultiStepLR, gen_lr_steps: [25, 60], lr_gamma: 0.5}
  ema: {enabled: false}
eval: {metrics: [psnr], crop_border: 2, num_sheets: 0}
logger: {print_freq: 7, save_checkpoint_freq: 13, visuals: [gen], visual_debug_rate: 17, tensorboard: false}
path: {strict_load: false, pretrain: {teacher: teacher.safetensors}}
deterministic: true
"""
TEXTS = {"psnr": toys.PSNR, "gan": toys.GAN, "many": MANY}
SHIPPED = [path.name for path in sorted((ROOT / "options").glob("train*.yml"))]


@pytest.fixture(params=[*TEXTS, *SHIPPED])
def config(request, tmp_path) -> Config:
    if request.param in TEXTS:
        return configure(tmp_path, TEXTS[request.param])
    return load(ROOT / "options" / request.param)


@pytest.fixture
def many(tmp_path) -> Config:
    return configure(tmp_path, MANY)


def components(config: Config):
    yield from config.datasets.values()
    yield from config.networks.values()
    for step in config.steps.values():
        yield from step.injectors.values()
        yield from step.losses.values()


# ----------------------------------------------------------------------------------------------------------------------- flow


def test_the_flow_knows_who_reads_what_from_whom(many):
    flow = training_flow(many)
    nodes = {node.id: node for node in flow.nodes()}
    assert [band.name for band in flow.bands] == ["judging", "making"]
    assert set(flow.data.writes) == {"lq", "hq"}  # what nobody writes can only come with the data
    assert "making/clean" not in nodes  # runs in evaluation only
    assert nodes["making/patches"].writes == (
        "patch", "patch_top_left", "patch_top_right", "patch_bottom_left", "patch_bottom_right",
    )  # fmt: skip
    assert set(nodes["making/each"].reads) == {"patch", "amount"}  # `scale` is an option of the injector inside
    assert nodes["judging/losses/versus"].networks == ("judge",)  # not given: the one that the step trains
    assert nodes["judging/draft"].notes == ("no gradients",)
    mark = nodes["making/losses/mark"]
    assert flow.writer("sketch", mark).id == "judging/draft"
    assert flow.writer("gen", mark).id == "making/gen"
    assert flow.writer("hq", nodes["making/losses/pix"]) is flow.data


def test_validation_takes_the_injectors_that_the_evaluator_takes(many, tmp_path):
    flow = validation_flow(many)
    assert [node.name for node in flow.bands[0].nodes] == ["clean", "gen", "aim", "patches", "level", "each", "metrics"]
    assert flow.data.name == "val and other_pictures"
    own = configure(tmp_path, MANY, "eval.injectors={up: {type: resize, in: lq, out: gen, scale: 2}}")
    assert [node.name for node in validation_flow(own).bands[0].nodes] == ["up", "metrics"]


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        (Gate(), ""),
        (Gate(after=5), "from iteration 5 on"),
        (Gate(before=5), "before iteration 5"),
        (Gate(after=5, before=9), "iterations 5 to 8"),
        (Gate(every=3), "every 3 iterations"),
        (Gate(after=5, every=3), "from iteration 5 on, every 3 iterations"),
    ],
)
def test_gates_in_words(gate, words):
    assert str(gate) == words
    assert bool(gate) == bool(words)


# ---------------------------------------------------------------------------------------------------------------------- words


def test_words_name_every_network_step_injector_loss_and_state_key(config):
    words = explain(config, "file.yml")
    named = [*config.datasets, *config.networks, *config.steps]
    for step in config.steps.values():
        named += [*step.injectors, *step.losses]
    for node in training_flow(config).nodes():
        named += [*node.reads, *node.writes, *node.networks]
    for name in named:
        assert re.search(rf"\b{re.escape(name)}\b", words), name
    for component in components(config):
        assert component.component in words


def test_words_name_every_value_that_is_not_as_by_default(config):
    words = " ".join(explain(config, "file.yml").split())
    for component in components(config):
        for option, value in component.options.items():
            if not isinstance(value, list | dict):
                shown = (
                    str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)
                )
                assert shown.replace("e-0", "e-") in words, f"{component.yaml_path}.{option}"
    for step in config.steps.values():
        for option in step.optimizer_params:
            assert f"{option} " in words
    assert f"Runs {config.train.niter} iterations" in words
    assert f"every {config.logger.print_freq} iterations" in words


def test_keys_without_a_sentence_of_their_own_are_told_when_they_differ(many, config):
    words = explain(many, "file.yml")
    assert "`deterministic: true`: refuse operations" in words
    assert "`clip_grad_eps: 0.5`" in words
    assert "anomaly_detection" not in words
    # Every key of the file's sections is either told or as by default.
    resolved = to_plain(many)
    assert resolved["train"]["warmup_iter"] == 5
    assert "first 5 iterations (`train.warmup_iter`)" in words


def test_words_are_exact(many):
    words = " ".join(explain(many, "file.yml").split())
    for sentence in (
        "teacher: ToyGenerator, a generator, frozen (`trainable: false`).",
        "Starts from teacher.safetensors (`path.pretrain.teacher`); entries that do not fit are left out",
        "A batch goes through the steps judging and making, in this order.",
        "Step judging trains judge. It trains in iterations that are a multiple of 2.",
        "Injector draft: generator with generator, reads lq (from the data) and writes sketch (without recording gradients).",
        "Injector noisy: add_noise, reads lq (from the data) and writes lq_noisy (in training only).",
        "The loss is pix + 0.1 * distil + 0.005 * fool + 0.25 * mark.",
        "fool: generator_gan with judge, weight 0.005, reads gen (from gen of making) and hq (from the data). "
        "Gate: iterations 20 to 79; while it is closed the loss is not computed.",
        "reads sketch (from draft of judging) and gen (from gen of making). Gate: every 4 iterations;",
        "No average of the weights is kept (`train.ema.enabled: false`).",
        "Runs every 30 iterations and at the end (`train.val_freq`), on val and other_pictures.",
        "leaving out 2 pixels at each side",
        "visuals/<key>/<step>.png for gen (`logger.visuals`): every 17 iterations",
    ):
        assert sentence in words, sentence


# -------------------------------------------------------------------------------------------------------------- learning rates


@pytest.mark.parametrize("scheme", ["one_cycle", "cosine", "MultiStepLR", "StepLR", None])
def test_learning_rates_are_those_of_the_trainer(scheme, tmp_path):
    options = {"MultiStepLR": ", gen_lr_steps: [3, 7], lr_gamma: 0.5", "StepLR": ", step_size: 4"}
    given = f"train.lr_scheme={{type: {scheme}{options.get(scheme, '')}}}" if scheme else "train.lr_scheme=null"
    config = configure(tmp_path, toys.PSNR, "train.niter=12", "train.warmup_iter=3", given)
    (rates,) = learning_rates(config)
    network = toys.ToyGenerator()
    optimizer = build_optimizer("adam", {"generator": network}, {"lr": 1e-2})
    named = {"type": scheme, **config.train.lr_scheme.options} if scheme else {"type": "constant"}
    schedule = build_schedule(named, optimizer, 12, warmup_iter=3)
    for s in range(12):
        schedule.apply(s)
        assert rates.at(s) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12), s
        optimizer.step()
    assert rates.peak()[1] == max(rates.at(s) for s in range(12))


def test_pieces_and_groups(many):
    judging, making, head = learning_rates(many)
    assert (judging.step, judging.schedule) == ("judging", "StepLR")
    assert (making.group, head.group) == ("", "head")
    assert head.at(30) == pytest.approx(2.5e-5)
    assert making.pieces() == [(0, 4e-5), (1, 8e-5), (2, pytest.approx(1.2e-4)), (3, 1.6e-4), (4, 2e-4), (25, 1e-4), (60, 5e-5)]


def test_pieces_are_found_exactly_in_a_long_run():
    (rates,) = learning_rates(load(ROOT / "options/train_rrdb_psnr.yml"))
    assert rates.pieces() == [(0, 2e-4), (200_000, 1e-4), (400_000, 5e-5), (600_000, 2.5e-5), (800_000, 1.25e-5)]


def test_rates_that_cannot_be_known_are_said_to_be_so(tmp_path):
    config = configure(tmp_path, toys.PSNR, "train.niter=1000000", "train.lr_scheme={type: StepLR, step_size: 9}")
    assert "stepped through" in learning_rates(config)[0].unknown
    assert "stepped through" in explain(config, "file.yml")
    assert "stepped through" in draw(config)
    config = configure(tmp_path, toys.PSNR, "steps.generator.optimizer=NAdam", "steps.generator.optimizer_params={}")
    assert "own default" in explain(config, "file.yml")


# -------------------------------------------------------------------------------------------------------------------- pictures


def test_the_picture_shows_everything(config):
    root = ET.fromstring(draw(config))
    assert root.tag == f"{SVG}svg"
    drawn = {kind: [g.get(f"data-{kind}") for g in root.iter(f"{SVG}g") if g.get(f"data-{kind}")] for kind in
             ("network", "band", "node", "key", "rates")}  # fmt: skip
    flows = [training_flow(config), validation_flow(config)]
    assert drawn["network"] == list(config.networks)
    assert drawn["rates"] == list(config.steps)
    assert drawn["band"] == [band.name for flow in flows for band in flow.bands]
    assert drawn["node"] == [node.id for flow in flows for node in flow.nodes()]
    assert drawn["key"] == [key for flow in flows for node in flow.nodes() for key in node.writes]
    reads = sum(len(node.reads) + len(node.writes) for flow in flows for node in flow.nodes())
    assert sum(path.get("class") == "arrow" for path in root.iter(f"{SVG}path")) == reads
    texts = [text.text for text in root.iter(f"{SVG}text")]
    for flow in flows:
        for node in flow.nodes():
            assert node.name in texts
            if node.gate:
                assert str(node.gate) in texts


def boxes_of_texts(root: ET.Element) -> list[tuple[str, float, float, float, float]]:
    found = []
    for text in root.iter(f"{SVG}text"):
        style = text.get("class", "")
        size = (
            11.5 if "small" in style else 19 if "head" in style else 14.5 if "title" in style else 12 if "key" in style else 13
        )
        width = text_width(text.text or "", size, bold="strong" in style, mono="key" in style)
        shift = {"middle": width / 2, "end": width}.get(text.get("text-anchor", ""), 0.0)
        x, y = float(text.get("x")) - shift, float(text.get("y"))
        found.append((text.text or "", x, y - 0.75 * size, x + width, y + 0.2 * size))
    return found


def test_no_text_lies_on_another_or_outside(config):
    root = ET.fromstring(draw(config))
    boxes = boxes_of_texts(root)
    for one, two in itertools.combinations(boxes, 2):
        apart = one[3] <= two[1] or two[3] <= one[1] or one[4] <= two[2] or two[4] <= one[2]
        assert apart, f"'{one[0]}' and '{two[0]}'"
    for words, left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0, words
        assert right <= float(root.get("width")) and bottom <= float(root.get("height")), words


def test_boxes_hold_their_texts_and_arrows_touch_no_other_box(config):
    root = ET.fromstring(draw(config))
    rects = []
    for group in root.iter(f"{SVG}g"):
        if group.get("data-node") or group.get("data-key"):
            rect = group.find(f"{SVG}rect")
            x, y, w, h = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
            rects.append((x, y, x + w, y + h))
            for words, left, top, right, bottom in boxes_of_texts(group):
                assert x <= left and right <= x + w and y <= top and bottom <= y + h, words
    for one, two in itertools.combinations(rects, 2):
        assert one[2] <= two[0] or two[2] <= one[0] or one[3] <= two[1] or two[3] <= one[1]
    for path in root.iter(f"{SVG}path"):
        if path.get("class") == "arrow":
            for x, y in sampled(path.get("d"))[1:-1]:
                inside = [r for r in rects if r[0] + 1 < x < r[2] - 1 and r[1] + 1 < y < r[3] - 1]
                assert inside == [], (x, y)


def sampled(path: str) -> list[tuple[float, float]]:
    """Points along a path of M, L and C."""
    points: list[tuple[float, float]] = []
    for command, text in re.findall(r"([MLC])([^MLC]+)", path):
        numbers = [float(n) for n in re.findall(r"-?[\d.]+", text)]
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        if command == "C":
            a, (b, c, d) = points[-1], pairs
            for i in range(1, 21):
                t = i / 20
                u = 1 - t
                x, y = (u**3 * a[k] + 3 * u**2 * t * b[k] + 3 * u * t**2 * c[k] + t**3 * d[k] for k in (0, 1))
                points.append((x, y))
        elif command == "L":
            start = points[-1]
            points += [tuple(start[k] + (pairs[0][k] - start[k]) * i / 20 for k in (0, 1)) for i in range(1, 21)]
        else:
            points += pairs
    return points


def test_names_are_escaped(tmp_path):
    config = configure(tmp_path, toys.PSNR.replace("name: toy", 'name: "a <b> & \\"c\\""').replace(" gen:", ' "<&>":'))
    texts = [text.text for text in ET.fromstring(draw(config)).iter(f"{SVG}text")]
    assert 'a <b> & "c"' in texts
    assert "<&>" in texts
    assert "#lt;#amp;#gt;" in mermaid(config)


def test_the_layout_keeps_bands_apart_and_boxes_of_a_column_apart():
    boxes = [Box("d", 0, -1, 50, 30), *(Box(f"{band}{i}", 1 + i % 3, band, 40, 20) for band in (0, 1) for i in range(9))]
    arrows = [("d", "01"), ("d", "12"), ("00", "15"), ("10", "11"), ("00", "02"), ("04", "05")]
    drawing = arrange(boxes, arrows, Spacing())
    (top, bottom), (next_top, next_bottom) = drawing.bands
    assert top < bottom < next_top < next_bottom <= drawing.height
    for box in boxes[1:]:
        upper, lower = drawing.bands[box.band]
        assert upper < box.y and box.y + box.height < lower
    for one, two in itertools.combinations(drawing.boxes.values(), 2):
        if one.layer == two.layer:
            assert one.y + one.height <= two.y + 1e-6 or two.y + two.height <= one.y + 1e-6
    for (start, end), points in drawing.arrows.items():
        assert points[0] == (drawing.boxes[start].right, drawing.boxes[start].middle)
        assert points[-1][0] == drawing.boxes[end].x
        assert [x for x, _ in points] == sorted(x for x, _ in points)


# --------------------------------------------------------------------------------------------------------------------- Mermaid

NODE = re.compile(r'^(f\d+n\d+)(\[\(".*"\)\]|\[".*"\]|\(\[".*"\]\)|\{\{".*"\}\})$')
LINK = re.compile(r'^(f\d+n\d+) -->\|"[^"|]+"\| (f\d+n\d+)$')
SUBGRAPH = re.compile(r'^subgraph f\d+s\d+\["[^"]+"\]$')


def test_mermaid_follows_its_grammar_and_has_every_node_and_key(config):
    lines = mermaid(config).splitlines()
    assert lines[0] == "flowchart LR"
    known: set[str] = set()
    depth = links = 0
    for line in map(str.strip, lines[1:]):
        if SUBGRAPH.match(line):
            depth += 1
        elif line == "end":
            depth -= 1
        elif link := LINK.match(line):
            links += 1
            assert {link[1], link[2]} <= known
        else:
            node = NODE.match(line)
            assert node, line
            assert line.count('"') == 2
            known.add(node[1])
        assert depth in (0, 1)
    assert depth == 0
    flows = [training_flow(config), validation_flow(config)]
    assert len(known) == sum(len(flow.nodes()) for flow in flows)
    for flow in flows:
        for node in flow.nodes():
            assert all(key in mermaid(config) for key in node.reads)
    assert links > 0


# --------------------------------------------------------------------------------------------------------------------- command


def test_the_command_needs_no_torch_for_closed_forms(tmp_path):
    picture = tmp_path / "run.svg"
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'codes')!r})\nfrom dlas.cli.main import main\n"
    code += f"status = main(['explain', '-opt', 'options/train_x.yml', '-o', {str(picture)!r}])\n"
    code += "sys.exit(status or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Step generator trains generator." in done.stdout
    assert ET.parse(picture).getroot().tag == f"{SVG}svg"


def test_the_command_prints_words_or_mermaid_and_takes_overrides(capsys, tmp_path):
    file = str(ROOT / "options/train_x.yml")
    assert main(["explain", "-opt", file, "--set", "train.niter=77"]) == 0
    assert "Runs 77 iterations" in capsys.readouterr().out
    assert main(["explain", "-opt", file, "--mermaid"]) == 0
    assert capsys.readouterr().out.startswith("flowchart LR\n")
    assert main(["explain", "-opt", file, "-o", str(tmp_path / "missing/run.svg")]) == 2
    assert "cannot be written" in capsys.readouterr().err
    assert main(["explain", "-opt", file, "--set", "train.nitre=7"]) == 2
    assert "did you mean 'niter'?" in capsys.readouterr().err


def test_a_file_for_testing_is_explained_too(tmp_path, capsys):
    file = str(ROOT / "options/eval.yml")
    given = ["--set", "path.run=null", "--set", "networks.n.which_model=RRDBNet",
             "--set", "eval.injectors={gen: {type: generator, generator: n, in: lq, out: gen}}"]  # fmt: skip
    assert main(["explain", "-opt", file, "--mode", "test", *given, "-o", str(tmp_path / "e.svg")]) == 0
    words = capsys.readouterr().out
    assert "tests trained networks" in words
    assert "experiments/eval_x/<set>" in words
    assert ET.parse(tmp_path / "e.svg").getroot().tag == f"{SVG}svg"


def test_sampling_torch_schedulers_leaves_the_random_state_alone(many):
    before = torch.random.get_rng_state()
    learning_rates(many)
    assert torch.random.get_rng_state().equal(before)
