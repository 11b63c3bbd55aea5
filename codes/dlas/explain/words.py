"""A run in words: what a file makes the program do, in the order in which it happens."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dlas.config.schema import Component, Config, Section, StepConfig, TrainConfig
from dlas.explain.catalogue import documentation, in_yaml, keys_of, number, options_of
from dlas.explain.flow import Flow, Gate, KeyUse, Node, training_flow, validation_flow, validation_injectors
from dlas.explain.rates import Rates, learning_rates
from dlas.registry import OPTIMIZERS, SCHEDULES, Entry

_WIDTH = 110


@dataclass
class Item:
    """A sentence, and what belongs to it."""

    text: str
    items: list[Item] = field(default_factory=list)

    def add(self, text: str) -> Item:
        """Appends a sentence below this one and returns it."""
        self.items.append(Item(text))
        return self.items[-1]


def explain(config: Config, source: str) -> str:
    """The run in words.

    Args:
        config: from `dlas.config.load`.
        source: what to call the file.
    """
    chapters = [_run(config, source), _data(config), _networks(config)]
    flow = training_flow(config)
    if flow is not None and config.train is not None:
        chapters += [_iteration(config, flow), _loop(config)]
    evaluation = validation_flow(config)
    if evaluation is not None:
        chapters.append(_validation(config, evaluation))
    chapters.append(_files(config))
    return "\n\n".join(_rendered(chapter) for chapter in chapters)


def _rendered(chapter: Item) -> str:
    lines = [chapter.text, "-" * len(chapter.text)]

    def write(items: Iterable[Item], depth: int) -> None:
        for item in items:
            first = "" if depth == 0 else "  " * (depth - 1) + "- "
            lines.append(textwrap.fill(item.text, _WIDTH, initial_indent=first, subsequent_indent="  " * depth))
            write(item.items, depth + 1)

    write(chapter.items, 0)
    return "\n".join(lines)


# ------------------------------------------------------------------------------------------------------------------- chapters


def _run(config: Config, source: str) -> Item:
    chapter = Item(f"The run {config.name}")
    training = config.train is not None and "train" in config.datasets
    aim = f"trains for {_count(config.train.niter, 'iteration')}" if training and config.train else "tests trained networks"
    chapter.add(f"{source} {aim}.")
    chapter.add(f"The scale is {config.scale}, for data sets and networks that take one and are not told another (`scale`).")
    chapter.add(f"All randomness follows from seed {config.seed} (`seed`).")
    precision = {"fp32": "float32 throughout", "bf16": "bfloat16 where that is safe", "fp16": "float16 with a gradient scaler"}
    chapter.add(
        f"It computes on the device {config.device} (`device`) in {precision.get(config.precision, config.precision)} "
        f"(`precision: {config.precision}`), with images laid out {config.memory_format} (`memory_format`)."
    )
    told = {"name", "scale", "seed", "device", "precision", "memory_format"}
    _rest(chapter, config, told)
    return chapter


def _data(config: Config) -> Item:
    chapter = Item("Data")
    for name, section in config.datasets.items():
        use = "trained on" if name == "train" else "validated on"
        entry = _entry(section)
        gives = entry.attributes.get("provides", ()) if entry else ()
        item = chapter.add(f"{name}: the data set {section.mode}, {use}.{_summary(entry)}")
        if gives:
            item.add(f"Each sample has {_and(gives)}.")
        if name == "train":
            cut = _cut(config.train) if config.train else ""
            item.add(f"{_count(section.batch_size, 'sample')} per iteration (`batch_size`){cut}.")
        _options(item, section, config)
        _rest(item, section, {"mode", "batch_size"})
    return chapter


def _networks(config: Config) -> Item:
    chapter = Item("Networks")
    for name, section in config.networks.items():
        trainers = [step for step, each in config.steps.items() if name in each.trained]
        if trainers:
            role = f"trained by the step {_and(trainers)}"
        else:
            role = "not trained" if section.trainable else "frozen (`trainable: false`)"
        item = chapter.add(f"{name}: {section.which_model}, a {section.type}, {role}.{_summary(_entry(section))}")
        weights = config.path.pretrain.get(name)
        if weights:
            loading = "" if config.path.strict_load else "; entries that do not fit are left out (`strict_load: false`)"
            item.add(f"Starts from {weights} (`path.pretrain.{name}`){loading}.")
        _options(item, section, config)
        _rest(item, section, {"which_model", "type", "trainable"})
    if not config.networks:
        chapter.add("None in this file.")
    return chapter


def _iteration(config: Config, flow: Flow) -> Item:
    chapter = Item("One iteration")
    rates = learning_rates(config)
    steps = list(config.steps)
    if len(steps) > 1:
        chapter.add(
            f"A batch goes through the steps {_and(steps)}, in this order. What a step writes is detached before the next one "
            "reads it."
        )
    for band in flow.bands:
        section = config.steps[band.name]
        when = f" {_sentence(_step_times(section))}" if band.gate else ""
        item = chapter.add(f"Step {band.name} trains {_and(section.trained)}.{when}")
        for node in band.nodes:
            if node.kind == "injector":
                _injector(item, node, section.injectors[node.name], flow, config)
        for name, each in section.injectors.items():
            if each.eval:
                item.add(f"Injector {name}: {each.type}, in evaluation only.")
        losses = [node for node in band.nodes if node.kind == "loss"]
        total = item.add(f"The loss is {' + '.join(_term(node) for node in losses) or 'nothing'}.")
        for node in losses:
            _loss(total, node, section, flow, config)
        _optimizer(item, section, [each for each in rates if each.step == band.name])
        _rest(
            item,
            section,
            {"training", "optimizer", "optimizer_params", "lr_scheme", "after", "before", "every", "injectors", "losses"},
        )
    return chapter


def _injector(parent: Item, node: Node, section: Component, flow: Flow, config: Config) -> None:
    runs = f" with {_and(node.networks)}" if node.networks else ""
    conditions = [str(node.gate)] if node.gate else []
    if "in training only" in node.notes:
        conditions.append("in training only")
    if "no gradients" in node.notes:
        conditions.append("without recording gradients")
    when = f" ({'; '.join(conditions)})" if conditions else ""
    item = parent.add(f"Injector {node.name}: {node.type}{runs}, {_arrow(node, flow)}{when}.")
    _options(item, section, config)


def _loss(parent: Item, node: Node, step: StepConfig, flow: Flow, config: Config) -> None:
    section = step.losses[node.name]
    judge = f" with {_and(node.networks)}" if node.networks else ""
    when = f" Gate: {node.gate}; while it is closed the loss is not computed." if node.gate else ""
    item = parent.add(f"{node.name}: {node.type}{judge}, weight {number(section.weight)}, reads {_sources(node, flow)}.{when}")
    _options(item, section, config)


def _optimizer(parent: Item, section: StepConfig, rates: list[Rates]) -> None:
    name = section.optimizer
    entry = OPTIMIZERS.find(name) if name in OPTIMIZERS else None
    item = parent.add(f"Optimizer {name} updates {_and(section.trained)}.{_summary(entry)}")
    for key, value in section.optimizer_params.items():
        item.add(_setting(key, value, entry))
    for each in rates:
        item.add(_rate_words(each))
    schedule = section.lr_scheme
    if schedule is not None:
        _options(item.add(f"The schedule {schedule.type} is the step's own (`lr_scheme`)."), schedule, None)


def _rate_words(rates: Rates) -> str:
    subject = f"The learning rate of the group {rates.group}" if rates.group else "The learning rate"
    if rates.unknown:
        return f"{subject} ({rates.schedule}): {rates.unknown}."
    pieces = rates.pieces()
    if pieces is not None and len(pieces) == 1:
        return f"{subject} is {number(pieces[0][1])} throughout ({rates.schedule})."
    if pieces is not None:
        later = ", ".join(f"{number(rate)} from iteration {s} on" for s, rate in pieces[1:])
        return f"{subject} ({rates.schedule}) is {number(pieces[0][1])} at first, {later}."
    at, peak = rates.peak()
    first, last = rates.at(0), rates.at(rates.length - 1)
    top = f"{_short(peak)} at its highest in iteration {at}, " if peak > max(first, last) else ""
    return (
        f"{subject} ({rates.schedule}) is {_short(first)} in iteration 0, {top}{_short(last)} in the last, {rates.length - 1}."
    )


def _cut(train: TrainConfig) -> str:
    if isinstance(train.micro_batch_size, int):
        return f", computed in micro-batches of at most {train.micro_batch_size} (`train.micro_batch_size`)"
    share = train.mega_batch_factor
    return f", computed in {share} micro-batches (`mega_batch_factor`)" if share > 1 else ""


def _loop(config: Config) -> Item:
    train = config.train
    assert train is not None
    chapter = Item("The loop")
    chapter.add(f"Runs {_count(train.niter, 'iteration')} (`train.niter`) and stops exactly there.")
    if train.mega_batch_factor == 1 and train.micro_batch_size is None:
        chapter.add("Each batch is computed in one piece (`train.mega_batch_factor`).")
    if train.micro_batch_size == "auto":
        chapter.add(
            "When memory runs out, the batch is cut in smaller pieces and tried again, with the same result "
            "(`train.micro_batch_size: auto`)."
        )
    if train.lr_scheme is not None:
        item = chapter.add(f"All steps without a schedule of their own follow {train.lr_scheme.type} (`train.lr_scheme`).")
        _options(item, train.lr_scheme, None)
    if train.warmup_iter > 0:
        chapter.add(f"Learning rates rise linearly over the first {train.warmup_iter} iterations (`train.warmup_iter`).")
    if train.ema.enabled:
        start = ", less at first (`warmup`)" if train.ema.warmup else ""
        chapter.add(
            f"After each iteration the averages of the trained networks keep {number(train.ema.rate)} of what they "
            f"were{start} (`train.ema.rate`)."
        )
        _rest(chapter, train.ema, {"enabled", "rate", "warmup"}, "train.ema.")
    else:
        chapter.add("No average of the weights is kept (`train.ema.enabled: false`).")
    _rest(
        chapter,
        train,
        {"niter", "mega_batch_factor", "micro_batch_size", "val_freq", "lr_scheme", "warmup_iter", "ema"},
        "train.",
    )
    return chapter


def _validation(config: Config, flow: Flow) -> Item:
    section, train = config.eval, config.train
    chapter = Item("Validation")
    if train is not None:
        every = f"every {train.val_freq} iterations and at the end" if train.val_freq else "at the end only"
        averaged = " with the averaged weights" if train.ema.enabled and section.weights == "ema" else ""
        chapter.add(f"Runs {every} (`train.val_freq`), on {flow.data.name}{averaged}.")
    else:
        chapter.add(f"Runs on {flow.data.name}.")
    nodes = [node for band in flow.bands for node in band.nodes if node.kind == "injector"]
    own = "those under `eval.injectors`" if section.injectors else "the steps' own"
    item = chapter.add(f"The injectors are {own}: {_and([node.name for node in nodes]) or 'none'}.")
    for node in nodes:
        injector = validation_injectors(config)[node.name]
        if section.injectors or injector.eval:  # the others are told of with their steps
            _injector(item, node, injector, flow, config)
    crop = config.scale if section.crop_border is None else section.crop_border
    chapter.add(
        f"{_and(section.metrics) or 'Nothing'} (`eval.metrics`) compare {section.output_state} (`eval.output_state`) with "
        f"{section.target_state} (`eval.target_state`), leaving out {_count(crop, 'pixel')} at each side (`eval.crop_border`)."
    )
    if section.baseline != "none" and config.scale > 1:
        chapter.add(
            f"Beside them stands what {section.baseline} enlargement of {section.input_state} (`eval.input_state`) reaches "
            "(`eval.baseline`)."
        )
    told = {"output_state", "target_state", "input_state", "injectors", "metrics", "crop_border", "baseline"}
    told |= {"weights", "num_sheets", "save_images", "values", "grid", "strips", "num_strips"}
    if section.values:
        chapter.add(f"{_and(section.values)} (`eval.values`) are reported as the samples have them, lower being better.")
    if section.weights == "raw":
        chapter.add("The weights are those of the last iteration, not their average (`eval.weights: raw`).")
    if section.weights == "both":
        chapter.add("The averaged weights are measured, and beside them those of the last iteration (`eval.weights: both`).")
    _rest(chapter, section, told, "eval.")
    return chapter


def _files(config: Config) -> Item:
    logger, path = config.logger, config.path
    folder = f"{path.experiments}/{config.name}"
    chapter = Item("Files")
    training = config.train is not None and "train" in config.datasets
    if not training:
        chapter.add(f"Pictures and a metrics.csv for each data set are written to {folder}/<set> (`path.experiments`).")
        if path.run:
            which = (
                f"its {path.checkpoint} checkpoint" if not path.checkpoint.isdecimal() else f"its checkpoint {path.checkpoint}"
            )
            chapter.add(f"Networks and steps come from {path.run} (`path.run`), weights from {which} (`path.checkpoint`).")
        _rest(chapter, path, {"experiments", "run", "checkpoint", "pretrain", "strict_load"}, "path.")
        return chapter
    item = chapter.add(f"Everything is written to {folder} (`path.experiments` and `name`):")
    item.add("config.yml, config.resolved.yml (with every default), environment.json: at the start.")
    item.add(f"train.log and metrics.jsonl: every {logger.print_freq} iterations (`logger.print_freq`).")
    if logger.tensorboard:
        sheets = f", with {config.eval.num_sheets} comparison sheets per validation (`eval.num_sheets`)"
        item.add(f"tb: the same figures for TensorBoard (`logger.tensorboard`){sheets if config.eval.num_sheets else ''}.")
    item.add(
        f"checkpoints/<step>: every {logger.save_checkpoint_freq} iterations and at the end (`logger.save_checkpoint_freq`)."
    )
    best = config.checkpoints.keep_best
    if best is not None:
        item.add(f"checkpoints/best: names the one with the best {best.metric} (`checkpoints.keep_best`).")
        _rest(item, best, {"metric"}, "checkpoints.keep_best.")
    _rest(item, config.checkpoints, {"keep_best"}, "checkpoints.")
    if (config.eval.metrics or config.eval.values) and len(config.datasets) > 1:
        item.add("val/<set>/<step>.csv: the figures of each picture, at each validation.")
    if config.eval.save_images and len(config.datasets) > 1:
        item.add("val/<set>/<image>/<step>.png: at each validation (`eval.save_images`).")
    if config.eval.strips and len(config.datasets) > 1:
        keys = _and(config.eval.strips)
        item.add(
            f"val/<set>/<step>.<key>.png for {keys} (`eval.strips`): series of {_count(config.eval.num_strips, 'sample')} "
            "(`eval.num_strips`), at each validation."
        )
    if config.eval.grid and len(config.datasets) > 1:
        item.add(f"val/<set>/<step>.grid.png: {_count(config.eval.grid, 'output')} (`eval.grid`), at each validation.")
    if logger.visuals:
        mapped = ", mapped from [-1, 1] (`logger.reverse_n1_to_1`)" if logger.reverse_n1_to_1 else ""
        item.add(
            f"visuals/<key>/<step>.png for {_and(logger.visuals)} (`logger.visuals`): every {logger.visual_debug_rate} "
            f"iterations (`logger.visual_debug_rate`){mapped}."
        )
    if logger.audio:
        item.add(
            f"visuals/<key>/<step>.wav and .png, a spectrogram, for {_and(list(logger.audio))} (`logger.audio`): every "
            f"{logger.visual_debug_rate} iterations (`logger.visual_debug_rate`); TensorBoard has them, too."
        )
    told = {"print_freq", "save_checkpoint_freq", "tensorboard", "visuals", "audio", "visual_debug_rate", "reverse_n1_to_1"}
    _rest(chapter, logger, told, "logger.")
    where = path.resume_state or "the newest checkpoint of this folder, if there is one"
    chapter.add(f"The run goes on from {where} (`path.resume_state`).")
    _rest(chapter, path, {"experiments", "resume_state", "pretrain", "strict_load", "run", "checkpoint"}, "path.")
    return chapter


# -------------------------------------------------------------------------------------------------------------------- phrases


def _rest(parent: Item, section: Section, told: set[str], prefix: str = "") -> None:
    """Every key that no sentence has told of and that is not as by default: keys that are added later appear by themselves."""
    for option in keys_of(type(section)):
        value = getattr(section, option.name)
        if option.name in told or value == option.default or _holds_sections(value):
            continue
        parent.add(f"`{prefix}{option.name}: {in_yaml(value)}`: {option.meaning}.")


def _holds_sections(value: Any) -> bool:
    if isinstance(value, Section):
        return True
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(each, Section) for each in values)


def _options(parent: Item, section: Component, config: Config | None) -> None:
    """The options of a component that are not as by default; state keys and networks are told of elsewhere."""
    entry = _entry(section)
    elsewhere = KeyUse.of(section, ()).options if entry else frozenset()
    usual = []
    for name, value in section.options.items():
        if name in elsewhere:
            continue
        default = _default(name, entry, config)
        if value == default:
            usual.append(f"{name} {in_yaml(value)}")
        else:
            parent.add(_setting(name, value, entry, config))
    scaled = entry is not None and any(option.scaled for option in options_of(entry)) and "scale" not in section.options
    if scaled and config is not None:
        usual.append(f"scale {config.scale} (of the file)")
    if usual:
        parent.add(f"As by default: {', '.join(usual)}.")


def _setting(name: str, value: Any, entry: Entry | None, config: Config | None = None) -> str:
    meaning = documentation(entry).arguments.get(name, "") if entry else ""
    default = _default(name, entry, config)
    usually = f" ({in_yaml(default)} by default)" if default is not None else ""
    words = f"{name} {in_yaml(value)}{usually}" + (f": {meaning}" if meaning else "")
    return words.replace("``", "`").rstrip(".") + "."


def _default(name: str, entry: Entry | None, config: Config | None) -> Any:
    option = next((option for option in options_of(entry) if option.name == name), None) if entry else None
    if option is None or option.required:
        return None
    if option.scaled:
        return config.scale if config else None
    return option.default


def _entry(section: Component) -> Entry | None:
    registry = SCHEDULES if section.REGISTRY is SCHEDULES else section.REGISTRY
    return registry.find(section.component) if section.component in registry else None


def _summary(entry: Entry | None) -> str:
    return " " + documentation(entry).summary.replace("``", "`") if entry else ""


def _arrow(node: Node, flow: Flow) -> str:
    read = f"reads {_sources(node, flow)}" if node.reads else "reads nothing"
    return f"{read} and writes {_and(node.writes) or 'nothing'}"


def _sources(node: Node, flow: Flow) -> str:
    return _and([f"{key} (from {_origin(flow.writer(key, node))})" for key in node.reads]) or "nothing"


def _origin(writer: Node) -> str:
    return "the data" if writer.kind == "data" else f"{writer.name} of {writer.id.partition('/')[0]}"


def _term(node: Node) -> str:
    return f"{number(node.weight)} * {node.name}" if node.weight not in (None, 1.0) and node.weight else node.name


def _step_times(section: StepConfig) -> str:
    runs = Gate(section.after, section.before)
    words = f"it runs {str(runs).replace('iterations', 'in iterations')}" if runs else ""
    trains = f"it trains in iterations that are a multiple of {section.every}" if section.every > 1 else ""
    return " and ".join(filter(None, [words, trains])) + "."


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _count(number_of: int, what: str) -> str:
    return f"{number_of} {what}{'s' * (number_of != 1)}"


def _short(value: float) -> str:
    return number(float(f"{value:.4g}"))


def _and(words: Iterable[str]) -> str:
    listed = list(words)
    return " and ".join(filter(None, [", ".join(listed[:-1]), *listed[-1:]]))
