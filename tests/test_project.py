"""Rules of the project as a whole: layers, options that are read, shipped files that work."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest
import torch

import dlas.config.schema as schema
import toys
from dlas.config import check, load, to_yaml
from dlas.config.deepspeed_json import deepspeed_json
from dlas.engine.compiling import compile_networks
from dlas.engine.distributed.ddp import DataParallel
from dlas.engine.distributed.fsdp import FullySharded
from dlas.engine.distributed.launch import Launch, open_group
from dlas.engine.encoding import encode_data_sets
from dlas.engine.health.policy import StepHealth
from dlas.engine.testing import run_test
from dlas.engine.trainer import Trainer
from dlas.observe import run_folder
from dlas.registry import REGISTRIES
from runs import batches, configure, trainer
from test_latents import ahead
from test_training import assert_losses_reach_their_networks

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "codes/dlas"

# Which layer each part of the package is in; imports point to lower numbers only, or stay within a part.
LAYERS = {
    **dict.fromkeys(["types", "errors", "host"], 0),
    **dict.fromkeys(["registry", "context", "ranks"], 1),
    **dict.fromkeys(["config", "compat", "layers", "diffusion", "degradations"], 2),
    **dict.fromkeys(["injectors", "losses", "data", "metrics", "optim", "observe", "archs", "interop"], 3),
    "explain": 4,
    "engine": 4,
    "inference": 5,
    "cli": 6,
}
WITHOUT_TORCH = {"types", "errors", "registry", "config", "explain", "cli"}


def part_of(module: str) -> str:
    return module.split(".")[1] if module.count(".") else ""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Imported modules, and whether that happens when the file is imported."""
    tree = ast.parse(path.read_text())
    top = {id(node) for node in tree.body}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.module, id(node) in top))
        elif isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = parts[0]
    if own in ("__init__", "__main__"):
        return
    for module, at_import in imports(path):
        if module.split(".")[0] == "dlas" and part_of(module) not in ("", own):
            assert LAYERS[part_of(module)] < LAYERS[own], f"{own} must not import {module}"
        if own in WITHOUT_TORCH and at_import:
            assert module.split(".")[0] != "torch", f"{own} must not import torch"


