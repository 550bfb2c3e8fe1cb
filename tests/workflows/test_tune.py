"""A search on a small catalogue; and, with trials that learn nothing, what begins, prunes and resumes them."""

import json
import os
import platform
import sqlite3
import time
from contextlib import closing
from multiprocessing import get_context
from types import SimpleNamespace

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from experiments import tune
from tests.messages import collected_messages
from tests.standins import wait_for
from tests.stub_training import Killed, kill_at, kill_on_entry, train_nothing, try_nothing
from vlm_core.config import SearchConfig
from vlm_core.errors import Diverged, UserError
from vlm_core.tracking.reader import RunReader
from vlm_core.workflows import train
from vlm_core.workflows.search_storage import open_database, repeat_forgotten
from vlm_core.workflows.tune import JOURNAL, count_states, run_search

SMALL = {
    "preset": "demo", "model": "clip", "epochs": 3, "train_per_category": 12, "per_category": 20, "threads": 1,
    "resamples": 100, "search": "learning_rate,weight_decay", "trials": 3,
}  # fmt: skip
TRIAL = "vlm_core.workflows.tune.run_trial"
_CLOCKS = {"time": time.time, "monotonic": time.monotonic}


@pytest.fixture
def search(shop, stocked):
    """Run a small search in a store of its own: the outcome, and the messages that were logged."""

    def start(**settings):
        with collected_messages() as lines:
            return run_search(SearchConfig.build({**SMALL, "data": str(shop), **settings}), stocked), lines

    return start


@pytest.fixture
def quick(search, monkeypatch):
    """The same search, whose trials and winner learn nothing."""
    monkeypatch.setattr(TRIAL, try_nothing())
    monkeypatch.setattr("vlm_core.workflows.tune.run_training", train_nothing())
    monkeypatch.setattr("vlm_core.workflows.tune._PLOTS", {1: (), 2: ("pareto_front",)})
    return search


def _runs(kind):
    runs = RunReader().runs()
    return runs[runs["tags.kind"] == kind]


@pytest.mark.slow
def test_trials_are_nested_and_the_winner_alone_reads_the_test_split(search, store, monkeypatch):
    tested = []
    evaluate = train.evaluate_rows

    def noted(config, catalogue, model, rows, *rest):
        tested.append((config, set(rows.tolist())))
        return evaluate(config, catalogue, model, rows, *rest)

    monkeypatch.setattr(train, "evaluate_rows", noted)
    outcome, _ = search(search="learning_rate,blocks,weight_decay")
    assert RunReader().params(outcome.run_id)["search"] == "learning_rate,weight_decay"  # of a probe no block learns
    assert sum(count_states(outcome.search).values()) == 3
    best = max(outcome.search.get_trials(states=(TrialState.COMPLETE,)), key=lambda trial: trial.value)
    settings = (best.params["learning_rate"], best.params["weight_decay"])
    assert [(config.learning_rate, config.weight_decay) for config, _ in tested] == [settings, settings]
    assert tested[0][1].isdisjoint(tested[1][1])  # the test split, and validation for thresholds
    reader = RunReader()
    trials = _runs("trial")
    assert len(trials) == 3 and set(trials["tags.mlflow.parentRunId"]) == {outcome.run_id}
    assert not any(name.startswith("metrics.test") for name in trials.dropna(axis=1, how="all"))
    assert reader.tags(outcome.winner.run_id)["mlflow.parentRunId"] == outcome.run_id
    assert reader.metrics(outcome.winner.run_id)["validation_macro_f1"] >= 0
    assert reader.metrics(outcome.run_id)["best_validation_macro_f1"] == best.value
    assert json.loads(reader.tags(outcome.run_id)["best_settings"]) == best.params
    names = {path.name for path in reader.artifact(outcome.run_id, "search").iterdir()}
    assert names >= {"trials.csv", "optimization_history.html"}
    history = reader.history(outcome.winner.run_id, "validation_macro_f1")
    assert history["value"].max() == outcome.best.value  # the winner repeats its trial
    assert len(list(reader.artifact(outcome.winner.run_id, "results").iterdir())) == len(
        history
    )  # its epochs' pictures
    entries = [folder for folder in (store / "cache").iterdir() if folder.is_dir()]
    assert len(entries) == 2  # all trials share the features: of whole batches, and of the rows that fill none


