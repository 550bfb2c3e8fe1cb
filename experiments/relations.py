"""Pair the products of a catalogue: `python -m experiments.relations --data shop.zip --output pairs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say
from vlm_core.config import CatalogueSettings
from vlm_core.files.addresses import local_path


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a catalogue of pairs, and print how to use it."""
    parser = Parser(
        prog="python -m experiments.relations",
        description="Make a catalogue whose images show two products side by side, and whose label is whether they "
        "are of one category: a task that asks for a relation between two places, for a study of mechanisms.",
    )
    parser.add_argument("--output", required=True, help="folder to write, which must not be there yet")
    parser.add_argument("--label", default="articleType", help="column with the category (default: 'articleType')")
    parser.add_argument(
        "--categories", default="", help="comma-separated categories to pair (default: the ten with most products)"
    )
    parser.add_argument("--pairs", type=int, default=0, help="number of pairs (default: 0, as many as there can be)")
    CatalogueSettings.add_flags(
        parser, ("data", "id_column", "picture_column", "download", "normalise_labels", "row_order", "seed")
    )
    values = vars(parser.parse_args(arguments))
    output, pairs = local_path("output", values.pop("output")), values.pop("pairs")
    categories = values.pop("categories")
    config = CatalogueSettings.build(values)
    from vlm_core.catalogue.duplicates import near_duplicate_groups
    from vlm_core.catalogue.reading import number_of
    from vlm_core.catalogue.relations import LABEL, plan_pairs, write_pairs
    from vlm_core.config.lists import split_list
    from vlm_core.data import load_catalogue
    from vlm_core.errors import UserError

    if pairs < 0:
        raise UserError(f"pairs={pairs}: give their number, or 0 for as many as there can be.")
    catalogue = load_catalogue(config, Path.cwd())
    planned = plan_pairs(
        catalogue.products,
        near_duplicate_groups(catalogue.products, catalogue.pictures),
        label=config.main_label,
        categories=split_list(categories),
        pairs=pairs,
        seed=config.seed,
    )
    packed = write_pairs(catalogue, planned, config.main_label, output)
    parts = ", ".join(f"{count:,} for {part}" for part, count in planned["part"].value_counts().items())
    say(f"Wrote {number_of(packed.rows, 'pair')} of {catalogue.name} into {output}: {parts}.")
    say(f"Read them with data={output} label={LABEL} protocol=given, which keeps these parts.")


if __name__ == "__main__":
    sys.exit(run_command(main))
