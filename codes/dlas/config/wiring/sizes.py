"""Sizes and channels of pictures, followed through the injectors as far as names and options tell.

What a component says of itself by the names of its options is taken at its word: a data set with `scale` and `target_size`
that provides `hq` and `lq` gives pictures of 3 channels and these sizes; a network with `scale` and numbers of channels under
one of their usual names takes and gives pictures; one with `image_size` (or `input_size`) takes pictures of that size. Of
anything else nothing is assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from dlas.config.problems import Problem
from dlas.config.schema import Component, Config, DatasetConfig, InjectorConfig, LossConfig, NetworkConfig, StepConfig
from dlas.config.wiring.components import Facts, at, entry_of, facts, option

_IN_CHANNELS = ("in_nc", "num_in_ch", "in_chans", "in_ch", "input_nc")
_OUT_CHANNELS = ("out_nc", "num_out_ch", "in_chans", "out_ch")
_SIDES = ("image_size", "input_size")
_FIRST_ARGUMENTS = ("in", "real", "fake")
_COMPARE = frozenset((
    "pix", "feature", "style", "contextual", "lpips", "dists", "ssim", "ms_ssim", "fft", "focal_frequency", "ldl", "gradient",
    "luma", "color", "average", "blurred_color",
))  # fmt: skip
"""Losses whose `real` and `fake` must have one size."""


@dataclass(frozen=True)
class Picture:
    """What is known of a batch of pictures.

    Args:
        channels: number of channels; None if not known.
        side: height and width; None if not known. In pixels in training, in evaluation in units of the true picture.
    """

    channels: int | None = None
    side: Fraction | None = None

    def __str__(self) -> str:
        return f"{self.side} x {self.side}"


_UNKNOWN = Picture()
Pictures = dict[str, Picture]


def check_sizes(config: Config, problems: list[Problem], training: bool) -> None:
    """Notes pictures that a network, a loss or a metric cannot take."""
    if config.steps is None or config.networks is None or config.datasets is None or config.eval is None:
        return
    before = len(problems)
    if training and "train" in config.datasets:
        _follow_training(config, config.datasets["train"], problems)
    if len(problems) == before:  # a scale that is wrong in training is wrong in evaluation, too: once is enough
        for name, dataset in config.datasets.items():
            if name != "train" and _follow_evaluation(config, dataset, problems):
                break


def _follow_training(config: Config, dataset: DatasetConfig, problems: list[Problem]) -> None:
    scale, side = _scale(config, dataset), option(dataset, "target_size")
    pictures: Pictures = {}
    if _gives_pairs(dataset) and isinstance(side, int) and scale:
        if side % scale:
            place = at(dataset, "target_size" if "target_size" in dataset.given else "mode", problems)
            place.note(
                f"target_size {side} is no multiple of the scale {scale}",
                f"the nearest are {max(side // scale, 1) * scale} and {(side // scale + 1) * scale}",
            )
            return
        pictures = {"hq": Picture(3, Fraction(side)), "lq": Picture(3, Fraction(side, scale))}
    for step in config.steps.values():
        for section in (step.injectors or {}).values():
            if not section.eval:
                _apply(config, section, pictures, problems, training=True)
        for loss in (step.losses or {}).values():
            found = facts(loss, problems)
            if found.unnamed_networks and len(step.trained) == 1:
                _check_arguments(config, found, step.trained[0], pictures)
            for reference in found.networks:
                _check_arguments(config, found, reference.name, pictures)
            if not found.networks and not found.unnamed_networks:
                _check_same_size(config, dataset, found, pictures)
            if found.entry is not None and found.entry.name == "translational":
                _check_overlap(step, loss, pictures, problems)


def _follow_evaluation(config: Config, dataset: DatasetConfig, problems: list[Problem]) -> bool:
    scale = _scale(config, dataset)
    if not _gives_pairs(dataset) or not scale:
        return False
    pictures: Pictures = {"hq": Picture(3, Fraction(1)), "lq": Picture(3, Fraction(1, scale))}
    for _, section in config.evaluation_injectors():
        if not section.train:
            _apply(config, section, pictures, problems, training=False)
    keys = config.eval
    output, target = pictures.get(keys.output_state, _UNKNOWN), pictures.get(keys.target_state, _UNKNOWN)
    if output.side is None or target.side is None or output.side == target.side or not keys.metrics:
        return False
    label = dataset.yaml_path.rpartition(".")[2]
    at(keys, "output_state", problems).note(
        f"in evaluation on '{label}' '{keys.output_state}' has {_times(output.side / target.side)} the height and width of "
        f"'{keys.target_state}', so they cannot be compared",
        _scales_fix(config, dataset),
    )
    return True


def _times(ratio: Fraction) -> str:
    return f"{ratio} times" if ratio.denominator == 1 else f"{ratio} of"


# --------------------------------------------------------------------------------------------------------------- what gives


def _gives_pairs(dataset: DatasetConfig) -> bool:
    entry = entry_of(dataset)
    if entry is None:
        return False
    pairs = {"lq", "hq"} <= set(entry.attributes.get("provides", ()))
    return pairs and entry.parameter("scale") is not None and entry.parameter("target_size") is not None


def _scale(config: Config, section: Component) -> int | None:
    """A component's scale: its own, else that of the file, which the program fills in."""
    own = section.options.get("scale") if "scale" in section.given else config.scale
    return own if isinstance(own, int) and own > 0 else None


