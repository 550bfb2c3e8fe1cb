"""Read, clean, decode and split a catalogue once: `python -m experiments.prepare --data catalogue.zip`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.config import PreparationSettings


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare the catalogue, write `data/processed/dataset_info.json` and print the split."""
    parser = Parser(
        prog="python -m experiments.prepare",
        description="Read, clean and decode a catalogue, split it, and write dataset_info.json.",
    )
    config = PreparationSettings.from_flags(arguments, parser)
    import numpy as np

    from vlm_core.catalogue.duplicates import label_conflicts
    from vlm_core.catalogue.reading import number_of
    from vlm_core.data import load_data, write_dataset_info
    from vlm_core.workflows.run_corrections import fetch_corrections

    root = Path.cwd()
    fetch_corrections(config, root)
    data = load_data(config, root)
    path = write_dataset_info(data, root / "data" / "processed")
    split = data.split

    def count(rows: np.ndarray, index: int) -> str:
        return f"{int((split.labels[rows] == index).sum()):,}"

    rows = [
        (
            name,
            f"{int((split.labels == index).sum()):,}",
            *(count(side, index) for side in (np.unique(split.train), split.train, split.validation, split.test)),
        )
        for index, name in enumerate(split.categories)
    ]
    show_table(
        f"{data.catalogue.name}, protocol {split.protocol}",
        ("category", "catalogue", "products in training", "training rows", "validation", "test"),
        rows,
    )
    conflicts = len(label_conflicts(data.catalogue.products, data.groups, split.label))
    groups = number_of(conflicts, "group")
    say(f"Label conflicts: {groups} of identical images whose products differ in {split.label}.")
    say(f"Catalogue {data.catalogue.fingerprint}, split {split.fingerprint}: equal products give equal ones.")
    say(f"Wrote {path.relative_to(root)}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
