"""What a study runs: families, modes, objectives, protocols and seeds, as independent cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from vlm_core.config import OF_MACHINES, Config, StudyConfig
from vlm_core.config.families import FAMILIES, PUBLISHED_MODELS, family_of
from vlm_core.config.lists import split_list
from vlm_core.config.presets import MECHANISM as BUDGET
from vlm_core.errors import UserError
from vlm_core.study.frozen_towers import KNOWN, Tower, find_towers
from vlm_core.study.readers import BASELINE, Reader, readers

Part = Literal["families", "ablation", "robustness", "attention", "labels", "cost", "continual", "fusion"]
PARTS: Final[tuple[str, ...]] = get_args(Part)
MECHANISM: Final = "mechanism"
READER: Final = "reader"
MODES: Final = ("zero-shot", "probe", "last-blocks", "fusion", "lora", "lp-ft", "full")
# Generative cells keep the vision tower frozen, so that its tokens are cached, and train all that writes text.
GENERATIVE_MODE: Final = "fusion"
HONEST: Final = "holdout"
LEAKING: Final = "original"  # the protocol whose scores reward memory
GIVEN: Final = "given"  # the protocol that keeps the parts of a catalogue, for all seeds


@dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    For a run of the ablation `model` is "mechanism" and `mode` `<mechanism>@<tower>`; for one of the part on pictures
    with texts they are "reader" and the reader's key.
    """

    model: str
    mode: str
    objective: str
    protocol: str
    seed: int

    @property
    def configuration(self) -> str:
        """The cell without its seed."""
        return "/".join((self.model, self.mode, self.objective, self.protocol))

    @property
    def key(self) -> str:
        """The cell's name in its study, and its run's."""
        return f"{self.configuration}/{self.seed}"

    @property
    def label(self) -> str:
        """The configuration in words."""
        if self.model == BASELINE:
            return "HOG + colour"
        if self.model == MECHANISM:
            from vlm_core.attention.mechanisms import label_of

            return label_of(self.mechanism) + (f" ({self.tower} tower)" if self.tower != KNOWN[0] else "")
        if self.model == READER:
            return self.reader.label
        return f"{self.model} {self.mode}" + (" (generate)" if self.objective == "generate" else "")

    @property
    def is_honest(self) -> bool:
        """Whether scores under its protocol are those that are reported."""
        return self.protocol != LEAKING

    @property
    def mechanism(self) -> str:
        """The mechanism of a run of the ablation."""
        return self.mode.partition("@")[0]

    @property
    def tower(self) -> str:
        """The name of the frozen tower under it; CLIP's where an earlier version names none."""
        return self.mode.partition("@")[2] or KNOWN[0]

    @property
    def reader(self) -> Reader:
        """What a run of the part on pictures with texts reads."""
        return Reader.of(self.mode)

    @classmethod
    def of(cls, key: str) -> Cell:
        """Return the cell with this key."""
        model, mode, objective, protocol, seed = key.split("/")
        return cls(model, mode, objective, protocol, int(seed))


@dataclass(frozen=True)
class StudyPlan:
    """A study's cells, in the order in which they run, and its other parts."""

    cells: tuple[Cell, ...]
    parts: frozenset[str]
    main_mode: str  # the mode whose cells are compared in pairs and measured in depth
    first_seed: int
    shared_settings: dict[str, Any]  # of every cell
    families: tuple[str, ...] = ()
    towers: Mapping[str, Tower] = field(default_factory=dict)  # of the ablation, those in folders, by name

    @property
    def honest_protocol(self) -> str:
        """The protocol that scores are reported of."""
        return next((cell.protocol for cell in self.cells if cell.is_honest), HONEST)

    def settings(self, cell: Cell) -> Config:
        """Return the cell's configuration; of a mechanism that of its frozen tower, with the ablation's budget."""
        if cell.model == MECHANISM:
            return self._tower_settings(cell)
        if cell.model == READER:
            update = {**cell.reader.settings, "seed": cell.seed, "run_name": cell.key}
            return self.probe_settings().model_copy(update=update)
        names = {"model": cell.model, "mode": cell.mode, "objective": cell.objective, "protocol": cell.protocol}
        return Config.build({**self.shared_settings, **names, "seed": cell.seed, "run_name": cell.key})

    def probe_settings(self) -> Config:
        """Return the configuration of the first family's probe, whether that is a cell or not."""
        return self.settings(Cell(self.families[0], "probe", "classify", self.honest_protocol, self.first_seed))

    def _tower_settings(self, cell: Cell) -> Config:
        tower = self.towers.get(cell.tower)
        family = tower.family if tower else KNOWN[0] if cell.tower == "random" else cell.tower
        config = self.settings(Cell(family, "probe", "classify", cell.protocol, cell.seed))
        update = {name: value for name, value in BUDGET.items() if name not in self.shared_settings}
        if cell.tower == "random":
            update |= {"weights": "tiny-random", "checkpoint": ""}
        if tower:
            update |= {"weights": "pretrained", "checkpoint": tower.folder}
        return config.model_copy(update=update)

    def is_main(self, cell: Cell) -> bool:
        """Return whether the cell is compared in pairs and measured in depth: the baseline and the main mode."""
        main = cell.model == BASELINE or (cell.mode == self.main_mode and cell.objective == "classify")
        return main and cell.model != MECHANISM

    def measurements(self, cell: Cell) -> tuple[str, ...]:
        """Return the names of what is measured on the cell's model beyond its test split."""
        main, family = self.is_main(cell), cell.model not in (BASELINE, MECHANISM)
        wanted = {
            "leak": main and not cell.is_honest,
            "unknown": main and cell.is_honest,
            "held_out": main and cell.is_honest,
            "robustness": main and cell.is_honest and "robustness" in self.parts,
            "attention": main and family and cell.is_honest and self._first(cell, "attention"),
            "decoding": cell.objective == "generate",
            "simple_baselines": cell.mode == "probe" and family,
        }
        return tuple(name for name, is_wanted in wanted.items() if is_wanted)

    def _first(self, cell: Cell, part: str) -> bool:
        return part in self.parts and cell.seed == self.first_seed