def test_hopeless_trials_are_pruned(quick):
    outcome, _ = quick(trials=14, search="learning_rate", epochs=6, seed=3)
    assert count_states(outcome.search)["pruned"] > 0 and sum(count_states(outcome.search).values()) == 14
    assert (
        len(_runs("trial").query("`tags.pruned` == 'true' and status == 'FINISHED'"))
        == count_states(outcome.search)["pruned"]
    )


def test_two_objectives_give_a_front(quick):
    outcome, _ = quick(search_objectives="score,seconds", trials=2)
    assert {trial.values[1] for trial in outcome.search.best_trials} <= {
        trial.params["learning_rate"] for trial in outcome.search.get_trials()
    }
    assert (RunReader().artifact(outcome.run_id, "search") / "pareto_front.html").exists()


def test_a_finished_search_is_refused_and_continues_with_more_trials(quick):
    quick(trials=2)
    with pytest.raises(UserError, match="has all of its 2 trials"):
        quick(trials=2)
    outcome, _ = quick(trials=4)
    assert count_states(outcome.search) == {"complete": 4} and outcome.winner
    tried = [trial.params["learning_rate"] for trial in outcome.search.get_trials()]
    assert len(set(tried)) == 4  # not the first ones again


def test_a_journal_whose_last_line_was_cut_is_mended_and_goes_on(quick, stocked):
    quick(trials=1)
    journal = stocked / JOURNAL
    for trials, cut in enumerate((1, 9, 25, 120), start=2):
        journal.write_bytes(journal.read_bytes()[:-cut])
        outcome, lines = quick(trials=trials)
        assert len([line for line in lines if "The last line of" in line and "continues without it" in line]) == 1
        assert not any("resume=" in line for line in lines)
        assert len(outcome.search.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))) == trials
        assert all(json.loads(line) for line in journal.read_text().splitlines())
    with pytest.raises(UserError, match="has all of its 5 trials"):
        quick(trials=5)


def test_what_was_written_behind_a_cut_line_is_dropped_with_it(quick, stocked):
    quick(trials=1)
    journal = stocked / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code":4,"worker_id"{"op_code":5}\n' + bytes(40))
    assert count_states(quick(trials=2)[0].search) == {"complete": 2}


def test_a_line_broken_further_up_is_one_sentence(quick, stocked):
    quick(trials=1)
    journal = stocked / JOURNAL
    first, *others = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([first, b"broken\n", *others]))
    with pytest.raises(UserError, match="holds a broken line.*move the file away"):
        quick(trials=2)


def test_other_settings_need_another_search(quick):
    quick(trials=1)
    with pytest.raises(UserError, match="started with train_per_category=12, not 13"):
        quick(trials=2, train_per_category=13)
    assert count_states(quick(trials=1, train_per_category=13, search_name="other")[0].search) == {"complete": 1}


def test_a_second_process_runs_trials_for_the_one_that_leads(quick):
    first, _ = quick(trials=1)
    elsewhere = psutil.Process(os.getppid())  # alive, and not us
    tag = f"{platform.node()}:{elsewhere.pid}:{elsewhere.create_time():.2f}"
    for name, text in {"process": tag, "winner_run": ""}.items():
        first.search.set_user_attr(name, text)
    outcome, lines = quick(trials=3)
    assert "Another process leads" in " ".join(lines)
    assert outcome.winner is None and outcome.run_id == first.run_id
    assert count_states(outcome.search) == {"complete": 3}
    assert set(_runs("trial")["tags.mlflow.parentRunId"]) == {first.run_id}


@pytest.mark.slow
def test_a_search_whose_database_is_locked_waits_for_it(quick, monkeypatch):
    for name in ("SECONDS_SILENT", "SECONDS_BETWEEN"):
        monkeypatch.setattr(f"vlm_core.tracking.patience.{name}", 0.0)
    database = optuna.storages.RDBStorage
    report, locks = database.set_trial_intermediate_value, [sqlite3.OperationalError("database is locked")] * 2

    def lock_first(*given):
        if locks:
            raise optuna.exceptions.StorageInternalError("An exception is raised during the commit.") from locks.pop()
        return report(*given)

    monkeypatch.setattr(database, "set_trial_intermediate_value", lock_first)
    outcome, lines = quick(trials=1, storage="sqlite:///search.db")
    assert count_states(outcome.search) == {"complete": 1}
    assert len([line for line in lines if "search.db is locked by another process: waiting" in line]) == 1
    assert len([line for line in lines if "search.db is back" in line]) == 1


