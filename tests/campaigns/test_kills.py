"""The campaign of kills itself: two kills of a command, and that it sees what is wrong."""

import json
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.campaigns import findings
from tests.campaigns.kills import read_kills, table
from tests.campaigns.processes import lose_power
from tests.stores import ROOT
from vlm_core.catalogue.sample import draw_sample

_TWO_KILLS = """
import json, sys
from pathlib import Path
from tests.campaigns.kills import COMMANDS, Campaign, Kill, Moment

command = COMMANDS[0]
campaign = Campaign(Path(sys.argv[1]), Path(sys.argv[2]))
campaign.prepare([command], say=False)
kills = [
    Kill(0, 0, command.name, Moment("step", "SIGKILL", "os:replace")),
    Kill(1, 0, command.name, Moment("step", "SIGTERM", "vlm_core.catalogue.catalogue:_write")),
]
for kill in kills:
    campaign.kill(command, kill)
print(json.dumps([(kill.code, kill.failures) for kill in kills]))
"""


@pytest.mark.slow
def test_a_killed_preparation_is_repeated_to_the_same_data_and_leaves_nothing(tmp_path: Path) -> None:
    """The campaign forks, so it needs a process of its own: other tests have started threads in this one."""
    shop = draw_sample(tmp_path / "sample", products=60)
    command = [sys.executable, "-c", _TWO_KILLS, str(tmp_path), str(shop)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[-9, []], [130, []]]


def test_a_campaign_sees_what_a_command_left(tmp_path: Path) -> None:
    (tmp_path / "data" / "processed" / ".shop.1.part").mkdir(parents=True)
    (tmp_path / "checkpoints" / "done").mkdir(parents=True)
    (tmp_path / "tmp").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        database.executescript(
            """
            CREATE TABLE runs (run_uuid, name, status, lifecycle_stage, start_time);
            CREATE TABLE tags (run_uuid, key, value);
            CREATE TABLE params (run_uuid, key, value);
            CREATE TABLE metrics (run_uuid, key, step, value, is_nan);
            CREATE TABLE logged_models (source_run_id, status, lifecycle_stage);
            CREATE TABLE model_versions (run_id, current_stage);
            INSERT INTO runs VALUES ('done', 'a', 'FINISHED', 'active', 1), ('open', 'b', 'RUNNING', 'active', 2);
            INSERT INTO metrics VALUES ('done', 'f1', 0, 0.5, 0), ('done', 'f1', 0, 0.5, 0);
            INSERT INTO logged_models VALUES ('done', 1, 'active'), ('done', 2, 'active');
            INSERT INTO model_versions VALUES ('done', 'None'), ('done', 'None');
            """
        )
    found = findings.metrics(tmp_path)
    kinds = [kind for kind, _ in findings.failures(tmp_path, found, {"a": {"f1 at 0": 0.6}, "c": {}}, is_open=False)]
    assert kinds == [
        *("other metrics", "not finished", "RUNNING", "model not whole"),
        *("logged twice", "logged twice", "logged twice", "left behind", "left behind"),
    ]


def test_a_campaign_counts_and_says_how_to_repeat(tmp_path: Path) -> None:
    assert read_kills(tmp_path / "none.jsonl") == []
    moment = {"kind": "step", "signal": "SIGKILL", "what": "os:replace", "seconds": 0.0, "count": 2, "after": True}
    one = {"number": 3, "command": "prepare", "moment": moment, "killed": True, "failures": [], "repeat": "python x"}
    text = table([one, {**one, "number": 4, "failures": [["left behind", "a file"]]}])
    assert "| prepare | 2 | 2 | 1 | left behind 1 |" in text
    assert "4: prepare, SIGKILL after call 2 of replace: left behind: a file\n    python x" in text


def test_a_loss_of_power_empties_what_was_written_since_and_not_synchronised(tmp_path: Path) -> None:
    (tmp_path / "before").write_text("x")
    script = (
        "import os, sys; from pathlib import Path; from tests.campaigns.processes import _note_syncs\n"
        "_note_syncs(Path(sys.argv[1]) / 'syncs')\n"
        "for name in ('written', 'synchronised', 'changed'):\n"
        "    with (Path(sys.argv[1]) / name).open('w') as file:\n"
        "        file.write('x'); file.flush()\n"
        "        name == 'written' or os.fsync(file)\n"
        "        name == 'changed' and file.write('y')\n"
    )
    since = time.time_ns()
    time.sleep(0.02)  # the clock of files ticks every few milliseconds
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True)
    lost = lose_power(tmp_path, tmp_path / "syncs", since + 1)
    assert sorted(path.name for path in lost) == ["changed", "written"]
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes == {"before": 1, "written": 0, "synchronised": 1, "changed": 0}


def test_a_loss_of_power_keeps_what_was_written_before_all_was_synchronised(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from tests.campaigns.processes import _note_syncs\n"
        "from vlm_core.files import atomic; here = Path(sys.argv[1]); _note_syncs(here / 'syncs')\n"
        "(here / 'first').write_text('x'); time.sleep(0.02); atomic.synchronise(here); time.sleep(0.02)\n"
        "(here / 'later').write_text('x')\n"
    )
    since = time.time_ns()
    time.sleep(0.02)
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=True)
    assert [path.name for path in lose_power(tmp_path, tmp_path / "syncs", since)] == ["later"]
