"""What the data sets of a configuration keep in mapped caches."""

from __future__ import annotations

from dlas.config import Config
from dlas.data.preparation import NamedKept
from dlas.engine.build import build_dataset
from dlas.errors import ConfigurationError


def kept_images(config: Config) -> list[NamedKept]:
    """One for each data set with a mapped cache, in the order of the file.

    Raises:
        ConfigurationError: there is none, or the options of a data set contradict each other.
        DataError: the files of a data set are missing or do not pair up.
    """
    found = []
    for key in config.datasets:
        kept = build_dataset(config, key).kept_images()
        if kept is not None:
            found.append(NamedKept(key, kept))
    if not found:
        raise ConfigurationError(
            f"none of the data sets ({', '.join(config.datasets) or 'there are none'}) has a mapped cache to fill; write "
            "`cache: mapped` into one, or give --set datasets.train.cache=mapped"
        )
    return found
