"""Reads config.json completely: every key is used, ignored because it is harmless, or refused."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from arch.layers.activations import Activation
from errors import CheckpointError, ConfigError
from hub.harmless_keys import MUST_BE_OFF, is_harmless
from settings.json_files import read_json_object
from settings.json_types import JsonObject

T = TypeVar("T")

CONFIG_FILE = "config.json"
ACTIVATIONS: dict[str, Activation] = {  # an export has the first name of each
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_fast": "gelu_tanh",  # rounds sqrt(2 / pi) to ten digits; differs by 4e-12
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "tanh": "tanh",
}


class HfConfig:
    """A config.json that records which of its keys are read.

    `hf["name"]` requires a key, which is an integer in all families. `get` gives null a meaning,
    and its result has the type of this default; the configs that are made from it check the type.
    `check_all_read` refuses keys that were not read. A missing key has its value in `defaults`, or
    is null if it is not in there. `tensors` has the names in the files of weights, and is None if
    config.json is read alone.
    """

    def __init__(
        self,
        values: Mapping[str, object],
        path: str,
        tensors: Iterable[str] | None,
        defaults: Mapping[str, object] = MappingProxyType({}),
    ):
        self._values: JsonObject = {**defaults, **values}
        self._sections: list[HfConfig] = []
        self._path, self._read_names = path, {"model_type"}
        self._present, self._tensors = (
            frozenset(values),
            tensors if tensors is None else frozenset(tensors),
        )

    def __getitem__(self, name: str) -> int:
        self._read_names.add(name)
        if self._values.get(name) is None:
            raise ConfigError(f"{self._path} lacks {name}, which {self.model_type} needs; add it")
        value: int = self._values[name]
        return value

    def __contains__(self, name: str) -> bool:
        return self._values.get(name) is not None

    @property
    def model_type(self) -> str:
        """The value of `model_type`, which is "None" if the key is missing."""
        return str(self._values.get("model_type"))

    def get(self, name: str, default: T) -> T:
        """Returns a value, or `default` if it is null (or missing in file and family defaults)."""
        self._read_names.add(name)
        value = self._values.get(name)
        return default if value is None else value

    def section(
        self, name: str, model_type: str, defaults: Mapping[str, object] = MappingProxyType({})
    ) -> "HfConfig":
        """Returns a config inside this one, whose keys `check_all_read` checks too.

        Raises:
            ConfigError: if it is no section, or that of another type of model.
        """
        empty: JsonObject = {}
        values = self.get(name, empty)
        if not isinstance(values, Mapping):
            raise self.unsupported_error(name, "must be a section")
        named = {"model_type": model_type, **values}
        section = HfConfig(named, f"{self._path}: {name}", self._tensors, defaults)
        if section.model_type != model_type:
            raise section.unsupported_error("model_type", f"must be {model_type}")
        self._sections.append(section)
        return section

    def get_size(self, name: str, auto: int) -> int:
        """Returns a size, which is `auto` if the value is "auto" or null."""
        return auto if self.get(name, "auto") == "auto" else self[name]

    def has_tensor(self, *names: str, if_unknown: bool) -> bool:
        """Returns whether the files have a tensor whose name ends in one of `names`.

        It is `if_unknown` where config.json is read without weights.
        """
        if self._tensors is None:
            return if_unknown
        return any(f".{tensor}".endswith(f".{name}") for tensor in self._tensors for name in names)

    def get_any(self, *names: str) -> int:
        """Returns the value of a key that has several names in different versions."""
        self._read_names.update(names)
        return self[next((name for name in names if name in self), names[0])]

    def get_first(self, names: tuple[str, ...], default: T) -> T:
        """Returns the value of a key that has several names, or `default` if all are null."""
        self._read_names.update(names)
        return self.get(next((name for name in names if name in self), names[0]), default)

    def require_value(self, name: str, *allowed: object) -> None:
        """Raises an error unless the value is in `allowed`; missing or null means the first one."""
        if self.get(name, allowed[0]) not in allowed:
            raise self.unsupported_error(name, f"known: {', '.join(map(repr, allowed))}")

    def ignore(self, *names: str) -> None:
        """Marks keys as read that do not change the function of the model."""
        self._read_names.update(names)

    def activation(self, name: str, default: str = "") -> Activation:
        """Returns the activation that a key names.

        Raises:
            ConfigError: if it is not implemented.
        """
        value = self.get(name, default) if default else self[name]
        if value not in ACTIVATIONS:
            raise self.unsupported_error(name, f"known: {', '.join(ACTIVATIONS)}")
        return ACTIVATIONS[value]

    def unsupported_error(self, name: str, hint: str) -> ConfigError:
        """Returns the error for a key whose value is not implemented."""
        value = self._values.get(name)
        return ConfigError(f"{self._path}: {name} {value!r} is not implemented; {hint}")

    def check_all_read(self) -> None:
        """Checks that every key was read or is harmless.

        Raises:
            ConfigError: if another key is present; the message names it.
        """
        for name, value in MUST_BE_OFF.items():
            if name not in self._read_names:
                self.require_value(name, value)
        unread = sorted(
            name
            for name in self._present - self._read_names
            if not is_harmless(self.model_type, name, self._values[name])
        )
        if unread:
            options = ", ".join(f"{name}={self._values[name]!r}" for name in unread[:10])
            raise ConfigError(
                f"{self._path}: options of {self.model_type} that are not implemented: {options}; "
                "remove them if they change nothing"
            )
        for section in self._sections:
            section.check_all_read()


def activation_name(activation: str) -> str:
    """Returns the name of an activation in config.json.

    Raises:
        KeyError: if it has none.
    """
    names = [name for name, value in ACTIVATIONS.items() if value == activation]
    if not names:
        raise KeyError(activation)
    return names[0]


def read_config(folder: Path) -> JsonObject:
    """Reads config.json, with infinities as old (Infinity) and new files encode them.

    New files have {"__float__": "Infinity"}.

    Raises:
        CheckpointError: if the file cannot be read or is not a JSON object.
    """
    path = folder / CONFIG_FILE
    if not path.exists():
        raise CheckpointError(
            f"{path}: No such file or directory; give the folder of a Hugging Face checkpoint"
        )
    return read_json_object(path, object_hook=_decode_float)


def write_json(path: Path, values: JsonObject) -> None:
    """Writes a JSON file that every reader accepts (RFC 8259 knows no infinity)."""
    text = json.dumps(values, indent=2, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", "utf-8")


def _decode_float(value: JsonObject) -> JsonObject | float:
    return float(value["__float__"]) if set(value) == {"__float__"} else value
