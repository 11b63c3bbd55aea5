"""LAMB and LARS: optimisers for large batches that scale each layer's update by the size of its weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.optim.groups import parameter_groups
from dlas.registry import OPTIMIZERS
from dlas.types import Fraction, NonNegativeFloat, PositiveFloat

_MAX_WEIGHT_NORM = 10.0
"""Upper end of the range to which LAMB clips a layer's weight norm (phi in the paper); the lower end is 0."""


@OPTIMIZERS.register("lamb")
def lamb(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.01,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    eps: PositiveFloat = 1e-6,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Adam whose step is scaled, layer by layer, to the norm of the weights; for batches of thousands.

    Args:
        lr: learning rate.
        weight_decay: added to the Adam direction as ``weight_decay * w``.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment kept at each step.
        eps: added to the square root of the second moment.
        param_groups: options by group: ``{head: {match: "generator\\\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: biases, norm layers and embeddings are updated by AdamW without weight decay.

    Source: You et al., "Large Batch Optimization for Deep Learning", arXiv 1904.00962, algorithm 2.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias)
    for group in groups:
        group["adapt"] = not group["norm_or_bias"]
    return Lamb(groups, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)


@OPTIMIZERS.register("lars")
def lars(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.9,
    weight_decay: NonNegativeFloat = 0.0,
    lars_coefficient: PositiveFloat = 0.001,
    eps: PositiveFloat = 1e-8,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """SGD with momentum whose gradient is scaled, layer by layer, to the norm of the weights; for large batches.

    Args:
        lr: learning rate; also the largest one that a layer gets.
        momentum: share of the old direction kept at each step.
        weight_decay: added to the gradient as ``weight_decay * w``.
        lars_coefficient: length of a layer's step relative to the norm of its weights.
        eps: added to the denominator of the scale.
        param_groups: options by group: ``{head: {match: "generator\\\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: biases, norm layers and embeddings are updated by plain gradient descent: no momentum, no weight
            decay, no scaling.

    Source: You et al., "Large Batch Training of Convolutional Networks", arXiv 1708.03888, section 4.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias)
    for group in groups:
        group["adapt"] = not group["norm_or_bias"]
        if group["norm_or_bias"]:
            group.setdefault("momentum", 0.0)
    return Lars(groups, lr=lr, momentum=momentum, weight_decay=weight_decay, lars_coefficient=lars_coefficient, eps=eps)


class _ForeachOptimizer(Optimizer):
    """An optimiser that updates a whole group with multi-tensor operations and never waits for the device."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update. `closure`, where given, computes the loss and the gradients first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(group, parameters, [p.grad for p in parameters])
        return loss

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        raise NotImplementedError


class Lamb(_ForeachOptimizer):
    """LAMB. With m and v the moving averages of g and g², w the weights of a layer, lambda the weight decay::

        u = m / (sqrt(v) + eps) + lambda w
        w <- w - lr * r * u,    r = min(|w|, 10) / |u|,  or 1 where |w| or |u| is 0

    The moments are not corrected for their start at zero. Groups with ``adapt: False`` get AdamW instead: r = 1, and corrected.

    Args:
        params: parameters or groups.
        lr: learning rate.
        betas: shares of the old moments kept at each step.
        eps: added to the square root of the second moment.
        weight_decay: lambda.
        adapt: scale layer by layer.

    Source: arXiv 1904.00962, algorithm 2.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        adapt: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "adapt": adapt})

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        beta1, beta2 = group["betas"]
        states = [self.state[p] for p in parameters]
        for state, parameter in zip(states, parameters, strict=True):
            if not state:
                state.update(step=0, exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
            state["step"] += 1
        first = [state["exp_avg"] for state in states]
        second = [state["exp_avg_sq"] for state in states]
        torch._foreach_lerp_(first, gradients, 1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, 1 - beta2)

        denominators = torch._foreach_sqrt(second)
        if not group["adapt"]:
            torch._foreach_div_(denominators, [math.sqrt(1 - beta2 ** state["step"]) for state in states])
        torch._foreach_add_(denominators, group["eps"])
        updates = torch._foreach_div(first, denominators)
        if not group["adapt"]:
            torch._foreach_div_(updates, [1 - beta1 ** state["step"] for state in states])
        torch._foreach_add_(updates, parameters, alpha=group["weight_decay"])
        if group["adapt"]:
            weights, sizes = _norms(parameters).clamp(max=_MAX_WEIGHT_NORM), _norms(updates)
            ratios = torch.where((weights > 0) & (sizes > 0), weights / sizes, 1.0)
            torch._foreach_mul_(updates, ratios.unbind())
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])


class Lars(_ForeachOptimizer):
    """LARS, with the layer's rate clipped to the learning rate. With w the weights of a layer, g their gradient, lambda the
    weight decay and c the coefficient::

        rate = c |w| / (|g| + lambda |w| + eps)
        u = (g + lambda w) * min(rate / lr, 1)        (the factor is 1 where |w| is 0, or w could never leave 0)
        b <- momentum * b + u,    w <- w - lr * b

    Groups with ``adapt: False`` are not scaled: plain SGD.

    Args:
        params: parameters or groups.
        lr: learning rate.
        momentum: share of b kept.
        weight_decay: lambda.
        lars_coefficient: c.
        eps: keeps the rate finite.
        adapt: scale layer by layer.

    Source: arXiv 1708.03888, equations 5 and 6; the clipping keeps a layer's rate from exceeding the global one.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        lars_coefficient: float = 0.001,
        eps: float = 1e-8,
        adapt: bool = True,
    ) -> None:
        defaults = {"momentum": momentum, "weight_decay": weight_decay, "lars_coefficient": lars_coefficient, "eps": eps}
        super().__init__(params, {"lr": lr, **defaults, "adapt": adapt})

    def _update(self, group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        lr, weight_decay = group["lr"], group["weight_decay"]
        updates = torch._foreach_add(gradients, parameters, alpha=weight_decay)  # a copy: gradients are the caller's
        if group["adapt"]:
            weights, sizes = _norms(parameters), _norms(gradients)
            rates = group["lars_coefficient"] * weights / (sizes + weight_decay * weights + group["eps"])
            factors = torch.where(weights > 0, (rates / lr).clamp(max=1.0), 1.0)  # lr = 0 gives infinity, then 1
            torch._foreach_mul_(updates, factors.unbind())
        if group["momentum"] > 0:
            states = [self.state[p] for p in parameters]
            for state, parameter in zip(states, parameters, strict=True):
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(parameter)
            buffers = [state["momentum_buffer"] for state in states]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, updates)
            torch._foreach_add_(parameters, buffers, alpha=-lr)
        else:
            torch._foreach_add_(parameters, updates, alpha=-lr)


def _norms(tensors: Sequence[Tensor]) -> Tensor:
    """(len(tensors),), in float32, or float64 if one of the tensors is."""
    dtype = reduce(torch.promote_types, {tensor.dtype for tensor in tensors}, torch.float32)
    return torch.stack(torch._foreach_norm(list(tensors), 2, dtype=dtype))