ENTRIES = [entry for registry in REGISTRIES for entry in registry.entries().values() if entry.source.startswith("dlas.")]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda e: f"{e.kind}-{e.name}")
def test_every_option_of_a_component_is_used_and_described(entry):
    path = ROOT / "codes" / (entry.source.replace(".", "/") + ".py")
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    nodes = {node.name: node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    node = nodes[entry.attribute]
    while isinstance(node, ast.ClassDef) and not any(getattr(c, "name", "") == "__init__" for c in node.body):
        node = nodes[node.bases[0].id]
    function = node if isinstance(node, ast.FunctionDef) else next(c for c in node.body if getattr(c, "name", "") == "__init__")
    used = {n.id for statement in function.body for n in ast.walk(statement) if isinstance(n, ast.Name)}
    for parameter in entry.parameters:
        assert parameter.name in used, f"the option '{parameter.name}' changes nothing"
        described = f"{parameter.name.rstrip('_')}:" in entry.doc or f"{parameter.name}:" in entry.doc
        assert described, f"the option '{parameter.name}' is not described in the docstring"
    assert entry.doc, "no docstring"


def test_every_key_of_a_file_is_read(tmp_path, monkeypatch):
    """Trains and tests with every section present, and watches which keys are looked at."""
    read: set[tuple[str, str]] = set()
    for cls in schema.SECTIONS.values():

        def watch(self, name, cls=cls):
            read.add((cls.__name__, name))
            return object.__getattribute__(self, name)

        monkeypatch.setattr(cls, "__getattribute__", watch, raising=False)
    config = configure(tmp_path, toys.PSNR, "train.niter=2", "logger.visuals=[gen]", "logger.visual_debug_rate=1",
                       "checkpointing_enabled=true", "checkpoints.keep_best={metric: psnr}",
                       "train.health={spike: skip}", "train.ema.post_hoc={every: 1}",
                       "networks.generator.freeze={all: {match: '', before: 0}}",
                       "networks.generator.switched={layers: [last], dropout: 0}",
                       "networks.generator.lora={targets: [first]}",
                       "train.mega_batch_factor=2", "train.noise_scale={}", "profile={after: 0, steps: 1}",
                       "train.batch_size_optimizer={type: gradient_direction, max_full_batches: 1}",
                       "steps.generator.balance.at=gen")  # fmt: skip
    resolved = to_yaml(config)
    monkeypatch.setattr(run_folder, "to_yaml", lambda _: resolved)
    encoding = configure(tmp_path, ahead(tmp_path), "name=encoding")
    read.clear()  # loading, checking and writing the file down do not count
    Trainer(config).run()
    for policy in ("skip", "reduce_lr", "rollback"):  # limits are looked at when an update is bad
        StepHealth().decide("loss", schema.HealthConfig(non_finite=policy), [], 0)
    encode_data_sets(encoding)
    config.device = "cpu"
    open_group(config, Launch(address="127.0.0.1:0"))
    optimizer = torch.optim.SGD([torch.zeros(1)])
    for strategy in DataParallel(config, torch.device("cpu")), FullySharded(config, torch.device("cpu")):
        strategy.exchange("generator", {}, optimizer, 0.0)
    deepspeed_json(config, "generator", 0.0, 1)
    config.compile = schema.CompileConfig()
    with compile_networks(config, {"net": torch.nn.Identity()}, torch.device("cpu")).evaluating():
        pass
    torch.distributed.destroy_process_group()
    evaluation = "name: e\ndatasets:\n  val: {mode: toy_pairs}\n"
    path = tmp_path / "e.yml"
    path.write_text(evaluation)
    weights = f"path.pretrain.generator={tmp_path}/toy/checkpoints/2/generator.safetensors"
    run_test(load(path, [f"path.run={tmp_path}/toy", f"path.experiments={tmp_path}", weights], mode="test"))
    unread = {(name, f.name) for name, cls in schema.SECTIONS.items() for f in schema_fields(cls)} - read
    # `plugins` is used while the file is read; a network's role is for people and listings.
    assert unread == {("Config", "plugins"), ("NetworkConfig", "type")}


def schema_fields(cls):
    return [f for f in fields(cls) if not f.metadata.get("internal")]


OPTIONS = sorted([*(ROOT / "options").glob("*.yml"), *(ROOT / "recipes").rglob("*.yml")])
SMALL = {"train_x.yml", "train_gan_x.yml"}


def named(path):
    return str(path.relative_to(ROOT).as_posix())


def is_small(path):
    """Whether a shipped file is one for a CPU and the built-in photographs."""
    return path.name in SMALL or "small" in path.name


@pytest.mark.parametrize("path", OPTIONS, ids=named)
def test_shipped_files_are_right_and_explain_themselves(path):
    mode = "test" if path.name.startswith("eval") else "train"
    run = ["path.run=null", "networks.n.which_model=RRDBNet", "scale=4"]  # in place of the run that the file names
    run.append("eval.injectors.gen={type: generator, generator: n, in: lq, out: gen}")
    overrides = run if mode == "test" else []
    assert [str(p) for p in check(path, overrides, mode)] == []
    head = path.read_text().split("\n\n")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    for word in ("command", "result"):
        assert word in head


def shrunk(path, tmp_path):
    """What a file for minutes has to be told to take seconds, and to start without the stage before it and without weights."""
    settings = [f"path.experiments={tmp_path}", "path.pretrain={}", "datasets.train.batch_size=2", "train.val_freq=0"]
    config = load(path, settings)
    if config.encode is not None:
        settings.append(f"datasets.train.folder={tmp_path}/encoded")
        encode_data_sets(load(path, settings))
    before = [(name, key) for name, network in config.networks.items() for key in network.options if key.startswith("pretrain")]
    settings += [f"networks.{name}.{key}=null" for name, key in before]
    losses = [(s, name, loss) for s, step in config.steps.items() for name, loss in step.losses.items()]
    settings += [f"steps.{s}.losses.{name}.random_weights=true" for s, name, loss in losses if loss.type == "feature"]
    for name, section in config.datasets.items():  # of MNIST's, which have to be downloaded, scikit-learn's take the place
        settings += [f"datasets.{name}.dataroot=null"] if section.mode == "digits" else []
    return load(path, [*settings, "eval.metrics=[psnr_y]"])


@pytest.mark.parametrize("path", [p for p in OPTIONS if is_small(p)], ids=named)
def test_small_shipped_files_train_what_they_say(path, tmp_path):
    run = Trainer(shrunk(path, tmp_path))
    assert_losses_reach_their_networks(run)
    run.progress.step = max(step.runs.after for step in run.steps)
    before = {n: [p.detach().clone() for p in net.parameters()] for n, net in run.networks.items()}
    for batch in batches(run, 2):
        run.iterate(batch)
    for name, network in run.networks.items():
        if not run.config.networks[name].trainable:
            continue
        assert any(not p.equal(q) for p, q in zip(network.parameters(), before[name], strict=True)), name


def test_the_quick_start_starts_from_bicubic(tmp_path):
    run = Trainer(load(ROOT / "options/train_x.yml", [f"path.experiments={tmp_path}"]))
    means = run.validation.evaluator.run(run.datasets["val"], 0, lambda result: None).means
    assert means["psnr_y"] == pytest.approx(means["bicubic_psnr_y"], abs=0.02)


def test_the_file_of_a_run_tests_it_too(tmp_path):
    path = tmp_path / "options.yml"
    path.write_text(toys.PSNR)  # with an older spelling of which_model
    trainer(tmp_path, toys.PSNR).run()
    results = run_test(load(path, [f"path.run={tmp_path}/toy", f"path.experiments={tmp_path}", "name=tested"], mode="test"))
    assert results["val"].means["psnr"] > 0
