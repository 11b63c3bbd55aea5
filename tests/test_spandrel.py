"""Checkpoints are those that other programs read and write: `spandrel`, which knows the field's networks by their keys.

For each family: what ours saves is recognised and run by spandrel with the same result, and what spandrel's network of the same
settings saves is loaded and run by ours with the same result.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dlas.archs import create_network
from dlas.compat.torchvision import prepare_torchvision
from dlas.interop.state_dicts import load_into
from families import CASES

prepare_torchvision()
spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed; the extra 'test' has it")
pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid")  # in its networks


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> tuple[str, nn.Module, list[Tensor]]:
    """The family, our network with random weights, and pictures to try it on."""
    family, name, options = request.param
    torch.manual_seed(0)
    network = create_network({"which_model": name, **options}).eval()
    scramble(network, 0.1)
    sides = [(17, 22)]
    if "img_size" in options:  # masks of this size are stored, others are made
        sides.append((options["img_size"], options["img_size"]))
    # spandrel's ESRGAN pads for the unshuffling of pixels by multiples that ours refuses
    multiple = getattr(network, "unshuffle", 1) if name == "RRDBNet" else 1
    return family, network, [torch.rand(1, 3, *(side // multiple * multiple for side in pair)) for pair in sides]


def scramble(network: nn.Module, deviation: float) -> None:
    """So that no gain, shift, temperature or running statistic is what it is at first."""
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim == 1 or weight.numel() < 10:
                weight.add_(deviation * torch.randn_like(weight))
        for key, value in network.named_buffers():
            if "running" in key:
                value.uniform_(0.5, 1.5)


def run(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x.clone())  # some of spandrel's networks change their input


def loaded(network: nn.Module) -> Any:
    return spandrel.ModelLoader().load_from_state_dict(dict(network.state_dict()))


def test_spandrel_reads_and_runs_ours(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    family, network, pictures = case
    theirs = loaded(network)
    assert theirs.architecture.id == family
    for x in pictures:
        expected = run(network, x)
        assert expected.shape[-1] == theirs.scale * x.shape[-1]
        assert expected.std() > 1e-3, "the comparison would say nothing"
        torch.testing.assert_close(run(theirs.model.eval(), x), expected, rtol=1e-4, atol=1e-5)


def test_ours_reads_and_runs_what_spandrel_makes(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    """Constants in the state dict, such as masks, are theirs here: nothing of them was copied from ours."""
    _, network, pictures = case
    known = loaded(network).model
    torch.manual_seed(1)
    theirs = type(known)(**known.hyperparameters).eval()
    scramble(theirs, 0.1)
    load_into(network, theirs.state_dict(), source="spandrel")
    for x in pictures:
        torch.testing.assert_close(run(network, x), run(theirs, x), rtol=1e-4, atol=1e-5)


def test_constants_are_spandrels(case: tuple[str, nn.Module, list[Tensor]]) -> None:
    _, network, _ = case
    known = loaded(network).model
    theirs = type(known)(**known.hyperparameters).state_dict()
    rename = getattr(network, "rename_state_dict", dict)
    parameters = dict(network.named_parameters())
    constants = {k: v for k, v in rename(theirs).items() if k not in parameters and "running" not in k}
    for key, value in constants.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=0, atol=1e-7, msg=key)
