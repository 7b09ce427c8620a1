"""Sources of data sets: Parquet and Arrow files, and data sets of the Hugging Face hub."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from data.readers import arrow_files, hf_datasets, input_files, read_policy
from data.readers.read_stats import ReadStats
from data.settings import DataConfig
from data.sources.source import TextSource, make_split_source
from errors import ConfigError
from settings.json_types import JsonObject


def open_datasets(cfg: DataConfig) -> TextSource:
    """Returns the texts in a field of a data set."""
    examples = open_examples(cfg, (cfg.text_field,))

    def read_split(split: str, stats: ReadStats) -> Iterator[str]:
        policy = read_policy.ErrorPolicy(cfg.on_error, split, stats)
        for location, record in examples.read(split, policy):
            if not isinstance(record.get(cfg.text_field), str):
                described = read_policy.describe_field(record, cfg.text_field, "text")
                policy.reject_document(
                    f"{location}: {described}; set data.text_field, or data.on_error to skip"
                )
                continue
            text = policy.check_unicode(record[cfg.text_field], location)
            if text is not None:
                yield text

    identity = examples.identity | {"field": cfg.text_field}
    return make_split_source(cfg, identity, examples.size_bytes, read_split)


class Examples(NamedTuple):
    """The records of a data set, on disk or streamed from the hub."""

    identity: JsonObject
    size_bytes: int
    # A function of (split, policy) that yields locations and records.
    read: Callable[[str, read_policy.ErrorPolicy], Iterator[tuple[str, JsonObject]]]


def open_examples(cfg: DataConfig, columns: tuple[str, ...] = ()) -> Examples:
    """Returns the records of local Parquet and Arrow files, or of a data set of the hub.

    Args:
        cfg: The settings of the data.
        columns: The columns that are needed; (): all columns.

    Raises:
        ConfigError: if the data set is on the hub and has no pinned revision.
    """
    names = {"train": "train", "valid": cfg.valid_path, "test": cfg.test_path}
    identity: JsonObject = {"source": "datasets", "splits": names, "errors": cfg.on_error}
    if not cfg.revision and arrow_files.is_local(cfg.path):
        paths = {s: arrow_files.find_split(cfg.path, name) for s, name in names.items() if name}
        input_files.check_disjoint(paths)
        files = {
            split: [input_files.file_identity(p) for p in listed] for split, listed in paths.items()
        }
        return Examples(
            identity | {"files": files},
            sum(file[1] for listed in files.values() for file in listed),
            lambda split, policy: arrow_files.iter_records(paths[split], columns, policy),
        )
    if not cfg.revision:
        raise ConfigError(
            f"data.revision is empty, and {cfg.path} is no folder here; pin the data set to a full "
            f"commit hash, listed at huggingface.co/datasets/{cfg.path}/commits/main"
        )

    def read(split: str, policy: read_policy.ErrorPolicy) -> Iterator[tuple[str, JsonObject]]:
        del policy  # A stream that breaks is opened again.
        records = hf_datasets.iter_examples(cfg.path, cfg.config_name, cfg.revision, names[split])
        for number, record in enumerate(records):
            yield f"{cfg.path}, document {number} of {names[split]}", record

    return Examples(identity | {"data_set": [cfg.path, cfg.config_name, cfg.revision]}, 0, read)
