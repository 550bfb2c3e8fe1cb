"""What all settings can do: be checked, be made from presets, flags and stored params, and be written as text."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal, Self, cast, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlm_core.config.aliases import BEFORE, current_settings, former_settings, renaming_notes
from vlm_core.config.presets import OF_PROTOCOLS, PRESETS, WITH_A_FILE_OF_PARTS
from vlm_core.errors import UserError, redact

logger = logging.getLogger(__name__)


class Settings(BaseModel):
    """General settings.

    Settings are checked when they are made and never changed afterwards. `model_fields_set` names those that the user
    gave: the others may make way for what suits the weights.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    is_search: ClassVar[bool] = False  # which former names of settings are understood

    preset: Literal["cpu", "original", "demo", "ablation", "pretrain"] = Field(
        "cpu", description="named set of settings to start from"
    )
    seed: int = Field(
        0, ge=0, lt=2**31, description="seed of the split, the initialisation, the order and augmentation"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: CUDA where it is available")
    threads: int = Field(
        8, ge=1, description="PyTorch threads, at most one per core; waiting ones sleep unless OMP_WAIT_POLICY=ACTIVE"
    )
    experiment: str = Field("product-categorisation", min_length=1, description="MLflow experiment")

    @classmethod
    def build(cls, values: Mapping[str, Any]) -> Self:
        """Return the settings that the user gave, over those of the preset, over the defaults.

        Former names and values are understood and logged as such. Raises UserError that names the first setting in
        error and what it accepts.
        """
        for note in renaming_notes(values, search=cls.is_search):
            logger.info(note)
        return cls._build(current_settings(values, search=cls.is_search))

    @classmethod
    def _build(cls, values: Mapping[str, Any]) -> Self:
        preset = values.get("preset", cls.model_fields["preset"].default)
        if preset not in PRESETS:
            raise UserError(f"preset={preset} is not known: choose one of {', '.join(PRESETS)}.")
        preferred = {name: value for name, value in PRESETS[preset].items() if name in cls.model_fields}
        if values.get("objective") == "generate":
            preferred.pop("mode", None)  # it may train a head, and who asks for sentences wants none
        if values.get("checkpoint"):
            preferred.pop("weights", None)  # it may be tiny, and who names a checkpoint wants that
        implied = WITH_A_FILE_OF_PARTS if values.get("split") else {}
        implied = {**implied, **OF_PROTOCOLS.get(values.get("protocol", ""), {})}
        preferred |= {name: value for name, value in implied.items() if name in cls.model_fields}
        try:
            settings = cls(**{**preferred, **values})
        except ValidationError as error:
            raise UserError(cls._explain(error)) from None
        return cast("Self", cls.model_construct(set(values), **dict(settings)))

    @classmethod
    def from_params(cls, params: Mapping[str, str]) -> Self:
        """Return the settings that were logged as MLflow params; params of other names are ignored."""
        current = current_settings(params)
        return cls._build({name: text for name, text in current.items() if name in cls.model_fields})

    def resuming(self, stored: Mapping[str, str]) -> Self:
        """Return the settings with which a stored search or study is resumed, given its own.

        What a setting that came later stood for then is kept, unless the user gives it.
        """
        later = BEFORE.keys() & stored.keys() & type(self).model_fields.keys() - self.model_fields_set
        return self.model_copy(update={name: stored[name] for name in later})

    @classmethod
    def from_flags(cls, arguments: Sequence[str] | None, parser: argparse.ArgumentParser) -> Self:
        """Return the settings that a command line gives. Raises UserError as `build` does."""
        cls.add_flags(parser)
        return cls.build(vars(parser.parse_args(arguments)))

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, names: Sequence[str] = ()) -> None:
        """Add one `--name` flag per setting (those named, or all), in groups; a flag that is not given has no value."""
        for title, own in cls.groups():
            group = parser.add_argument_group(title)
            for name in own:
                if not names or name in names:
                    group.add_argument(
                        f"--{name}", default=argparse.SUPPRESS, metavar=cls._values(name), help=cls._help(name)
                    )
        for old, name in former_settings(search=cls.is_search).items():
            if name in cls.model_fields and old not in cls.model_fields and not names:
                parser.add_argument(f"--{old}", default=argparse.SUPPRESS, help=argparse.SUPPRESS)

    @classmethod
    def groups(cls) -> Iterator[tuple[str, list[str]]]:
        """Yield what each group of settings is about, and the names in it."""
        known: set[str] = set()
        for group in reversed(cls.__mro__):
            annotated = vars(group).get("__annotations__", {})
            own = [name for name in annotated if name in cls.model_fields and name not in known]
            known.update(own)
            if own:
                yield str(group.__doc__).splitlines()[0].rstrip("."), own

    @classmethod
    def _values(cls, name: str) -> str:
        kind = cls.model_fields[name].annotation
        values = ("true", "false") if kind is bool else get_args(kind) if get_origin(kind) is Literal else ()
        return "{" + ",".join(values) + "}" if values else name.upper()

    @classmethod
    def _help(cls, name: str) -> str:
        field = cls.model_fields[name]
        default = str(field.default).lower() if isinstance(field.default, bool) else str(field.default)
        return f"{field.description} (default: {default})".removesuffix(" (default: )").replace("%", "%%")

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        first = error.errors()[0]
        if not first["loc"]:
            return first["msg"].removeprefix("Value error, ") + "."
        name = str(first["loc"][0])
        if name not in cls.model_fields:
            return f"there is no setting called {name}: see --help for the list."
        return f"{name}={first['input']} is not accepted: {first['msg'][0].lower()}{first['msg'][1:]}."

    def to_params(self) -> dict[str, str]:
        """Return all settings as text, for MLflow; addresses without password."""
        return {name: redact(str(getattr(self, name))) for name in type(self).model_fields}
