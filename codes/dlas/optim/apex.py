"""Optimisers of NVIDIA's apex by their names: its own classes where it is installed, what torch has in their place elsewhere.

Source: apex.optimizers of github.com/NVIDIA/apex, for names, options and their defaults.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from dlas.errors import MissingPackageError
from dlas.optim.groups import parameter_groups
from dlas.optim.layerwise import lamb
from dlas.optim.optimizers import any_decay, construct_optimizer, moment_shares
from dlas.registry import OPTIMIZERS
from dlas.types import Fraction, NonNegativeFloat, PositiveFloat

_LOG = logging.getLogger(__name__)
_FUSED = " with its fused kernel"


@OPTIMIZERS.register("fused_adam", "FusedAdam", "apex.optimizers.FusedAdam")
def fused_adam(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    adam_w_mode: bool = True,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Apex's FusedAdam where apex is installed and the networks are on a CUDA device, else torch's own fused kernel.

    Args:
        lr: learning rate.
        weight_decay: as in `adamw`, or as in `adam` where `adam_w_mode` is false.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment kept at each step.
        betas: [beta1, beta2], in place of the two.
        eps: added to the square root of the second moment.
        adam_w_mode: decoupled weight decay; false adds an L2 penalty to the gradient.
        param_groups: options by group: ``{head: {match: "generator\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no weight decay on biases, norm layers and embeddings.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    values = {"lr": lr, "betas": moment_shares(beta1, beta2, betas), "eps": eps, "weight_decay": weight_decay}
    apex_class = _apex_class("FusedAdam", networks)
    if apex_class is not None:
        values["adam_w_mode"] = adam_w_mode
    return _made("fused_adam", apex_class, torch.optim.AdamW if adam_w_mode else torch.optim.Adam, groups, values, _FUSED)


@OPTIMIZERS.register("fused_sgd", "FusedSGD", "apex.optimizers.FusedSGD")
def fused_sgd(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.0,
    dampening: Fraction = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    nesterov: bool = False,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = False,
) -> Optimizer:
    """Apex's FusedSGD where apex is installed and the networks are on a CUDA device, else torch's own fused kernel.

    Args:
        lr: learning rate.
        momentum: share of the old direction kept at each step.
        dampening: share of the gradient that is left out of the direction.
        weight_decay: factor of the L2 penalty's gradient.
        nesterov: take the gradient one step ahead; needs momentum, and no dampening.
        param_groups: options by group: ``{head: {match: "generator\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no penalty on biases, norm layers and embeddings.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    values = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "nesterov": nesterov}
    return _made("fused_sgd", _apex_class("FusedSGD", networks), torch.optim.SGD, groups, values, _FUSED)


@OPTIMIZERS.register("fused_adagrad", "FusedAdagrad", "apex.optimizers.FusedAdagrad")
def fused_adagrad(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    eps: PositiveFloat = 1e-10,
    weight_decay: NonNegativeFloat = 0.0,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Apex's FusedAdagrad where apex is installed and the networks are on a CUDA device, else torch's.

    Args:
        lr: learning rate.
        eps: added to the root of the summed squares.
        weight_decay: factor of the L2 penalty's gradient.
        param_groups: options by group: ``{head: {match: "generator\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no penalty on biases, norm layers and embeddings.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    values = {"lr": lr, "eps": eps, "weight_decay": weight_decay}
    return _made("fused_adagrad", _apex_class("FusedAdagrad", networks), torch.optim.Adagrad, groups, values)


@OPTIMIZERS.register("fused_lamb", "FusedLAMB", "apex.optimizers.FusedLAMB")
def fused_lamb(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.01,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-6,
    max_grad_norm: NonNegativeFloat = 1.0,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Apex's FusedLAMB where apex is installed and the networks are on a CUDA device, else `lamb`: torch has none.

    `lamb` does not clip gradients; what apex does with `max_grad_norm` the step does with `clip_grad_eps`.

    Args:
        lr: learning rate.
        weight_decay: added to the Adam direction as ``weight_decay * w``.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment kept at each step.
        betas: [beta1, beta2], in place of the two.
        eps: added to the square root of the second moment.
        max_grad_norm: norm of all gradients to which apex clips; 0 does not clip.
        param_groups: options by group: ``{head: {match: "generator\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no weight decay on biases, norm layers and embeddings.
    """
    first, second = moment_shares(beta1, beta2, betas)
    apex_class = _apex_class("FusedLAMB", networks)
    if apex_class is not None:
        groups = parameter_groups(networks, param_groups, exclude_norm_and_bias)
        values = {"lr": lr, "betas": (first, second), "eps": eps, "weight_decay": weight_decay}
        optimizer: Optimizer = apex_class(groups, max_grad_norm=max_grad_norm, **values)
        return optimizer
    clipping = f"; it does not clip: write 'clip_grad_eps: {max_grad_norm:g}' in the step" if max_grad_norm else ""
    _tell("fused_lamb", f"'lamb' of this program (torch has none){clipping}")
    return lamb(
        networks,
        lr=lr,
        weight_decay=weight_decay,
        beta1=first,
        beta2=second,
        eps=eps,
        param_groups=param_groups,
        exclude_norm_and_bias=exclude_norm_and_bias,
    )


@OPTIMIZERS.register("fused_novograd", "FusedNovoGrad", "apex.optimizers.FusedNovoGrad")
def fused_novograd(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Apex's FusedNovoGrad, on a CUDA device. Neither torch nor this program has a NovoGrad, so it needs apex.

    Args:
        lr: learning rate.
        weight_decay: as apex has it.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment, one number a tensor, kept at each step.
        betas: [beta1, beta2], in place of the two.
        eps: added to the root of the second moment.
        param_groups: options by group: ``{head: {match: "generator\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no weight decay on biases, norm layers and embeddings.

    Raises:
        MissingPackageError: apex is not installed, or the networks are not on a CUDA device.
    """
    apex_class = _apex_class("FusedNovoGrad", networks)
    if apex_class is None:
        raise MissingPackageError(
            "git+https://github.com/NVIDIA/apex",
            "fused_novograd, on a CUDA device (torch has no NovoGrad: take 'lamb', which scales updates by layer, or 'adamw')",
        )
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    values = {"lr": lr, "betas": moment_shares(beta1, beta2, betas), "eps": eps, "weight_decay": weight_decay}
    optimizer: Optimizer = apex_class(groups, **values)
    return optimizer


def _apex_class(name: str, networks: Mapping[str, nn.Module]) -> Any:
    """A class of apex; None where it is not there, or its kernels have nothing to work on."""
    if not all(parameter.is_cuda for network in networks.values() for parameter in network.parameters()):
        return None
    try:
        return getattr(importlib.import_module("apex.optimizers"), name, None)
    except ImportError:  # a package of this name on PyPI is another one
        return None


def _made(
    name: str,
    apex_class: Any,
    torch_class: type[Optimizer],
    groups: list[dict[str, Any]],
    values: dict[str, Any],
    how: str = "",
) -> Optimizer:
    """An optimiser of apex where its class is there, else of torch."""
    if apex_class is not None:
        optimizer: Optimizer = apex_class(groups, **values)
        return optimizer
    _tell(name, f"torch.optim.{torch_class.__name__}{how}")
    return construct_optimizer(torch_class, groups, None, values)


def _tell(name: str, instead: str) -> None:
    _LOG.info("%s: apex cannot be used here; %s takes its place", name, instead)
