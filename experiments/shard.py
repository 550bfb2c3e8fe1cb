"""Pack a catalogue into a few large files: `python -m experiments.shard --data shop.zip --output shards`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say
from vlm_core.config import CatalogueSettings
from vlm_core.files.addresses import local_path

MEGABYTE = 1_000_000


def main(arguments: Sequence[str] | None = None) -> None:
    """Write Parquet shards, which every command reads as data=<folder>, and print how many there are."""
    parser = Parser(
        prog="python -m experiments.shard",
        description="Pack a catalogue and its images into Parquet files that every command reads as data=<output>. "
        "Repeat the command to resume a packing that was stopped.",
    )
    parser.add_argument("--output", required=True, help="folder to write, which must not be there yet")
    parser.add_argument("--rows", type=int, default=10_240, help="maximum rows per file (default: 10240)")
    parser.add_argument("--megabytes", type=int, default=256, help="approximate maximum file size in MB (default: 256)")
    CatalogueSettings.add_flags(parser, ("data", "label", "id_column", "picture_column", "download"))
    values = vars(parser.parse_args(arguments))
    output, rows, megabytes = local_path("output", values.pop("output")), values.pop("rows"), values.pop("megabytes")
    config = CatalogueSettings.build(values)
    from vlm_core.catalogue.reading import number_of
    from vlm_core.catalogue.shards import pack
    from vlm_core.catalogue.sources import open_source
    from vlm_core.data import columns_of
    from vlm_core.errors import UserError

    if rows < 1 or megabytes < 1:
        raise UserError(f"rows={rows} and megabytes={megabytes}: give 1 or more of each.")
    source, columns = open_source(config.data, Path.cwd()), columns_of(config)
    if config.download:
        source.download(columns)
    packed = pack(source, columns, output, rows_per_shard=rows, bytes_per_shard=megabytes * MEGABYTE)
    say(
        f"Packed {number_of(packed.rows, 'row')} of {source.name} into {number_of(len(packed.shards), 'shard')} of "
        f"{packed.bytes / MEGABYTE:,.1f} MB in {output}."
    )
    if packed.missing:
        reasons = "; ".join(packed.reasons)
        say(f"{number_of(packed.missing, 'row says', 'rows say')} why there is no image. The first: {reasons}")


if __name__ == "__main__":
    sys.exit(run_command(main))
