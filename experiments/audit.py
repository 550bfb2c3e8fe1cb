"""Find what looks wrong in a catalogue: `python -m experiments.audit --data shop.csv --label category`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.cli import Parser, run_command, say, show_table
from vlm_core.config import AuditConfig


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit labels and pictures, and write one table and one page of what was found."""
    parser = Parser(
        prog="python -m experiments.audit",
        description="Find suspicious labels, duplicates, placeholders and poor images in a catalogue.",
    )
    config = AuditConfig.from_flags(arguments, parser)
    from vlm_core.workflows.audit import run_audit

    audit = run_audit(config, Path.cwd())
    rows = [(kind, f"{count:,}") for kind, count in audit.counts().items()]
    show_table(f"Findings in {audit.catalogue.name}", ("", "findings"), rows)
    for note in audit.notes:
        say(note)
    say(f"Wrote audit.csv and audit.html to {config.output}.")


if __name__ == "__main__":
    sys.exit(run_command(main))
