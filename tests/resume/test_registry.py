"""Whatever is registered resumes exactly: nobody has to remember a test for it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

import dlas
import resume.served  # noqa: F401  # registers its components
import toys
from dlas.registry import ARCHS, OPTIMIZERS
from resume.harness import differences
from runs import trainer
from test_training import interrupt_after

PACKAGE = Path(dlas.__file__).parent


def assert_resumes(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str, *overrides: str) -> Path:
    """Four iterations equal two, a restart and two; returns the last checkpoint."""
    name = yaml.safe_load(text)["name"]
    overrides = (*overrides, "train.niter=4", "train.val_freq=0", "logger.save_checkpoint_freq=2", "logger.print_freq=3")
    for each in ("whole", "halves"):
        (folder / each).mkdir()
    trainer(folder / "whole", text, *overrides).run()
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2)
        assert trainer(folder / "halves", text, *overrides).run().step == 2
    assert trainer(folder / "halves", text, *overrides).run().step == 4
    assert differences(folder / "whole" / name, folder / "halves" / name) == []
    return folder / "whole" / name / "checkpoints/4"


@pytest.mark.parametrize("name", list(ARCHS.entries()))
def test_every_network_resumes_exactly(tmp_path, monkeypatch, name):
    """Weights, buffers, averages, moments and the log row that the restart cuts in two."""
    options, inputs = ARCHS.get(name).tiny()
    scale = ARCHS.find(name).parameter("scale")
    if scale is not None and not scale.required:  # the file's own would take its place
        options = {"scale": scale.default, **options}
    text = yaml.safe_dump({
        "name": "network",
        "datasets": {"train": {"mode": "toy_inputs", "which": name}},
        "networks": {"net": {"which_model": name, **yaml.safe_load(yaml.dump(options, Dumper=_Plain))}},
        "steps": {
            "net": {
                "training": "net",
                "optimizer": "adam",
                "optimizer_params": {"lr": 1e-3},
                "injectors": {
                    "run": {
                        "type": "generator",
                        "generator": "net",
                        "in": [f"input{place}" for place in range(len(inputs))],
                        "out": "result",
                    }
                },
                "losses": {"size": {"type": "toy_mean_square", "weight": 1, "in": "result"}},
            }
        },
        "train": {"niter": 4, "ema": {"rate": 0.5}},
        "eval": {"output_state": "result", "metrics": []},
        "logger": {"tensorboard": False},
    })  # fmt: skip
    last = assert_resumes(tmp_path, monkeypatch, text)
    first = load_file(last.parent / "2/net.safetensors")
    assert any(not value.equal(first[key]) for key, value in load_file(last / "net.safetensors").items())  # it has learnt


class _Plain(yaml.SafeDumper):
    """Tuples are lists."""


_Plain.add_representer(tuple, lambda dumper, value: dumper.represent_list(value))


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.entries().keys() - toys.NEED_APEX))
def test_every_optimizer_resumes_exactly_from_a_file(tmp_path, monkeypatch, name):
    options = ("steps.generator.optimizer=" + name, "steps.generator.optimizer_params={lr: 1e-3}")
    assert_resumes(tmp_path, monkeypatch, toys.PSNR, *options)


# ---- randomness: a function of the seed, the sample and the step, in all that is there and all that will come ----------------

DRAWS = {
    *("rand", "randn", "randint", "randperm", "rand_like", "randn_like", "randint_like", "normal", "bernoulli", "multinomial"),
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_", "cauchy_", "geometric_", "poisson"),
    *("choice", "choices", "shuffle", "sample", "random", "uniform", "gauss", "permutation", "standard_normal"),
    *("trunc_normal_", "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
}
ADDRESSED = {"context", "rng", "self.rng", "request"}  # names of what draws by sample or has been seeded so


def unaddressed_draws(source: str) -> list[str]:
    """Calls that draw from a generator that all parts of a process share, or that nobody has seeded."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(keyword.arg == "generator" for keyword in node.keywords):
            continue
        holder, _, name = ast.unparse(node.func).rpartition(".")
        shared = re.fullmatch(r"(torch|np|numpy|random|F|nn|functional)(\.\w+)*", holder)
        if (name in DRAWS and (shared or (name.endswith("_") and holder not in ADDRESSED))) or (
            name in {"default_rng", "RandomState", "Random"} and not node.args
        ):
            found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    "path",
    sorted(path for part in ("injectors", "losses", "data") for path in (PACKAGE / part).rglob("*.py")),
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_nothing_draws_from_a_shared_generator(path):
    """`Context.randn`, `Context.rand` and `Request.rng` are for that: their numbers do not depend on what was drawn before."""
    assert unaddressed_draws(path.read_text()) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("torch.randn(3)", True),
        ("torch.randn(3, generator=g)", False),
        ("np.random.rand()", True),
        ("random.choice(x)", True),
        ("np.random.default_rng()", True),
        ("np.random.default_rng(mix_seed(1, 2)).permutation(3)", False),
        ("x.uniform_(0, 1)", True),
        ("F.dropout(x, 0.1)", True),
        ("context.rand((2,), 's', device)", False),
        ("request.rng().random()", False),
        ("rng.choice(x)", False),
    ],
)
def test_shared_generators_are_recognised(source, found):
    assert bool(unaddressed_draws(source)) == found
