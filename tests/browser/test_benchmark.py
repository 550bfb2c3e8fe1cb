"""The benchmark requests what the pages' callbacks serve."""

from pathlib import Path

from tests.browser import benchmark


def test_every_request_of_the_leaderboard_is_served(filled_store: Path, monkeypatch):
    monkeypatch.setattr(benchmark, "REPEATS", 1)
    rows = dict(benchmark._server(f"sqlite:///{filled_store}/mlflow.db", filled_store))
    assert len(rows) > 10 and all(len(seconds) == 1 and seconds[0] > 0 for seconds in rows.values())
