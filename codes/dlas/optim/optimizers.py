"""Optimisers by name: the registered ones, every class of `torch.optim`, and classes of other packages."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dlas.errors import ConfigurationError, MissingPackageError, UserError
from dlas.optim.groups import parameter_groups
from dlas.optim.signatures import check_keywords, keyword_parameters
from dlas.registry import OPTIMIZERS, nearest
from dlas.types import Fraction, NonNegativeFloat, PositiveFloat

_LOG = logging.getLogger(__name__)

# Options of a step's `optimizer_params` that say when the step trains; the step reads them.
_GROUP_KEYS = ("param_groups", "exclude_norm_and_bias")
_TORCH_CLASSES = {
    name: value
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer
}


def build_optimizer(name: str, networks: Mapping[str, nn.Module], options: Mapping[str, Any]) -> Optimizer:
    """Builds the optimiser of a step.

    Every trainable parameter is in exactly one group; parameters with ``requires_grad=False`` at this moment are in none. Each
    group has, besides the optimiser's options, `name` and `initial_lr`. An optimiser with a mode (schedule-free ones) is put
    into training mode; whoever evaluates must switch it.

    Args:
        name: a registered optimiser; else a class of `torch.optim`, in any case of letters; else ``package.module.Class``.
        networks: the networks whose parameters are updated, by name.
        options: as under `optimizer_params`. Classes take their own keyword arguments, for which `beta1` and `beta2` may stand
            in place of `betas`, and the options `param_groups` and `exclude_norm_and_bias` (true by default).

    Raises:
        ConfigurationError: the name or an option is not known, or a value is not allowed.
        MissingPackageError: the class's package cannot be imported.
    """
    torch_class = {known.lower(): known for known in _TORCH_CLASSES}.get(name.lower())
    try:
        if name in OPTIMIZERS:
            optimizer = OPTIMIZERS.create(name, options, networks)
        elif torch_class is not None:
            optimizer = _build_class(name, _TORCH_CLASSES[torch_class], networks, options)
        elif "." in name:
            optimizer = _build_class(name, _import_class(name), networks, options)
        elif name.lower() in OPTIMIZERS:
            optimizer = OPTIMIZERS.create(name.lower(), options, networks)
        else:
            close = nearest(name, [*_TORCH_CLASSES, *OPTIMIZERS.entries()])
            known = f"{', '.join(OPTIMIZERS.entries())}, any class of torch.optim, or package.module.Class"
            raise ConfigurationError(f"no optimizer is called '{name}'; " + (f"did you mean '{close}'?" if close else known))
    except (TypeError, ValueError) as error:  # the class's own check of its values
        raise ConfigurationError(f"optimizer '{name}': {error}; given: {dict(options)}") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    _check_group_options(name, optimizer, options.get("param_groups") or {})
    if callable(getattr(optimizer, "train", None)):
        optimizer.train()
    assert isinstance(optimizer, Optimizer)
    return optimizer


@OPTIMIZERS.register("adamw")
def adamw(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    fused: bool | None = None,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Adam with decoupled weight decay.

    Args:
        lr: learning rate.
        weight_decay: at each step weights shrink by the factor ``1 - lr * weight_decay``.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment kept at each step.
        betas: [beta1, beta2], in place of the two.
        eps: added to the square root of the second moment.
        fused: one kernel for the whole update; by default where the device has one.
        param_groups: options by group: ``{head: {match: "generator\\\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no weight decay on biases, norm layers and embeddings.

    Source: Loshchilov and Hutter, arXiv 1711.05101, algorithm 2.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    moments = moment_shares(beta1, beta2, betas)
    return construct_optimizer(
        torch.optim.AdamW, groups, fused, {"lr": lr, "betas": moments, "eps": eps, "weight_decay": weight_decay}
    )


@OPTIMIZERS.register("adam")
def adam(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat = 0.0,
    beta1: Fraction = 0.9,
    beta2: Fraction = 0.999,
    betas: list[Fraction] | None = None,
    eps: PositiveFloat = 1e-8,
    fused: bool | None = None,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = True,
) -> Optimizer:
    """Adam. Its weight decay is an L2 penalty: ``weight_decay * w`` is added to the gradient.

    Args:
        lr: learning rate.
        weight_decay: factor of the penalty's gradient.
        beta1: share of the old first moment kept at each step.
        beta2: share of the old second moment kept at each step.
        betas: [beta1, beta2], in place of the two.
        eps: added to the square root of the second moment.
        fused: one kernel for the whole update; by default where the device has one.
        param_groups: options by group: ``{head: {match: "generator\\\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no penalty on biases, norm layers and embeddings.

    Source: Kingma and Ba, arXiv 1412.6980, algorithm 1.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    moments = moment_shares(beta1, beta2, betas)
    return construct_optimizer(
        torch.optim.Adam, groups, fused, {"lr": lr, "betas": moments, "eps": eps, "weight_decay": weight_decay}
    )


@OPTIMIZERS.register("sgd")
def sgd(
    networks: Mapping[str, nn.Module],
    /,
    *,
    lr: PositiveFloat,
    momentum: Fraction = 0.0,
    weight_decay: NonNegativeFloat = 0.0,
    nesterov: bool = False,
    fused: bool | None = None,
    param_groups: dict[str, Any] | None = None,
    exclude_norm_and_bias: bool = False,
) -> Optimizer:
    """Stochastic gradient descent. Its weight decay is an L2 penalty: ``weight_decay * w`` is added to the gradient.

    Args:
        lr: learning rate.
        momentum: share of the old direction kept at each step.
        weight_decay: factor of the penalty's gradient.
        nesterov: take the gradient one step ahead; needs momentum.
        fused: one kernel for the whole update; by default where the device has one.
        param_groups: options by group: ``{head: {match: "generator\\\\.head", lr: 1.0e-4}}``.
        exclude_norm_and_bias: no penalty on biases, norm layers and embeddings.
    """
    groups = parameter_groups(networks, param_groups, exclude_norm_and_bias and any_decay(weight_decay, param_groups))
    values = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
    return construct_optimizer(torch.optim.SGD, groups, fused, values)


def any_decay(weight_decay: float, param_groups: Mapping[str, Any] | None) -> bool:
    """Whether any group decays. If none does, biases need no group of their own, and one kernel updates everything."""
    entries = (param_groups or {}).values()
    return weight_decay != 0 or any(isinstance(entry, Mapping) and entry.get("weight_decay") for entry in entries)


def moment_shares(beta1: float, beta2: float, betas: list[float] | None) -> tuple[float, float]:
    """`betas` where they are given, else the two single ones."""
    if betas is None:
        return beta1, beta2
    if len(betas) != 2:
        raise ConfigurationError(f"betas must be [beta1, beta2], given: {betas}")
    return float(betas[0]), float(betas[1])  # a whole number would be refused beside another


def construct_optimizer(cls: Any, groups: list[dict[str, Any]], fused: bool | None, options: Mapping[str, Any]) -> Optimizer:
    """Fused where the parameters' device and type have such a kernel; else torch takes multi-tensor operations if they pay."""
    choice = {}
    if fused is not False:
        refusal = _fused_refusal(cls, groups, options)
        if refusal is None:
            choice = {"fused": True}
        elif fused:
            raise ConfigurationError(f"fused: true is not possible here: {refusal}; leave 'fused' out")
    optimizer: Optimizer = cls(groups, **choice, **options)
    return optimizer


def _fused_refusal(cls: Any, groups: list[dict[str, Any]], options: Mapping[str, Any]) -> str | None:
    """Why the fused kernel cannot be used, found by updating one number: constructors do not look at the parameters."""
    kinds = {(p.device, p.dtype, type(p.data)): p for group in groups for p in group["params"]}
    for (device, dtype, kind), parameter in kinds.items():
        # Parameters that are cut up among processes have kernels of their own.
        probe = torch.zeros(1, device=device, dtype=dtype) if kind is Tensor else torch.zeros_like(parameter)
        probe = nn.Parameter(probe.detach())
        probe.grad = torch.zeros_like(probe)
        try:
            cls([probe], fused=True, **options).step()
        except RuntimeError as error:
            return str(error)
    return None


def _build_class(name: str, cls: Any, networks: Mapping[str, nn.Module], options: Mapping[str, Any]) -> Optimizer:
    parameters = keyword_parameters(cls)
    values = {key: value for key, value in options.items() if key not in _GROUP_KEYS}
    if "betas" in parameters and ("beta1" in values or "beta2" in values):
        if "betas" in values:
            raise ConfigurationError(f"optimizer '{name}': give either 'betas' or 'beta1' and 'beta2'")
        defaults = parameters["betas"].default
        values["betas"] = (values.pop("beta1", defaults[0]), values.pop("beta2", defaults[1]))
    check_keywords(f"optimizer '{name}'", cls, values, _GROUP_KEYS)
    if cls is torch.optim.LBFGS:
        raise ConfigurationError(f"optimizer '{name}' evaluates the loss several times per step, which the trainer does not do")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    decay = values.get("weight_decay", parameters["weight_decay"].default) if "weight_decay" in parameters else 0.0
    exclude = bool(options.get("exclude_norm_and_bias", True)) and any_decay(decay, options.get("param_groups"))
    groups = parameter_groups(networks, options.get("param_groups"), exclude)
    if "fused" in parameters and not values.get("foreach"):
        return construct_optimizer(cls, groups, values.pop("fused", None), values)
    optimizer: Optimizer = cls(groups, **values)
    return optimizer


def _import_class(name: str) -> Any:
    module_name, _, class_name = name.rpartition(".")
    package = module_name.partition(".")[0]
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the package is there, and something that it needs is not
        raise _missing(name, package) from error
    cls = getattr(module, class_name, None)
    if cls is None:
        close = nearest(class_name, vars(module))
        hint = f"; did you mean '{module_name}.{close}'?" if close else ""
        raise ConfigurationError(f"module '{module_name}' has no optimizer '{class_name}'{hint}")
    return cls


def _missing(name: str, package: str) -> UserError:
    if package == "apex":  # not to be had by its name: that is another project's on PyPI
        return MissingPackageError(
            "git+https://github.com/NVIDIA/apex",
            f"optimizer '{name}' (or take 'fused_adam', 'fused_sgd' or 'fused_lamb', which do without it)",
        )
    return MissingPackageError(package, f"optimizer '{name}' (or take 'adamw' or another class of torch.optim)")


def _check_group_options(name: str, optimizer: Optimizer, param_groups: Mapping[str, Mapping[str, Any]]) -> None:
    for group, entry in param_groups.items():
        for key, value in entry.items():
            if key == "match":
                continue
            if key not in optimizer.defaults:
                close = nearest(key, optimizer.defaults)
                hint = f"did you mean '{close}'?" if close else f"it takes: match, {', '.join(optimizer.defaults)}"
                raise ConfigurationError(f"param_groups: '{group}': optimizer '{name}' has no option '{key}'; {hint}")
            if key in ("lr", "weight_decay") and not (isinstance(value, int | float) and value >= 0):
                raise ConfigurationError(f"param_groups: '{group}': {key} must be a number of at least 0, given: {value!r}")