def plan_study(config: StudyConfig, mechanisms: Sequence[str]) -> StudyPlan:
    """Return the study that the settings ask for, one seed after the other. Raises UserError for unknown names."""
    families = _listed("families", config.families, tuple(PUBLISHED_MODELS))
    modes = _listed("modes", config.modes, MODES)
    objectives = _listed("objectives", config.objectives, ("classify", "generate"))
    protocols = _protocols(config.protocols)
    parts = frozenset(_listed("parts", config.parts, PARTS))
    if GIVEN in protocols and (dividing := sorted({"continual", "fusion"} & parts)):
        raise UserError(f"protocols=given keeps parts that parts={dividing[0]} divides anew: leave out one of them.")
    towers = find_towers(config.towers)
    honest = GIVEN if GIVEN in protocols else HONEST
    cells: list[Cell] = []
    for seed in range(config.seed, config.seed + config.seeds):
        if "families" in parts:
            cells += _family_cells(families, modes, objectives, protocols, seed)
        if "ablation" in parts:
            named = [f"{name}@{tower}" for tower in towers for name in mechanisms]
            cells += [Cell(MECHANISM, mode, "classify", honest, seed) for mode in named]
        if "fusion" in parts:
            cells += [Cell(READER, reader.key, "classify", honest, seed) for reader in readers(families)]
    if not cells and "continual" not in parts:
        raise UserError(
            f"parts={config.parts} leaves nothing to run: name families, ablation, continual or fusion among them."
        )
    names = config.model_fields_set & Config.model_fields.keys() - OF_MACHINES
    settings = {name: getattr(config, name) for name in names}
    settings |= {"preset": config.preset}
    in_folders = {name: tower for name, tower in towers.items() if tower}
    if in_folders:  # which may have seen the catalogue: all cells are tested on the same products
        settings["test_ids"] = "reserved"
    return StudyPlan(tuple(cells), parts, modes[-1], config.seed, settings, families, in_folders)


def _protocols(text: str) -> tuple[str, ...]:
    """Return the protocols that a setting names. Raises UserError for an unknown one, or `given` beside another."""
    protocols = _listed("protocols", text, (HONEST, LEAKING, GIVEN))
    if GIVEN in protocols and len(protocols) > 1:
        raise UserError(f"protocols={text}: given keeps the parts of the catalogue, and stands alone: omit the others.")
    return protocols


def _family_cells(
    families: Sequence[str], modes: Sequence[str], objectives: Sequence[str], protocols: Sequence[str], seed: int
) -> Iterator[Cell]:
    """Yield one seed's cells; the original protocol has only the baseline and the main mode, to show the leak.

    A family without language or fusion has no cells of the modes that need it.
    """
    for protocol in protocols:
        yield Cell(BASELINE, "full", "classify", protocol, seed)
        for family in families:
            for mode in modes if protocol != LEAKING else modes[-1:]:
                if mode in _modes_of(family):
                    yield Cell(family, mode, "classify", protocol, seed)
            if protocol != LEAKING and "generate" in objectives and FAMILIES[family_of(family)].generates:
                yield Cell(family, GENERATIVE_MODE, "generate", protocol, seed)


def _modes_of(model: str) -> Sequence[str]:
    family = FAMILIES[family_of(model)]
    missing = {"zero-shot": not family.has_language, "fusion": not family.fuses}
    return [mode for mode in MODES if not missing.get(mode, False)]


def _listed(name: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Return the comma-separated words of a setting, each once. Raises UserError for an unknown one, or none."""
    chosen = tuple(dict.fromkeys(split_list(text)))
    if unknown := [word for word in chosen if word not in known]:
        raise UserError(f"{name}={unknown[0]} is not known: choose among {', '.join(known)}.")
    if not chosen:
        raise UserError(f"{name} is empty: choose among {', '.join(known)}.")
    return chosen
