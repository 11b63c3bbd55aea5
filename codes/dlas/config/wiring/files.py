"""Names that become files and folders: they must stay in theirs, and not fall on others."""

from __future__ import annotations

from dlas.config.problems import Problem
from dlas.config.schema import Config, Section
from dlas.config.typespec import Cursor

_RESERVED = ("optimizers", "meter")  # files of a checkpoint beside the networks'


def check_file_names(config: Config, problems: list[Problem]) -> None:
    """Notes names of the run, its networks and data sets that cannot be files or folders, or would be another's."""
    if config.name is not None and not _is_below(config.name):
        place = _place(config, "name", problems)
        place.note(f"the name '{config.name}' must be a folder below path.experiments", "use letters, digits, '_' and '-'")
    for name, network in (config.networks or {}).items():
        if "/" in name or not _is_below(name) or name in _RESERVED or name.endswith(".ema"):
            place = Cursor(network.mark, network.yaml_path, problems)
            place.note(f"a network cannot be called '{name}': its weights file would fall on another file", "rename it")
    owners: dict[str, str] = {}
    for key, dataset in (config.datasets or {}).items():
        name = dataset.name or key
        place = _place(dataset, "name", problems)
        if not _is_below(name):
            place.note(f"the name '{name}' must be a folder below the run's", "use letters, digits, '_', '-' and '.'")
        elif key != "train":  # nothing is recorded under the name of what is trained on
            if name in owners:
                place.note(f"the data set '{owners[name]}' has the name '{name}' too: their figures would mix", "rename one")
            owners.setdefault(name, key)


def _is_below(name: str) -> bool:
    return not any(part in ("", ".", "..") for part in name.replace("\\", "/").split("/"))


def _place(section: Section, key: str, problems: list[Problem]) -> Cursor:
    return Cursor(section.mark, section.yaml_path, problems).value(section.given, key)
