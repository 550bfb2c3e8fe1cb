"""Write `MLproject` anew, after a setting in vlm_core/config.py has changed."""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from vlm_core.mlproject import render

MLPROJECT = Path(__file__).resolve().parent.parent / "MLproject"


def main(arguments: Sequence[str] | None = None) -> None:
    argparse.ArgumentParser(prog="python -m experiments.mlproject", description=__doc__).parse_args(arguments)
    unfinished = MLPROJECT.with_name("MLproject.new")
    unfinished.write_text(render(), encoding="utf-8")
    os.replace(unfinished, MLPROJECT)
    print(f"Wrote {MLPROJECT}.")


if __name__ == "__main__":
    main()
