"""What networks trained by BYOL (Bootstrap Your Own Latent) have in common, whatever they compare.

Grill et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning" (arXiv:2006.07733). An online network
(sub-network, projector, predictor) predicts what a target network (sub-network, projector) makes of another view of the same
picture. The target is a moving average of the online network, and gradients do not reach it.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dlas.errors import ConfigurationError

_ONLINE = "online_encoder.net."


def mlp(channels: int, out: int, hidden: int) -> nn.Sequential:
    """Projector and predictor: (N, channels) -> (N, out)."""
    return nn.Sequential(nn.Linear(channels, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, out))


class Encoder(nn.Module):
    """A network up to one of its layers. What lies behind that layer is computed, and not trained.

    Args:
        net: the network.
        layer: name of the layer (`layer4.0` is one, too), or its place among the network's direct children.
        sample: pictures that the network takes, for the shapes; one at least.

    Attributes:
        shape: of the layer's output for one of these pictures, (C, ...).

    Raises:
        ConfigurationError: there is no such layer, it is not reached, or gives no tensor.
    """

    def __init__(self, net: nn.Module, layer: str | int, sample: Tensor) -> None:
        super().__init__()
        self.net = net
        self.layer = _layer_name(net, layer)
        net.eval()
        with torch.enable_grad():
            hidden = self.hidden(sample)
            weights = [weight for weight in net.parameters() if weight.requires_grad]
            used = torch.autograd.grad(hidden.sum(), weights, allow_unused=True)
        net.train()
        for weight, gradient in zip(weights, used, strict=True):
            weight.requires_grad_(gradient is not None)
        self.shape = hidden.shape[1:]

    def hidden(self, pictures: Tensor) -> Tensor:
        """What the layer gives for (B, 3, H, W): (B, C, ...)."""
        found: list[Any] = []
        handle = self.net.get_submodule(self.layer).register_forward_hook(lambda module, inputs, output: found.append(output))
        try:
            self.net(pictures)
        finally:
            handle.remove()
        if len(found) != 1 or not isinstance(found[0], Tensor):
            what = f"was run {len(found)} times" if len(found) != 1 else f"gives a {type(found[0]).__name__}"
            raise ConfigurationError(f"hidden_layer: '{self.layer}' {what} in one pass; name a layer that gives one tensor")
        return found[0]


def _layer_name(net: nn.Module, layer: str | int) -> str:
    children = [name for name, _ in net.named_children()]
    if isinstance(layer, int):
        if not -len(children) <= layer < len(children):
            raise ConfigurationError(f"hidden_layer: the subnet has {len(children)} layers, none of number {layer}")
        return children[layer]
    if layer not in dict(net.named_modules()) or not layer:
        raise ConfigurationError(f"hidden_layer: the subnet has no layer '{layer}'; its layers: {', '.join(children)}")
    return layer


class BootstrapNetwork(nn.Module):
    """Online and target network; base class.

    Args:
        encoder: sub-network up to the hidden layer, and a projector behind it.
        predictor: of projections.
        decay: share of the target that an update of the online network leaves.
    """

    online_encoder: Encoder

    def __init__(self, encoder: Encoder, predictor: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.online_encoder = encoder
        self.online_predictor = predictor
        self.target_encoder = copy.deepcopy(encoder).requires_grad_(False)

    @property
    def checkpointing(self) -> bool:
        """Whether sub-networks that offer it recompute activations in the backward pass."""
        return any(getattr(module, "checkpointing", False) is True for module in self.online_encoder.modules())

    @checkpointing.setter
    def checkpointing(self, on: bool) -> None:
        for module in self.online_encoder.modules():
            if hasattr(module, "checkpointing"):
                module.checkpointing = on  # type: ignore[assignment]  # nn.Module's attributes are typed as tensors

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the target towards the online network. Statistics of batch normalisation are each network's own."""
        targets: list[Tensor] = list(self.target_encoder.parameters())
        online: list[Tensor] = list(self.online_encoder.parameters())
        torch._foreach_lerp_(targets, online, 1 - self.decay)

    def compare(self, views: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, Tensor]:
        """The loss of both directions, a scalar in float32 from 0 to 8, and the spread of the projections.

        Args:
            views: of the two, what the encoders take.
        """
        projections = [self.online_encoder(*view) for view in views]
        with torch.no_grad():
            targets = [self.target_encoder(*view) for view in views]
        one, two = (self.online_predictor(each) for each in projections)
        loss = (prediction_error(one, targets[1]) + prediction_error(two, targets[0])).mean()
        return loss, spread(projections)


def prediction_error(prediction: Tensor, target: Tensor) -> Tensor:
    """2 - 2 cos of predictions (N, D) and what the target gives, (N, D): (N,) in float32."""
    return 2 - 2 * F.cosine_similarity(prediction.float(), target.detach().float(), dim=-1)


def spread(projections: Iterable[Tensor]) -> Tensor:
    """How far projections (N, D) of a batch differ in direction: 0 where all are the same (collapse), 1 where they are spread
    evenly over the sphere; the standard deviation of normalised projections times sqrt(D), a mean over what is given."""
    found = [F.normalize(each.detach().float(), dim=-1) for each in projections]
    return torch.stack([(each.std(0, correction=0) * each.shape[-1] ** 0.5).mean() for each in found]).mean()


def without_byol(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Of the state dict of a network that BYOL trained, the sub-network's; any other as it is."""
    found = {key.removeprefix(_ONLINE): value for key, value in state_dict.items() if key.startswith(_ONLINE)}
    return found or dict(state_dict)