def _apply(config: Config, section: InjectorConfig, pictures: Pictures, problems: list[Problem], training: bool) -> None:
    found = facts(section, problems)
    source = pictures.get(found.reads[0].name, _UNKNOWN) if found.reads else _UNKNOWN
    for reference in found.networks:
        if training:
            _check_arguments(config, found, reference.name, pictures)
    if found.networks:
        result = _through_network(config, found, source)
    elif section.type == "image_patch":
        result = _patch(section, source, problems) if training else source
    else:
        result = _RULES.get(section.type, _unknown)(section, [pictures.get(r.name, _UNKNOWN) for r in found.reads])
    first = found.writes[0].option if found.writes else ""
    for position, reference in enumerate(found.writes):
        shares = position == 0 or section.type == "image_patch"
        given = result if shares and reference.option == first else _UNKNOWN
        known = pictures.get(reference.name, given)
        pictures[reference.name] = given if known == given else _UNKNOWN  # several writers, one a phase or a time


def _through_network(config: Config, found: Facts, source: Picture) -> Picture:
    network = config.networks.get(found.networks[0].name)
    entry = entry_of(network) if network is not None else None
    if network is None or entry is None or found.section.options.get("method") is not None:
        return _UNKNOWN
    channels = next((option(network, name) for name in _OUT_CHANNELS if entry.parameter(name) is not None), None)
    if entry.parameter("scale") is None or channels is None:
        return _UNKNOWN
    if option(network, "output_mode") not in (None, "hq_only", "hq+features") or len(found.reads) != 1:
        return _UNKNOWN
    scale, stride = _scale(config, network), option(network, "initial_stride")
    if scale is None or source.side is None:
        side = None
    else:
        side = source.side * scale / (stride if isinstance(stride, int) and stride > 0 else 1)
    return Picture(channels if isinstance(channels, int) else None, side)


def _patch(section: InjectorConfig, source: Picture, problems: list[Problem]) -> Picture:
    size, resize = section.options.get("patch_size"), section.options.get("resize")
    if isinstance(size, int) and source.side is not None and size > source.side:
        key = section.options.get("in")
        at(section, "patch_size", problems).note(
            f"a patch of {size} pixels is larger than '{key}', which is {source}",
            "lower patch_size, or raise the data set's target_size",
        )
        return _UNKNOWN
    side = resize if isinstance(resize, int) else size
    return replace(source, side=Fraction(side) if isinstance(side, int) else None)


Rule = Callable[[InjectorConfig, list[Picture]], Picture]


def _unknown(section: InjectorConfig, sources: list[Picture]) -> Picture:
    return _UNKNOWN


def _same(section: InjectorConfig, sources: list[Picture]) -> Picture:
    return sources[0] if sources else _UNKNOWN


def _scaled(section: InjectorConfig, sources: list[Picture]) -> Picture:
    factor = section.options.get("scale", section.options.get("scale_factor"))
    if not sources or sources[0].side is None or not isinstance(factor, int | float):
        return replace(sources[0], side=None) if sources else _UNKNOWN
    side = sources[0].side * Fraction(factor).limit_denominator(64)
    return replace(sources[0], side=side if side.denominator == 1 else None)


_RULES: Mapping[str, Rule] = {
    **dict.fromkeys(("direct", "detach", "to_device", "all_gather", "constant", "clamp", "normalize", "denormalize"), _same),
    **dict.fromkeys(("add_noise", "batch_rotate", "mix_and_label"), _same),
    **dict.fromkeys(("interpolate", "resize"), _scaled),
    "grey": lambda section, sources: replace(_same(section, sources), channels=3),
}
"""Injectors that keep the size of their first input, or change it in a way that their options tell."""