@pytest.fixture
def elsewhere(quick):
    """A search in a database, and a trial that a process of another machine runs: the search, and the trial's id."""
    outcome, _ = quick(trials=1, storage="sqlite:///search.db")
    trial = outcome.search.ask()
    trial.set_user_attr("beats", True)
    trial.set_user_attr("process", "another-machine:1:1.00")
    outcome.search._storage.record_heartbeat(trial._trial_id)
    return outcome.search, trial


@pytest.mark.slow
def test_a_trial_of_another_machine_that_falls_silent_is_repeated_once(elsewhere, quick, stocked):
    _, trial = elsewhere
    trial.suggest_float("learning_rate", 1e-4, 1e-1, log=True)
    (stocked / "checkpoints" / "dead").mkdir(parents=True)
    trial.set_user_attr("mlflow_run", "dead")
    with closing(sqlite3.connect(stocked / "search.db")) as database, database:
        database.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")
    outcome, lines = quick(trials=4, storage="sqlite:///search.db", search="learning_rate,weight_decay")
    assert count_states(outcome.search) == {"complete": 4, "fail": 1}
    (repeated,) = [each for each in outcome.search.get_trials() if "repeats" in each.user_attrs]
    assert repeated.user_attrs["repeats"] == trial.number
    assert repeated.params["learning_rate"] == trial.params["learning_rate"]
    assert len([line for line in lines if f"Trial {trial.number} died with its process and is repeated" in line]) == 1
    assert not (stocked / "checkpoints" / "dead").exists()


@pytest.mark.slow
def test_a_trial_that_another_machine_runs_is_waited_for(elsewhere, quick, monkeypatch):
    search, trial = elsewhere
    waited = []

    def end_it(seconds):
        waited.append(seconds)
        search.tell(trial, 0.5)

    monkeypatch.setattr("vlm_core.workflows.tune.time", SimpleNamespace(sleep=end_it, **_CLOCKS))
    outcome, _ = quick(trials=2, storage="sqlite:///search.db")
    assert count_states(outcome.search) == {"complete": 2} and len(waited) == 1


@pytest.mark.slow
def test_a_trial_of_an_earlier_version_which_says_nothing_is_not_waited_for(quick):
    outcome, _ = quick(trials=1, storage="sqlite:///search.db")
    outcome.search.ask().set_user_attr("process", "another-machine:1:1.00")
    outcome, _ = quick(trials=2, storage="sqlite:///search.db")
    assert count_states(outcome.search) == {"complete": 1, "running": 1}


@pytest.mark.slow
@pytest.mark.parametrize(("seconds", "leads"), [(5, False), (1000, True)])
def test_a_leader_on_another_machine_leads_until_it_falls_silent(quick, seconds, leads):
    first, _ = quick(trials=1, storage="sqlite:///search.db")
    facts = {"process": "another-machine:1:1.00", "winner_run": "", "leader_beat": time.time() - seconds}
    for name, value in facts.items():
        first.search.set_user_attr(name, value)
    outcome, _ = quick(trials=2, storage="sqlite:///search.db")
    assert bool(outcome.winner) == leads and count_states(outcome.search) == {"complete": 2}


def test_a_trial_that_was_stopped_is_tried_again(quick, monkeypatch):
    def stop(config, epoch):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TRIAL, try_nothing(stop))
        quick()
    outcome, _ = quick()
    assert count_states(outcome.search) == {"complete": 3, "fail": 1}
    stopped, again, *_ = outcome.search.get_trials()
    assert again.params == stopped.params and again.user_attrs["repeats"] == stopped.number


def test_a_diverging_trial_counts_as_pruned(quick, monkeypatch):
    calls = []

    def diverge_first(config, epoch):
        calls.append(config)
        if len(calls) == 1:
            raise Diverged("The loss is nan")

    monkeypatch.setattr(TRIAL, try_nothing(diverge_first))
    assert count_states(quick()[0].search) == {"complete": 2, "pruned": 1}


