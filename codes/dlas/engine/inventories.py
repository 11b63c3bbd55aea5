"""The files behind a configuration, without building what uses them."""

from __future__ import annotations

from dlas.config import Config
from dlas.data.audit import NamedInventory
from dlas.engine.options import with_scale
from dlas.errors import ConfigurationError, UserError
from dlas.registry import DATASETS


def inventories(config: Config) -> list[NamedInventory]:
    """What each entry of `datasets` would read, in the order of the file.

    A set whose files are missing is told with its fault instead.

    Raises:
        ConfigurationError: the options of a data set contradict each other.
    """
    found = []
    for key, section in config.datasets.items():
        entry = DATASETS.find(section.mode)
        phase = "train" if key == "train" else "val"
        try:
            inventory = DATASETS.get(section.mode).inventory(phase, entry.arguments(with_scale(section, config.scale)))
            fault = "it holds no files" if inventory is not None and not inventory.items and not inventory.alone else None
        except ConfigurationError as error:
            raise ConfigurationError(f"datasets.{key}: {error}") from error
        except UserError as error:
            inventory, fault = None, str(error)
        found.append(NamedInventory(key, section.mode, inventory, fault))
    return found
