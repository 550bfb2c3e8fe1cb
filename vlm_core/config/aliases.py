"""Names from before: what the settings, values, metrics and tags of stored runs are called now.

What is stored keeps the name that it was written under; whatever reads it passes it through these functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

V = TypeVar("V")

# Setting -> its former values -> what they are called now.
_VALUES: Final[dict[str, dict[str, str]]] = {
    "preset": {"study": "original"},
    "protocol": {"study": "original"},
    "protocols": {"study": "original"},
    "augmentation": {"study": "standard"},
}
# Former names of settings; a search's own stand apart, because a study has other settings of those names.
_SETTINGS: Final = {"answers": "objectives"}
_SEARCH_SETTINGS: Final = {"study": "search_name", "objectives": "search_objectives"}
_TAGS: Final = {"study_log": "training_log"}
_SEARCH_TAGS: Final = {"study": "search_name"}
# What settings that came later stood for in runs that have not stored them.
BEFORE: Final = {"test_ids": "reserved", "row_order": "table", "resize": "stretch"}
# Parts of metrics' names, such as onnx_fp32_seconds_per_image_batch_1.
_METRICS: Final = {"seconds_a_picture": "seconds_per_image", "equal_answers": "equal_predictions"}
_KEY_PARTS: Final = 5  # of a study's cell: model/mode/objective/protocol/seed


def former_settings(*, search: bool) -> dict[str, str]:
    """Return the former names of settings, and what they are called now; those of a search or of all else."""
    return _SEARCH_SETTINGS if search else _SETTINGS


def current_settings(settings: Mapping[str, V], *, search: bool | None = None) -> dict[str, V]:
    """Return the settings under their current names and values.

    `search` says whether they are those of a search; stored ones tell it themselves.
    """
    names = former_settings(search="search" in settings if search is None else search)
    current: dict[str, V] = {}
    for name, value in settings.items():
        renamed = names.get(name, name)
        if renamed == name or renamed not in settings:
            current[renamed] = current_value(renamed, value)
    return current


def stored_settings(params: Mapping[str, str]) -> dict[str, str]:
    """Return a stored run's settings as they are called now, and what later ones stood for then."""
    return {**(BEFORE if "label" in params else {}), **current_settings(params)}


def current_value(setting: str, value: V) -> V:
    """Return a setting's value, or each word of a comma-separated one, as it is called now."""
    former = _VALUES.get(setting)
    if former is None or not isinstance(value, str):
        return value
    words = (former.get(word.strip(), word) for word in value.split(","))
    return type(value)(",".join(words))


def former_value(setting: str, value: str) -> str:
    """Return what the value was called before, or the value itself: old names live on in fingerprints."""
    return next((old for old, new in _VALUES.get(setting, {}).items() if new == value), value)


def current_tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Return a run's tags under their current names and values."""
    names = _TAGS | (_SEARCH_TAGS if tags.get("kind") == "search" else {})
    return {names.get(name, name): current_value(name, text) for name, text in tags.items()}


def current_metrics(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return a run's metrics under their current names."""
    return {_replace(name, _METRICS): value for name, value in metrics.items()}


def former_metric(name: str) -> str:
    """Return what the metric was called before, or its name itself."""
    return _replace(name, {new: old for old, new in _METRICS.items()})


def _replace(name: str, parts: Mapping[str, str]) -> str:
    for part, other in parts.items():
        name = name.replace(part, other)
    return name


def current_key(key: str) -> str:
    """Return the key of a study's cell (model/mode/objective/protocol/seed), or any other name, as it is called now."""
    parts = key.split("/")
    if len(parts) == _KEY_PARTS:
        parts[3] = current_value("protocol", parts[3])
    return "/".join(parts)


def current_configuration(configuration: str) -> str:
    """Return a configuration of a study (.../protocol) as it is called now."""
    shared, slash, protocol = configuration.rpartition("/")
    return f"{shared}{slash}{current_value('protocol', protocol)}"


def renaming_notes(settings: Mapping[str, Any], *, search: bool) -> list[str]:
    """Return one sentence for each setting that was typed under a former name or with a former value."""
    names = former_settings(search=search)
    current = {name: (names.get(name, name), current_value(names.get(name, name), settings[name])) for name in settings}
    return [
        f"{name}={settings[name]} is called {renamed}={value} now."
        for name, (renamed, value) in current.items()
        if (renamed, value) != (name, settings[name])
    ]