@pytest.mark.slow
def test_no_password_is_stored_or_shown(quick, stocked, monkeypatch, tmp_path):
    here = f"sqlite:///{stocked}/search.db"
    monkeypatch.setattr("vlm_core.workflows.tune.open_database", lambda address, root: open_database(here, root))
    address = "postgresql://seeker:hunter2@db.example/searches?password=hunter2"
    failures = [RuntimeError(f"cannot reach {address}"), UserError(f"{address} is away")]
    for error in failures:

        def fail(config, epoch, error=error):
            raise error

        monkeypatch.setattr(TRIAL, try_nothing(fail))
        with pytest.raises(type(error)):
            quick(trials=1, storage=address)
    monkeypatch.setattr(TRIAL, try_nothing())
    outcome, lines = quick(trials=1, storage=address)
    shown = RunReader().runs().to_string() + "\n".join(lines)
    assert "postgresql://db.example/searches?password=***" in shown
    assert "hunter2" not in shown and "seeker" not in shown
    files = [path for path in stocked.rglob("*") if path.is_file() and "data" not in path.relative_to(stocked).parts[0]]
    assert {stocked / "mlflow.db", stocked / "search.db"} <= set(files)
    assert [path for path in files if b"hunter2" in path.read_bytes() or b"seeker" in path.read_bytes()] == []
    assert outcome.winner


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"search": "learning_rate,nose"}, "search=nose cannot be searched over"),
        ({"search": "lora_rank"}, "none of these settings has an effect with mode=probe"),
        ({"storage": "nosuch://x"}, "The search cannot be stored"),
        ({"engine": "ray"}, r"engine=ray keeps a search in a database that all nodes reach: add storage=postgresql"),
    ],
)
def test_a_search_that_cannot_be_is_refused(quick, settings, message):
    with pytest.raises(UserError, match=message):
        quick(**settings)


def test_two_workers_share_the_trials(quick, store, monkeypatch):
    met = store / "met"
    met.mkdir()

    def meet(config, epoch):
        (met / str(os.getpid())).touch()
        wait_for(lambda: len(list(met.iterdir())) == 2, 60)

    monkeypatch.setattr(TRIAL, try_nothing(meet))
    here = SimpleNamespace(get_context=lambda method: get_context("fork"))  # where the stand-in is known
    monkeypatch.setattr("vlm_core.engine.local_processes.multiprocessing", here)
    outcome, _ = quick(workers=2, trials=4, epochs=1)
    states = count_states(outcome.search)
    assert 4 <= states["complete"] + states.get("pruned", 0) <= 5 and "running" not in states
    assert len({trial.user_attrs["process"] for trial in outcome.search.get_trials()}) == 2
    assert (RunReader().runs()["status"] == "FINISHED").all()


def test_a_killed_search_is_resumed_to_all_its_trials_and_leaves_no_orphan(quick, shop, stocked, monkeypatch):
    flags = [f"--{name}={value}" for name, value in {**SMALL, "data": str(shop), "trials": 3}.items()]

    def work(here):
        def stop_in_the_second_trial(config, epoch):
            if config.run_name == "clip-probe-1":
                (stocked / "checkpoints" / RunReader().runs()["run_id"].iloc[0]).mkdir(parents=True)
                here()

        monkeypatch.setattr(TRIAL, try_nothing(stop_in_the_second_trial))
        tune.main(flags)

    kill_at(work)
    assert sorted(RunReader().runs()["status"]) == ["FINISHED", "RUNNING", "RUNNING"]
    with collected_messages() as lines:
        tune.main(flags)
    assert any("is repeated" in line for line in lines)
    storage = optuna.storages.journal.JournalFileBackend(str(stocked / JOURNAL))
    study = optuna.load_study(study_name="clip-probe", storage=optuna.storages.JournalStorage(storage))
    states = count_states(study)
    assert states.pop("fail") == 1 and sum(states.values()) == 3 and not {"running", "waiting"} & states.keys()
    assert set(RunReader().runs()["status"]) == {"FINISHED", "KILLED"}
    trials = study.get_trials()
    assert trials[2].params == trials[1].params
    assert list((stocked / "checkpoints").iterdir()) == []


