"""What fixtures of TorToiSe's networks have in common: weights and inputs in the file itself, a configuration in the JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dlas.archs import create_network
from parity.harness import Fixture, compare

Results = Mapping[str, Tensor | Callable[[], Tensor]]


def stored(fixture: Fixture, prefix: str) -> dict[str, Tensor]:
    """Tensors of a file whose names begin with ``prefix.``, without it."""
    return {
        name.removeprefix(f"{prefix}."): tensor for name, tensor in fixture.tensors.items() if name.startswith(f"{prefix}.")
    }


def build(fixture: Fixture, name: str, config: Mapping[str, Any], **more: Any) -> nn.Module:
    """A network with the weights of the file, whose names must be exactly its own; in evaluation mode."""
    network = create_network({"which_model": name, **config, **more})
    network.load_state_dict(stored(fixture, "w"), strict=True)
    return network.eval()


def gradient_norms(network: nn.Module) -> dict[str, float]:
    """Euclidean norm of each parameter's gradient, of those that have one."""
    return {name: p.grad.norm().item() for name, p in network.named_parameters() if p.grad is not None}


def check_norms(found: Mapping[str, float], expected: Mapping[str, float], floor: float = 1e-7) -> None:
    """Compares norms of gradients; `floor` is for those that are zero but for rounding."""
    assert found.keys() >= {name for name, norm in expected.items() if norm > 0}
    for name, norm in expected.items():
        torch.testing.assert_close(found.get(name, 0.0), norm, rtol=1e-3, atol=floor, msg=lambda m, name=name: f"{name}: {m}")


def check_output(results: Results, fixture: Fixture, case: str) -> None:
    """Compares one of the reference's outputs or gradients, ``out.<case>`` or ``grad.<name>``."""
    assert case in results, f"no comparison for the reference output '{case}'"
    found = results[case]
    found = found() if callable(found) else found
    expected = fixture.tensors[case if case.startswith("grad.") else f"out.{case}"]
    floor = fixture.json.get("noise_floor_max_abs_diff", {}).get(f"out.{case}", 0.0)
    kind = "gradient" if case.startswith("grad.") else "output" if expected.is_floating_point() else "exact"
    if kind == "output" and floor > 1e-5:  # rounding alone makes more than the common tolerance here
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=5 * floor, msg=lambda m: f"{case}: {m}")
        return
    compare(found, expected, kind, case)


def cases(fixture: Fixture) -> list[str]:
    """Every output and gradient of a file, and the norms of gradients."""
    gradients = sorted(name for name in fixture.tensors if name.startswith("grad."))
    return [*fixture.outputs, *gradients, *sorted(key for key in fixture.json if key.startswith("grad_l2_norms"))]
