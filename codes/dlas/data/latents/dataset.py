"""Encoded samples as a data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dlas.data.audio.batches import pad_to_longest
from dlas.data.base import Buckets, Dataset, Request, Sample, stack_samples
from dlas.data.latents.store import Store, differences, normalised
from dlas.errors import ConfigurationError
from dlas.registry import DATASETS
from dlas.types import DatasetOptions, PositiveInt, StateOut


@DATASETS.register("latents")
class Latents(Dataset):
    """What frozen networks made of another data set: latents of an autoencoder, embeddings of texts, codes of speech.

    `dlas data encode -opt FILE` runs the injectors of the section `encode` over `source` and writes the entries `keep` into
    `folder`. Numbers come back as float32. Entries that differ in size between samples are filled up with zeros in a batch.

    A training run with the networks that made them checks that they still have the same weights.

    Args:
        phase: in the train phase one of a sample's views (mirrored or not, the copies) is drawn, as a function of the seed and
            the sample's place in the order; in others it is the first.
        folder: where the samples are.
        keep: entries of a sample: what the injectors write, or what the source gives.
        source: the data set that is encoded, as it would stand under `datasets`. Without it the folder is taken as it is.
        bucket_by: entry by whose last size samples of about one length are put together in batches of training.
        bucket_batches: so many batches at a time.
        max_tokens: most places of that entry in a batch, padding included: batches of short samples have more of them, up to
            `batch_size`.

    Raises:
        ConfigurationError: `source` is not what was encoded, an entry of `keep` was not kept, or options of buckets do not
            go together.
        DataError: the folder is missing, not complete, or damaged.
    """

    def __init__(
        self,
        phase: str,
        /,
        *,
        folder: str,
        keep: list[StateOut],
        source: DatasetOptions | None = None,
        bucket_by: str | None = None,
        bucket_batches: PositiveInt = 50,
        max_tokens: PositiveInt | None = None,
    ) -> None:
        self.folder = Path(folder).expanduser()
        self.store = _checked(self.folder, keep, source)
        self.keep = keep
        self.training = phase == "train"
        if max_tokens is not None and bucket_by is None:
            raise ConfigurationError("max_tokens counts the places of an entry; write which: bucket_by: codes, for example")
        if bucket_by is not None and bucket_by not in self.store.uneven:
            raise ConfigurationError(
                f"bucket_by: '{bucket_by}' does not differ in size between the samples of {self.folder}; those that do: "
                f"{', '.join(sorted(self.store.uneven)) or 'none'}"
            )
        self.bucket_by, self.bucket_batches, self.max_tokens = bucket_by, bucket_batches, max_tokens

    @classmethod
    def sample_spec(cls, phase: str, options: Mapping[str, Any]) -> Sample:
        return _checked(Path(options["folder"]).expanduser(), options["keep"], options["source"]).spec(options["keep"])

    @classmethod
    def inventory(cls, phase: str, options: Mapping[str, Any]) -> None:
        """None: there are no images; `source` has them."""

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, request: Request) -> Sample:
        view = int(request.rng("view").integers(self.store.views)) if self.training else 0
        return self.store.read(request.index, view, self.keep)

    def collate(self, samples: Sequence[Sample], sources: Sequence[str]) -> dict[str, Any]:
        uneven = self.store.uneven.intersection(self.keep)
        return (pad_to_longest if uneven else stack_samples)(samples, sources)

    def buckets(self) -> Buckets | None:
        if self.bucket_by is None:
            return None
        return Buckets(self.store.lengths(self.bucket_by), self.bucket_batches, self.max_tokens)

    def source(self, index: int) -> str:
        return f"sample {index} of {self.folder}"

    def made_with(self) -> Mapping[str, str]:
        return {name: network["weights"] for name, network in self.store.plan["networks"].items()}


def _checked(folder: Path, keep: list[str], source: Mapping[str, Any] | None) -> Store:
    store = Store(folder)
    missing = [key for key in keep if key not in store.keys]
    if missing:
        raise ConfigurationError(
            f"keep: {folder} has no {', '.join(missing)}; it has: {', '.join(store.keys)}. Encode again with --overwrite to "
            "keep others"
        )
    changed = [] if source is None else differences(store.plan["source"], normalised(source), "source")
    changed = [words for words in changed if not words.startswith("source.version")]
    if changed:
        raise ConfigurationError(
            f"{folder} was made of other data: {'; '.join(changed)}. Encode again (`dlas data encode`), or correct 'source'"
        )
    return store
