"""The parity tests must not pass by silence: unknown files fail, wrong numbers fail, other sizes of a known kind are tested."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dlas.archs import create_network
from parity.harness import Fixture, Handler, find_fixtures, load_handlers, make_tests
from parity.not_built_yet import NOT_BUILT_YET
from parity.weights import build_weight


def write_fixture(folder: Path, stem: str, content: Mapping[str, Any], tensors: Mapping[str, Tensor] | None = None) -> Fixture:
    (folder / "sr").mkdir(exist_ok=True)
    path = folder / "sr" / f"{stem}.json"
    path.write_text(json.dumps(content))
    if tensors is not None:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path.with_suffix(".safetensors"))
    return Fixture(path, "sr")


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no folder .*nothing.*DLAS_PARITY_DIR"):
        find_fixtures(tmp_path / "nothing")


def test_empty_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "sr").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no golden_\*\.json"):
        find_fixtures(tmp_path)


def test_unknown_kind_fails(tmp_path: Path) -> None:
    (test,) = make_tests(write_fixture(tmp_path, "golden_from_another_world", {}), load_handlers())
    assert test.problem.startswith("no test for ")
    assert not test.skip


def test_family_not_built_yet_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOT_BUILT_YET, "sr/golden_later*", "what comes later")
    (test,) = make_tests(write_fixture(tmp_path, "golden_later_tiny", {}), load_handlers())
    assert test.skip == "not built yet: what comes later"


def test_damaged_file_fails_alone(tmp_path: Path) -> None:
    fixture = write_fixture(tmp_path, "golden_rrdbnet_x4_damaged", {})
    fixture.path.write_text("{")
    (test,) = make_tests(fixture, load_handlers())
    assert "cannot be read" in test.problem


def test_handlers_may_share_a_file_but_no_case_of_it(tmp_path: Path) -> None:
    fixture = write_fixture(tmp_path, "golden_shared", {})

    def handler(*cases: str) -> Handler:
        return Handler(("golden_shared",), lambda _: cases, lambda _: True, lambda _, case: None)

    assert [test.case for test in make_tests(fixture, [handler("a", "b"), handler("c")])] == ["a", "b", "c"]
    (test,) = make_tests(fixture, [handler("a", "b"), handler("b")])
    assert "more than one handler claims 'b'" in test.problem


def test_no_family_is_both_built_and_not(tmp_path: Path) -> None:
    for pattern in NOT_BUILT_YET:
        group, _, stem = pattern.replace("*", "_x").partition("/")
        path = tmp_path / f"{stem}.json"
        path.write_text("{}")
        assert not [handler for handler in load_handlers() if handler.fits(Fixture(path, group))], pattern


@pytest.mark.parametrize("scale", [4, 8])
def test_other_configurations_of_a_known_kind_are_compared(tmp_path: Path, scale: int) -> None:
    """A file made here, of another width, depth and image size; then the same with one wrong number."""
    constructor = {"in_channels": 1, "mid_channels": 8, "num_blocks": 3, "growth_channels": 4, "scale": scale}
    options = {"in_nc": 1, "nf": 8, "nb": 3, "gc": 4, "scale": scale, "long_skip": "trunk"}
    network = create_network({"which_model_G": "RRDBNet", **options})
    weights = {
        key: {"rule": "affine", "shape": list(value.shape), "dtype": "float32", "offset": 0.0, "scale": 0.1, "seed": seed}
        for seed, (key, value) in enumerate(network.state_dict().items())
    }
    network.load_state_dict({key: build_weight(key, entry, {}) for key, entry in weights.items()})
    x = torch.rand(1, 1, 5, 7, requires_grad=True)
    y = network(x)
    tensors = {"in.x": x, "in.g": torch.rand_like(y), "out.y": y}
    (y * tensors["in.g"]).sum().backward()
    tensors |= {"out.grad_x": x.grad, "out.grad.body.2.rdb3.conv5.weight": network.body[2].rdb3.conv5.weight.grad}
    content = {"source": "DLAS, another commit", "constructor": constructor, "weights": weights}
    tests = make_tests(write_fixture(tmp_path, "golden_rrdbnet_other", content, tensors), load_handlers())
    assert [test.id for test in tests] == [
        "sr-golden_rrdbnet_other-grad.body.2.rdb3.conv5.weight",
        "sr-golden_rrdbnet_other-grad_x",
        "sr-golden_rrdbnet_other-y",
    ]
    for test in tests:
        test.check(test.fixture, test.case)

    tensors["out.y"] = y.detach().clone()
    tensors["out.y"][0, 0, 1, 2] += 1e-3
    *_, test = make_tests(write_fixture(tmp_path, "golden_rrdbnet_wrong", content, tensors), load_handlers())
    with pytest.raises(AssertionError, match="y: "):
        test.check(test.fixture, test.case)


def test_weight_that_is_not_the_reference_is_refused() -> None:
    entry = {"rule": "const", "shape": [2], "dtype": "float32", "value": 1, "sha256_16": "0" * 16}
    with pytest.raises(ValueError, match="has checksum"):
        build_weight("conv.weight", entry, {})


def test_unknown_weight_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown rule 'guess'"):
        build_weight("conv.weight", {"rule": "guess", "shape": [2], "dtype": "float32", "seed": 1, "scale": 1.0}, {})
