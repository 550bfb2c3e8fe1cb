"""Let two trainings race for a feature cache that has no room for both, and compare each with itself alone.

`python -m tests.campaigns.races --races 20 --seed 0` writes a line of JSON for each race at once, is continued by the
same command, and prints what failed. In some races one training is killed and resumed, in some the cache is deleted.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.campaigns import findings
from tests.campaigns.commands import COMMANDS, Command
from tests.campaigns.kills import Campaign, read_kills
from tests.campaigns.processes import Moment, RunningCommand

RIVALS: Final = ("train clip probe", "train blip lp-ft", "train git lora")
GIB: Final = 2**30
SHARES: Final = (0.0, 0.5, 1.2)  # of the larger rival's cache: the limit of both


class Races(Campaign):
    """Races in one folder, which is set up anew for each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.bytes: dict[str, int] = {}  # of each command's features

    def run_alone(self, command: Command) -> float:
        """Run the command alone, with room for its features, and note how many bytes these take."""
        seconds = super().run_alone(command)
        files = (path for path in (self.folder / "cache").rglob("*") if path.is_file())
        self.bytes[command.name] = sum(path.stat().st_blocks * 512 for path in files)
        return seconds

    def race(
        self, commands: Sequence[Command], share: float, kind: str, chance: random.Random
    ) -> list[tuple[str, str]]:
        """Run two commands at once; kill the first if `kind` is "kill", delete the cache if it is "delete"."""
        self.set_up(commands[0])
        limit = share * max(self.bytes[command.name] for command in commands) / GIB
        extra = ("--cache_gib", f"{limit:.9f}")
        seconds = chance.uniform(0.0, 1.5 * min(self.references[command.name].seconds for command in commands))
        moments = (Moment("time", "SIGKILL", seconds=seconds) if kind == "kill" else None, None)
        running = [
            RunningCommand(command.module, self.arguments(command, extra), self.folder, moment)
            for command, moment in zip(commands, moments, strict=True)
        ]
        if kind == "delete":
            time.sleep(seconds)
            shutil.rmtree(self.folder / "cache", ignore_errors=True)
        ended = [each.wait() for each in running]
        wrong = [("orphan", line) for each in ended for line in each.orphans]
        if ended[0].code == -9:
            _, ended[0] = self.resume(commands[0], "-".join(commands[0].name.split()[1:]), extra)
        wrong += [("failed", f"code {each.code}: {each.printed[-800:]}") for each in ended if each.code]
        expected = {name: found for each in commands for name, found in self.references[each.name].metrics.items()}
        return wrong + list(findings.failures(self.folder, findings.metrics(self.folder), expected, is_open=False))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or continue the races that the flags describe, and print what failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.races", description=__doc__)
    parser.add_argument("--races", type=int, default=20, help="races to reach")
    parser.add_argument("--seed", type=int, default=0, help="decides who races, and what happens when")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no race after so many minutes")
    parser.add_argument("--output", type=Path, default=Path("races.jsonl"), help="file of races, which is continued")
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    commands = [command for command in COMMANDS if command.name in RIVALS]
    done = {race["number"] for race in read_kills(options.output)}
    folder = Path(tempfile.mkdtemp(prefix="races-"))
    try:
        races = Races(folder)
        races.prepare(commands)
        for number in range(options.races):
            if number in done or time.monotonic() > end:
                continue
            chance = random.Random(f"{options.seed} {number}")
            rivals, share = chance.sample(commands, 2), chance.choice(SHARES)
            kind = chance.choice(("undisturbed", "kill", "delete"))
            failures = races.race(rivals, share, kind, chance)
            names = [command.name for command in rivals]
            line: dict[str, Any] = {"number": number, "rivals": names, "share": share, "kind": kind}
            with options.output.open("a") as file:
                file.write(json.dumps({**line, "failures": failures}) + "\n")
            print(f"{number}: {' and '.join(names)}, room for {share}, {kind}: {failures or 'as alone'}", flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    found = read_kills(options.output)
    for kind in ("undisturbed", "kill", "delete"):
        of_kind = [race for race in found if race["kind"] == kind]
        print(f"{kind}: {len(of_kind)} races, {sum(bool(race['failures']) for race in of_kind)} failed")


if __name__ == "__main__":
    main()