# -------------------------------------------------------------------------------------------------------------- what takes


def _check_arguments(config: Config, found: Facts, name: str, pictures: Pictures) -> None:
    """The first argument of a network: `in` of an injector, `real` and `fake` of a loss."""
    network = config.networks.get(name)
    entry = entry_of(network) if network is not None else None
    if network is None or entry is None or found.section.options.get("method") is not None:
        return
    seen = set()
    for reference in found.reads:
        if reference.option in seen or reference.option not in _FIRST_ARGUMENTS:
            continue
        seen.add(reference.option)
        picture = pictures.get(reference.name, _UNKNOWN)
        for key in _IN_CHANNELS:
            wanted = option(network, key)
            if isinstance(wanted, int) and picture.channels is not None and picture.channels != wanted:
                reference.place.note(
                    f"'{reference.name}' has {picture.channels} channels, and the network '{name}' takes {wanted} ({key})",
                    f"set '{key}: {picture.channels}' at the network",
                )
        for key in _SIDES:
            wanted = option(network, key)
            if isinstance(wanted, int) and picture.side is not None and picture.side != wanted:
                reference.place.note(
                    f"'{reference.name}' is {picture} pixels, and the network '{name}' takes {wanted} x {wanted} ({key})",
                    f"set '{key}' of the network, or give it patches of its size",
                )


def _check_same_size(config: Config, dataset: DatasetConfig, found: Facts, pictures: Pictures) -> None:
    """A loss that compares `real` with `fake` needs them of one size."""
    places = {reference.option: reference for reference in found.reads}
    if found.entry is None or found.entry.name not in _COMPARE or not {"real", "fake"} <= set(places):
        return
    real, fake = (pictures.get(places[name].name, _UNKNOWN) for name in ("real", "fake"))
    if real.side is not None and fake.side is not None and real.side != fake.side:
        places["fake"].place.note(
            f"'{places['fake'].name}' is {fake} pixels and '{places['real'].name}' {real}, so they cannot be compared",
            _scales_fix(config, dataset),
        )
    elif real.channels is not None and fake.channels is not None and real.channels != fake.channels:
        places["fake"].place.note(
            f"'{places['fake'].name}' has {fake.channels} channels and '{places['real'].name}' {real.channels}",
            "correct the network's number of output channels",
        )


def _check_overlap(step: StepConfig, loss: LossConfig, pictures: Pictures, problems: list[Problem]) -> None:
    """The squares that a translational loss compares lie on each other if it is told how much the corner patches share."""
    arguments, size, overlap = (loss.options.get(key) for key in ("fake", "patch_size", "overlap"))
    arguments = arguments if isinstance(arguments, list) else [arguments]
    place = option(loss, "input_alteration_index")
    if not isinstance(place, int) or place >= len(arguments) or not isinstance(size, int) or not isinstance(overlap, int):
        return
    for section in (step.injectors or {}).values():
        options = section.options
        if section.type != "image_patch" or options.get("out") != arguments[place] or options.get("resize") is not None:
            continue
        side, patch = pictures.get(str(options.get("in")), _UNKNOWN).side, options.get("patch_size")
        if side is None or not isinstance(patch, int) or patch > side:
            return
        shared = (2 * patch - side) * Fraction(size, patch)
        if shared != overlap:
            fix = f"write 'overlap: {shared}'" if shared > 0 and shared.denominator == 1 else "take larger patches"
            at(loss, "overlap", problems).note(
                f"the corner patches share {shared} of the output's {size} pixels (2 x {patch} - {side} of "
                f"'{options.get('in')}'), not {overlap}, so squares of different places would be compared",
                fix,
            )


def _scales_fix(config: Config, dataset: DatasetConfig) -> str:
    parts = [f"'{dataset.yaml_path}' has scale {_scale(config, dataset)}"]
    for network in config.networks.values():
        if isinstance(network, NetworkConfig) and _has_scale(network):
            parts.append(f"'{network.yaml_path}' has scale {_scale(config, network)}")
    return "make the sizes agree: " + ", ".join(parts)


def _has_scale(network: NetworkConfig) -> bool:
    entry = entry_of(network)
    return entry is not None and entry.parameter("scale") is not None
