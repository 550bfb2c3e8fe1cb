"""The shell and the pages through Flask's test client, over real runs."""

import gzip
import json
import re
import socket
import subprocess
import sys

import pytest
from dash import no_update
from dash._callback import NoUpdate

from dashboard.app import PAGES, create_app, keep_what_is_shown, navigation, tick, toggle_navigation
from dashboard.runs import Runs
from tests.stores import ROOT
from vlm_core.tracking.store import StoreProblem


@pytest.fixture
def client(runs):
    return create_app(runs).server.test_client()


def _callback(client, output, inputs, state=()):
    """What a callback of the running app answers."""
    names = [part.strip(".") for part in output.strip(".").split("...")]
    outputs = [dict(zip(("id", "property"), name.rsplit(".", 1), strict=True)) for name in names]
    body = {
        "output": output,
        "outputs": outputs if output.startswith("..") else outputs[0],
        "inputs": [dict(zip(("id", "property", "value"), part, strict=True)) for part in inputs],
        "state": [dict(zip(("id", "property", "value"), part, strict=True)) for part in state],
        "changedPropIds": [f"{inputs[0][0]}.{inputs[0][1]}"],
    }
    return client.post("/_dash-update-component", json=body)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.NAME)
def test_every_page_is_served_under_its_address(client, page):
    assert client.get(page.PATH).status_code == 200
    inputs = [("_pages_location", "pathname", page.PATH), ("_pages_location", "search", "")]
    answer = _callback(client, ".._pages_content.children..._pages_store.data..", inputs)
    assert answer.status_code == 200
    assert page.NAME in json.dumps(answer.get_json())


def test_an_unknown_page_is_not_found(client):
    inputs = [("_pages_location", "pathname", "/nowhere"), ("_pages_location", "search", "")]
    assert "no such page" in _callback(client, ".._pages_content.children..._pages_store.data..", inputs).get_data(
        as_text=True
    )


def test_two_apps_live_in_one_process(runs):
    assert create_app(runs).server.test_client().get("/").status_code == 200
    assert create_app(runs).server.test_client().get("/run").status_code == 200


def test_the_store_is_sent_once_per_change(runs):
    version, state, words, said = tick(runs, 0, None)
    assert "5 runs in the store" in _text(words)
    assert state == "ready" and said is None
    assert tick(runs, 1, version)[0] is no_update


def _text(component):
    return json.dumps(component, default=lambda part: part.to_plotly_json())


def test_a_page_that_outlives_a_restart_keeps_its_content_until_the_store_is_read(runs, tmp_path):
    version = 17  # of the dashboard before
    for restarted, words, problem in (
        (Runs(f"sqlite:///{tmp_path}/mlflow.db"), "loading runs", ""),
        (Runs(f"sqlite:///{tmp_path}/no/mlflow.db"), "store unreachable", "This page was read before a restart"),
    ):
        if problem:
            restarted.refresh()
        kept, state, dot, said = tick(restarted, 0, version, "ready")
        assert kept is no_update and state is no_update and words in _text(dot) and problem in _text(said)
        assert tick(restarted, 0, None)[0] == restarted.view().version  # a page that is opened now shows how it is
    assert tick(runs, 0, version, "ready")[0] == runs.view().version


def test_grids_ask_for_their_script_when_there_is_one(client):
    page = client.get("/").get_data(as_text=True)
    address = re.search(r'<meta name="grid-script" content="([^"]+)">', page)[1]
    assert page.count("dash_ag_grid.") == 1 and client.get(address).status_code == 200


def test_scripts_are_compressed_once_and_kept_for_good_and_pages_are_compressed_anew(client):
    page = client.get("/", headers={"Accept-Encoding": "br"})
    assert page.headers["Content-Encoding"] == "br" and "max-age" not in page.headers.get("Cache-Control", "")
    page = client.get("/")
    address = re.search(r'"(/_dash-component-suites/dash_ag_grid/[^"]+)"', page.get_data(as_text=True))[1]
    plain = client.get(address)
    for _ in range(2):
        packed = client.get(address, headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip" and gzip.decompress(packed.data) == plain.data
    assert len(packed.data) < 0.35 * len(plain.data) and "max-age=31536000" in packed.headers["Cache-Control"]
    own = re.search(r'src="(/assets/address.js[^"]+)"', client.get("/").get_data(as_text=True))[1]
    assert "max-age=31536000" in client.get(own).headers["Cache-Control"]
    assert "max-age=31536000" not in client.get("/assets/address.js").headers.get("Cache-Control", "")


def test_a_browser_has_a_name_that_no_script_can_read(client):
    cookie = client.get("/").headers["Set-Cookie"]
    assert "dashboard-session=" in cookie and "HttpOnly" in cookie and "SameSite=Lax" in cookie
    assert "Set-Cookie" not in client.get("/").headers  # it keeps its name
    client.set_cookie("dashboard-session", "<script>")
    assert "dashboard-session=" in client.get("/").headers["Set-Cookie"]


def test_what_a_store_that_is_away_cannot_say_changes_nothing_and_errors_stay_errors():
    assert isinstance(keep_what_is_shown(StoreProblem("away")), NoUpdate)
    with pytest.raises(KeyError):
        keep_what_is_shown(KeyError("x"))


def test_the_open_page_is_marked_and_small_screens_open_the_navigation():
    links = navigation("/compare")
    assert [link.active for link in links].count(True) == 1
    assert toggle_navigation(True, {"width": 1})["collapsed"] == {"mobile": False}


def test_pictures_of_prepared_catalogues_are_served_and_no_others(client, runs):
    row = next(row for row in runs.table().to_dict("records") if row["params.model"] == "baseline")
    product = runs.evaluation(row["run_id"]).predictions.product_ids[0]
    answer = client.get(f"/picture/{row['tags.fingerprint']}", query_string={"product": product})
    assert answer.status_code == 200 and answer.data[:8] == b"\x89PNG\r\n\x1a\n"
    assert client.get(f"/picture/{row['tags.fingerprint']}?product=none").status_code == 404
    assert client.get("/picture/..%2f..?product=1").mimetype != "image/png"


def _start(*arguments, folder):
    command = [sys.executable, "-m", "dashboard", *arguments]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.slow
def test_a_port_in_use_is_refused_in_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = _start("--port", str(taken.getsockname()[1]), folder=tmp_path)
    assert done.returncode == 1 and "choose another with --port" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.slow
def test_other_machines_need_a_password(tmp_path):
    done = _start("--host", "0.0.0.0", folder=tmp_path)
    assert done.returncode == 1 and "DASHBOARD_PASSWORD" in done.stderr and "Traceback" not in done.stderr