def test_a_trial_of_another_machine_is_repeated_once_whoever_dies_that_noticed_its_death(quick, stocked, monkeypatch):
    settings = {"trials": 2, "storage": f"sqlite:///{stocked / 'search.db'}"}

    def die(*given):
        raise Killed

    def die_with(name, what):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_on_entry(patch, optuna.Study, "optimize")  # which nobody calls: no run that dies is marked
            patch.setattr(name, what)
            quick(**settings)
        for _, run in RunReader().runs().query("status == 'RUNNING'").iterrows():
            machine = "elsewhere" if run["tags.kind"] == "trial" else platform.node()
            RunReader()._client.set_tag(run["run_id"], "process", f"{machine}:{2**22 + 1}:1.00")

    die_with(TRIAL, try_nothing(die))
    die_with("vlm_core.workflows.search_storage.queue_again", die)
    die_with("vlm_core.workflows.search_storage.end_orphans", die)
    assert sorted(RunReader().runs()["status"]) == ["FINISHED", "FINISHED", "RUNNING", "RUNNING"]
    outcome, _ = quick(**settings)
    trials = outcome.search.get_trials()
    assert [trial.user_attrs.get("repeats") for trial in trials] == [None, 0, None]
    assert trials[1].params == trials[0].params and count_states(outcome.search)["fail"] == 1
    assert sorted(RunReader().runs()["status"]) == [*["FINISHED"] * 4, "KILLED"]


def test_a_repeated_trial_that_dies_at_once_keeps_its_settings_and_repetitions_end(tmp_path):
    search = optuna.create_study(storage=open_database(f"sqlite:///{tmp_path / 'search.db'}", tmp_path))
    first = search.ask({"learning_rate": optuna.distributions.FloatDistribution(0, 1)})
    search.tell(first.number, state=TrialState.FAIL)
    with collected_messages() as lines:
        for _ in range(5):
            repeat_forgotten(search, tmp_path)
            if any(trial.state == TrialState.WAITING for trial in search.get_trials()):
                search.tell(search.ask().number, state=TrialState.FAIL)  # before it has taken any setting
    queued = [trial.system_attrs["fixed_params"] for trial in search.get_trials()[1:]]
    assert queued == [first.params] * 3
    assert [line.split(" died")[0] for line in lines if "is repeated" in line] == ["Trial 0", "Trial 1", "Trial 2"]


@pytest.mark.parametrize("moment", ["in the winner's training", "after it", "at the end of the search"])
def test_a_search_that_dies_with_its_winner_keeps_what_is_trained(quick, monkeypatch, moment):
    trained = []

    def die(config, epoch):
        trained.append((epoch, config.resume))
        if (moment, epoch, config.resume) == ("in the winner's training", 1, ""):
            raise Killed

    monkeypatch.setattr("vlm_core.workflows.tune.run_training", train_nothing(die))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        tell = optuna.Study.set_user_attr

        def set_and_die(study, name, value):
            if name == "winner_run" and value:
                if moment == "at the end of the search":
                    tell(study, name, value)
                raise Killed
            tell(study, name, value)

        kill_on_entry(patch, optuna.Study, "optimize")  # which nobody calls: no run that dies is marked
        patch.setattr(optuna.Study, "set_user_attr", set_and_die)
        quick(trials=2)
    for run_id in RunReader().runs().query("status == 'RUNNING'")["run_id"]:
        RunReader()._client.set_tag(run_id, "process", f"{platform.node()}:{2**22 + 1}:1.00")  # that of a dead process
    outcome, _ = quick(trials=2)
    runs = RunReader().runs()
    assert set(runs["status"]) == {"FINISHED"} and sum(runs["name"] == "clip-probe-winner") == 1
    assert outcome.search.user_attrs["winner_run"] == outcome.winner.run_id
    resumed = [(1, outcome.winner.run_id), (2, outcome.winner.run_id)] if moment == "in the winner's training" else []
    assert trained == [(1, ""), *([] if resumed else [(2, "")]), *resumed]
    with pytest.raises(UserError, match="has all of its 2 trials"):
        quick(trials=2)
