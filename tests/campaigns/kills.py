"""Kill commands at random and at chosen moments, resume or repeat them, and check that nothing was lost or left.

`python -m tests.campaigns.kills --kills 200 --seed 0` writes a line of JSON for each kill at once, so that a campaign
that is cut can be continued by the same command, and prints what failed. `--only 17` repeats kill 17. With `--power`
the disk loses what was not synchronised, too.
"""

from __future__ import annotations

import os

# Before any library reads them: this process is forked and may have one thread alone.
os.environ.update(
    {
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        **{"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "TOKENIZERS_PARALLELISM": "false"},
        **{"HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MPLBACKEND": "Agg"},
    }
)

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from tests.campaigns import findings
from tests.campaigns.commands import COMMANDS, Command
from tests.campaigns.processes import POWER, Ended, Moment, RunningCommand, choose_moment

PRODUCTS: Final = 160
SIGNALS: Final = ("SIGKILL", "SIGKILL", "SIGKILL", "SIGTERM", "SIGINT")
SECONDS_TO_END: Final = 12.0  # after SIGTERM or SIGINT: 2 s to hear it, 5 s to mark a run, 5 s for workers
MOST_RESUMPTIONS: Final = 2


@dataclass
class Reference:
    """A command without a kill."""

    seconds: float
    metrics: findings.Metrics


@dataclass
class Kill:
    """One kill and what was found after it; a line of the campaign's file."""

    number: int
    seed: int
    command: str
    moment: Moment
    killed: bool = False  # False where the command ended before its moment came
    code: int = 0
    seconds: float = 0.0  # of everything: the command, what resumed it, and the checks
    failures: list[tuple[str, str]] = field(default_factory=list)  # kind and detail

    @property
    def repeat(self) -> str:
        """The command that repeats this kill."""
        flags = f"--commands '{self.command}'" + " --power" * (self.moment.signal == POWER)
        return f"python -m tests.campaigns.kills --seed {self.seed} --only {self.number} {flags}"


class Campaign:
    """Kills in one folder, which is set up anew for each."""

    def __init__(self, folder: Path, shop: Path | None = None) -> None:
        self.folder, self.shop, self.starts = folder / "run", shop or folder / "shop", folder / "starts"
        self.more = folder / "more"  # other products, which a finished run learns
        self.references: dict[str, Reference] = {}
        self._run_id = ""  # of the finished run that is exported
        self._modules = folder / "modules.txt"

    def prepare(self, commands: Sequence[Command], say: bool = True) -> None:
        """Draw the shop, and run each command once without a kill."""
        from vlm_core.catalogue.sample import draw_sample

        if not self.shop.exists():
            draw_sample(self.shop, products=PRODUCTS)
        if any("{more}" in command.arguments for command in commands):
            draw_sample(self.more, products=PRODUCTS, seed=8)
        wanted = {command.start for command in commands} - {"empty"}
        if wanted:
            _hurry()
            self._make_starts("trained" in wanted)
        for command in commands:
            alone = next(each for each in COMMANDS if each.module == command.module and _is_like(each, command))
            if alone.name not in self.references:
                seconds = self.run_alone(alone)
                if say:
                    print(f"{alone.name}: {seconds:.1f} s without a kill.", flush=True)
            # The number of workers changes no metric.
            self.references[command.name] = self.references[alone.name]

    def run_alone(self, command: Command) -> float:
        """Run the command without a kill, as the reference of others, and return its seconds."""
        self.set_up(command)
        ended = self.run(command, modules=self._modules)
        self._check(ended)
        self._import_what_it_did()
        self.references[command.name] = Reference(ended.seconds, self._found(command))
        return ended.seconds

    def kill(self, command: Command, kill: Kill) -> None:
        """Kill the command, resume or repeat it, and note what is wrong."""
        started = time.monotonic()
        self.set_up(command)
        ended = self.run(command, moment=kill.moment)
        kill.code, kill.killed = ended.code, ended.code != 0
        kill.failures += self._judge_end(kill.moment, ended)
        unfinished = ended.code != 0
        for _ in range(MOST_RESUMPTIONS):
            if not unfinished:
                break
            again, ended = self.resume(command)
            kill.failures += [("orphan", line) for line in ended.orphans]
            unfinished = ended.code != 0 and not _says_it_was_done(ended.printed)
            if unfinished:
                kill.failures.append(("not resumed", f"{again}: code {ended.code}: {ended.printed[-600:]}"))
        expected = self.references[command.name].metrics
        loose = command.module == "experiments.tune"  # which trials there are is the sampler's choice
        kill.failures += findings.failures(self.folder, self._found(command), expected, is_open=loose)
        if loose:
            self._learn(command, kill)
        kill.failures = list(dict.fromkeys(kill.failures))
        kill.seconds = round(time.monotonic() - started, 2)

    def _learn(self, command: Command, kill: Kill) -> None:
        """Remember the metrics of trials that the reference has not seen; a search must have retrained its winner."""
        found = self._found(command)
        if not any("winner" in name for name in found):
            kill.failures.append(("not finished", "no finished winner"))
        if all(status != "FINISHED" for _, _, status, parent in findings.runs(self.folder) if not parent):
            kill.failures.append(("not finished", "the search's own run"))
        self.references[command.name].metrics = {**found, **self.references[command.name].metrics}

    def _judge_end(self, moment: Moment, ended: Ended) -> list[tuple[str, str]]:
        wrong = [("orphan", line) for line in ended.orphans]
        if "Traceback" in ended.printed:
            wrong.append(("traceback", ended.printed[-1500:]))
        allowed = (0, -9) if moment.signal in ("SIGKILL", POWER) else (0, 130)
        if ended.code not in allowed:
            wrong.append(("exit code", f"{ended.code} after {moment.signal}: {ended.printed[-400:]}"))
        if ended.seconds_to_end > SECONDS_TO_END:
            wrong.append(("slow end", f"{ended.seconds_to_end:.1f} s after {moment.signal}"))
        return wrong

    def resume(self, command: Command, name: str = "", settings: Sequence[str] = ()) -> tuple[str, Ended]:
        """Do what the command's messages say: resume the unfinished run, or repeat the command with its settings.

        With `name` the folder has runs of others as well, and those count whose name starts like that.
        """
        others = [run for run in findings.runs(self.folder) if run[0] != self._run_id and run[1].startswith(name)]
        leading = [
            run for run in others if run[3] in ("", self._run_id)
        ]  # an extension is below the run that it extends
        unfinished = [run for run in leading if run[2] != "FINISHED" and findings.has_settings(self.folder, run[0])]
        finished = [run for run in leading if run[2] == "FINISHED"]
        if command.resumes and unfinished and not finished:
            return "resumed", self.run(command, extra=("--resume", unfinished[-1][0]))
        if command.resumes and finished:
            return "was done", self.run(command, extra=("--resume", finished[-1][0]))
        return "repeated", self.run(command, extra=settings)

    def run(
        self, command: Command, *, extra: Sequence[str] = (), moment: Moment | None = None, modules: Path | None = None
    ) -> Ended:
        """Run the command in the folder, to its end or to its death."""
        return RunningCommand(command.module, self.arguments(command, extra), self.folder, moment, modules).wait()

    def arguments(self, command: Command, extra: Sequence[str] = ()) -> list[str]:
        """Return the command's flags, with the paths and ids of this campaign."""
        named = {"{shop}": str(self.shop), "{more}": str(self.more), "{run}": self._run_id}
        return [named.get(text, text) for text in (*command.arguments, *extra)]

    def _found(self, command: Command) -> findings.Metrics:
        if command.module == "experiments.prepare":
            return findings.prepared_metrics(self.folder)
        return {
            **findings.metrics(self.folder),
            **(findings.checksums(self.folder / command.output) if command.output else {}),
        }

    def set_up(self, command: Command) -> None:
        """Make the folder what the command finds."""
        shutil.rmtree(self.folder, ignore_errors=True)
        if command.start == "empty":
            self.folder.mkdir(parents=True)
        else:
            shutil.copytree(self.starts / command.start, self.folder)

    def _make_starts(self, trained: bool) -> None:
        """Keep the folder as it is after a first run, in parts: data, data and a store, and all with the run."""
        first = next(command for command in COMMANDS if command.start == "data")
        self.folder.mkdir(parents=True)
        self._check(self.run(COMMANDS[0], modules=self._modules))
        self._import_what_it_did()
        shutil.copytree(self.folder, self.starts / "data")
        self._check(self.run(first, modules=self._modules))
        self._import_what_it_did()
        shutil.copytree(self.folder, self.starts / "prepared")
        _forget_runs(self.starts / "prepared")
        if trained:
            shutil.rmtree(self.folder)
            shutil.copytree(self.starts / "prepared", self.folder)
            training = next(command for command in COMMANDS if command.name == "train clip probe")
            self._check(self.run(training))
            self._run_id = findings.runs(self.folder)[-1][0]
            self._check(self.run(next(command for command in COMMANDS if command.name == "shard")))
            shutil.copytree(self.folder, self.starts / "trained")

    def _check(self, ended: Ended) -> None:
        if ended.code:
            raise SystemExit(ended.printed)

    def _import_what_it_did(self) -> None:
        """Import what a command had imported, so that later ones, forked from here, need not."""
        for name in self._modules.read_text().split("\n"):
            if name.split(".")[0] not in ("__main__", "__mp_main__", "tests") and name not in sys.modules:
                with suppress(Exception):
                    import_module(name)
        if threading.active_count() > 1:
            raise SystemExit(f"A library started a thread, so no fork is safe: {threading.enumerate()}")


def _is_like(one: Command, other: Command) -> bool:
    return one.name == other.name or (one.workers == 1 and other.workers > 1)


def _forget_runs(folder: Path) -> None:
    """Delete all runs, models and files from a store, and keep its tables."""
    import sqlite3
    from contextlib import closing

    for name in ("mlruns", "logs", "results", "checkpoints", "cache", "tmp"):
        shutil.rmtree(folder / name, ignore_errors=True)
    with closing(sqlite3.connect(folder / "mlflow.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for name in names:
            if name not in ("alembic_version", "experiments", "workspaces"):
                database.execute(f'DELETE FROM "{name}"')
        database.execute("DELETE FROM experiments WHERE experiment_id != 0")
        database.commit()


def _hurry() -> None:
    """Have forks draw no plot, and list the installed packages once: neither matters to a kill."""
    from functools import cache

    from mlflow.utils import requirements_utils
    from PIL import Image

    from vlm_core.evaluation import plots
    from vlm_core.files.atomic import write_atomically
    from vlm_core.tracking.store import open_mlflow

    def write_blank(*arguments: Any) -> None:
        write_atomically(arguments[-1], lambda file: Image.new("RGB", (8, 8)).save(file, "PNG"))

    open_mlflow()
    requirements_utils._init_packages_to_modules_map = cache(requirements_utils._init_packages_to_modules_map)
    plots.plot_confusion = plots.plot_reliability = write_blank


def _says_it_was_done(printed: str) -> bool:
    return bool(re.search(r"has all of its \d+ trials|that run is finished", printed))


def plan(
    number: int, seed: int, commands: Sequence[Command], campaign: Campaign, signals: Sequence[str] = SIGNALS
) -> tuple[Command, Kill]:
    """Return what kill `number` of a campaign with that seed kills, when, and by one of the signals."""
    chance = random.Random(f"{seed} {number}")
    command = chance.choices(commands, [command.weight for command in commands])[0]
    moment = choose_moment(chance, campaign.references[command.name].seconds, command.files, command.steps, signals)
    return command, Kill(number, seed, command.name, moment)


def read_kills(path: Path) -> list[dict[str, Any]]:
    """Return the kills of a campaign's file, [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(kills: Sequence[dict[str, Any]]) -> str:
    """Return the counts by command in Markdown, then each failure with what repeats it."""
    lines = ["| command | kills | of these in time | failed | kinds |", "|---|---|---|---|---|"]
    groups = {
        name: [kill for kill in kills if kill["command"] == name] for name in dict.fromkeys(k["command"] for k in kills)
    }
    for name, of_command in [*groups.items(), ("all", list(kills))]:
        failed = [kill for kill in of_command if kill["failures"]]
        kinds = Counter(kind for kill in failed for kind in {kind for kind, _ in kill["failures"]})
        shown = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common()) or "none"
        in_time = sum(kill["killed"] for kill in of_command)
        lines.append(f"| {name} | {len(of_command)} | {in_time} | {len(failed)} | {shown} |")
    for kill in kills:
        for kind, detail in kill["failures"]:
            moment = Moment(**kill["moment"])
            lines.append(f"\n{kill['number']}: {kill['command']}, {moment.signal} {moment}: {kind}: {detail}")
            lines.append(f"    {kill['repeat']}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run or continue the campaign that the flags describe, and print its table."""
    names = [command.name for command in COMMANDS]
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="kills to reach")
    parser.add_argument("--seed", type=int, default=0, help="decides what is killed, and when")
    parser.add_argument("--only", type=int, help="number of one kill to repeat")
    parser.add_argument(
        "--commands", default="", help=f"starts of names, separated by semicolons, of: {'; '.join(names)}"
    )
    parser.add_argument("--workers", default="1,2", help="kill commands with so many workers")
    parser.add_argument("--power", action="store_true", help="lose power at the kill; with one worker")
    parser.add_argument("--minutes", type=float, default=1e9, help="start no kill after so many minutes")
    parser.add_argument("--output", type=Path, default=Path("kills.jsonl"), help="file of kills, which is continued")
    options = parser.parse_args(arguments)
    starts = tuple(text.strip() for text in options.commands.split(";") if text.strip()) or ("",)
    workers = [1] if options.power else [int(text) for text in options.workers.split(",")]
    commands = [each for each in COMMANDS if each.name.startswith(starts) and each.workers in workers]
    end = time.monotonic() + 60 * options.minutes
    folder = Path(tempfile.mkdtemp(prefix="kills-"))  # a TemporaryDirectory would go with the first fork
    try:
        campaign = Campaign(folder)
        campaign.prepare(commands)
        done = {kill["number"] for kill in read_kills(options.output)} if options.only is None else set()
        numbers = range(options.kills) if options.only is None else [options.only]
        for number in numbers:
            if number in done or time.monotonic() > end:
                continue
            command, kill = plan(number, options.seed, commands, campaign, (POWER,) if options.power else SIGNALS)
            campaign.kill(command, kill)
            text = json.dumps({**asdict(kill), "repeat": kill.repeat})
            with options.output.open("a") as file:
                file.write(text + "\n")
            kinds = ", ".join(sorted({kind for kind, _ in kill.failures})) or "nothing lost"
            print(
                f"{number}: {kill.command}, {kill.moment.signal} {kill.moment}: {kinds} ({kill.seconds} s).", flush=True
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(table(read_kills(options.output)))


if __name__ == "__main__":
    main()
