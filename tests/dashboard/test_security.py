"""Who has access, and the headers of every response."""

import base64
import contextlib
import json
import socket
import threading

import pytest
from waitress.server import create_server

from dashboard.__main__ import SERVER
from dashboard.app import create_app
from dashboard.runs import Runs
from dashboard.security import credentials, is_loopback
from vlm_core.errors import UserError


@pytest.mark.parametrize(
    ("host", "alone"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("shop.example", False)],
)
def test_only_loopback_is_this_machine_alone(host, alone):
    assert is_loopback(host) is alone


@pytest.mark.parametrize(
    "environment", [{}, {"DASHBOARD_USER": "u"}, {"DASHBOARD_USER": "u", "DASHBOARD_PASSWORD": "short"}]
)
def test_beyond_loopback_user_and_password_are_demanded(environment):
    with pytest.raises(UserError, match="set DASHBOARD_USER and DASHBOARD_PASSWORD"):
        credentials("0.0.0.0", environment)


def test_on_loopback_no_login_is_needed_and_one_that_is_set_is_asked_for():
    assert credentials("127.0.0.1", {}) is None
    login = {"DASHBOARD_USER": "ann", "DASHBOARD_PASSWORD": "long enough"}
    assert credentials("127.0.0.1", login) == credentials("0.0.0.0", login) == ("ann", "long enough")


@pytest.mark.parametrize(
    "address", ["/", "/_dash-layout", "/_dash-dependencies", "/picture/abc?product=1", "/assets/style.css"]
)
def test_with_a_login_nothing_is_served_without_it(address, tmp_path):
    client = create_app(Runs("sqlite:///nowhere.db", tmp_path), login=("ann", "long enough")).server.test_client()
    assert client.get(address).status_code == 401
    wrong = base64.b64encode(b"ann:wrong").decode()
    assert client.get(address, headers={"Authorization": f"Basic {wrong}"}).status_code == 401
    right = base64.b64encode(b"ann:long enough").decode()
    assert client.get(address, headers={"Authorization": f"Basic {right}"}).status_code in (200, 404)


@pytest.mark.parametrize("address", ["/", "/run", "/_dash-layout", "/assets/style.css", "/picture/abc?product=1"])
def test_every_response_has_the_security_headers(address, tmp_path):
    answer = create_app(Runs("sqlite:///nowhere.db", tmp_path)).server.test_client().get(address)
    policy = answer.headers["Content-Security-Policy"]
    scripts = next(part for part in policy.split("; ") if part.startswith("script-src"))
    assert "'unsafe" not in scripts and "http" not in scripts
    assert "frame-ancestors 'none'" in policy and "object-src 'none'" in policy
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["X-Frame-Options"] == "DENY"


@pytest.fixture
def client(tmp_path):
    return create_app(Runs("sqlite:///nowhere.db", tmp_path)).server.test_client()


@pytest.fixture
def guarded(tmp_path):
    return create_app(Runs("sqlite:///nowhere.db", tmp_path), login=("ann", "long enough")).server.test_client()


def test_without_a_login_only_names_of_this_machine_are_answered(client):
    for host in ("localhost", "localhost:8050", "127.0.0.1:8050", "127.0.0.5", "[::1]:8050"):
        assert client.get("/", headers={"Host": host}).status_code == 200
    for host in ("evil.example", "evil.example:8050", "127.0.0.1.evil.example", "[::1", "10.0.0.1", ""):
        answer = client.get("/", headers={"Host": host})
        assert answer.status_code == 400
        assert answer.headers["X-Frame-Options"] == "DENY"


def test_with_a_login_a_proxy_may_use_any_name(guarded):
    right = base64.b64encode(b"ann:long enough").decode()
    headers = {"Host": "shop.example", "Authorization": f"Basic {right}"}
    assert guarded.get("/", headers=headers).status_code == 200


def test_a_malformed_login_is_no_login(guarded):
    kinds = ("", "Basic", "Basic ", "Basic !!!", "Basic /w==", "Basic YW5u", "Bearer x", "\xff", "Basic Og==")
    for header in (*kinds, "basic " + "A" * 9999):
        assert guarded.get("/", headers={"Authorization": header}).status_code == 401


def test_nothing_is_parsed_before_the_login(guarded, monkeypatch):
    monkeypatch.setattr("flask.Request.get_json", lambda *_, **__: pytest.fail("a stranger's JSON was parsed"))
    for body in ("{", "[]", "{}"):
        answer = guarded.post("/_dash-update-component", data=body, content_type="application/json")
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"].startswith("Basic")


TICK = {
    "output": "..shell-version.data...shell-state.data...shell-store.children...shell-notice.children..",
    "outputs": [
        {"id": f"shell-{name}", "property": what}
        for name, what in (("version", "data"), ("state", "data"), ("store", "children"), ("notice", "children"))
    ],
    "inputs": [{"id": "shell-tick", "property": "n_intervals", "value": 1}],
    "state": [{"id": f"shell-{name}", "property": "data", "value": None} for name in ("version", "state")],
    "changedPropIds": ["shell-tick.n_intervals"],
}
CARDS = {
    "output": "categorise-cards.children",
    "outputs": {"id": "categorise-cards", "property": "children"},
    "inputs": [
        {"id": "categorise-results", "property": "data", "value": [{}]},
        {"id": "categorise-threshold", "property": "value", "value": "x"},
    ],
    "changedPropIds": ["categorise-results.data"],
}
ODD = [
    *("null", "[]", "1", '"text"', "{}", "{", "[" * 100_000),
    *({**TICK, "output": output} for output in ("nothing.data", 7, None, "....", {})),
    *({**TICK, "inputs": inputs} for inputs in (None, 7, [], [None], [{"id": "x"}], "text", [[[]]])),
    *({**TICK, "outputs": outputs} for outputs in (None, 7, "text", [7])),
    {**TICK, "changedPropIds": 7},
    {**TICK, "state": 7},
    CARDS,
]


def test_a_callback_of_an_odd_shape_is_refused(client):
    for body in ODD:
        data = body if isinstance(body, str) else json.dumps(body)
        answer = client.post("/_dash-update-component", data=data, content_type="application/json")
        assert answer.status_code == 400, data[:200]
        assert "Traceback" not in answer.get_data(as_text=True)
    assert client.post("/_dash-update-component", json=TICK).status_code == 200


@pytest.mark.parametrize("path", ["../secret.txt", "dash/../../secret.txt", "nothing/x.js", "dash/nothing.js"])
def test_a_script_that_no_component_has_is_not_found(client, path):
    assert client.get(f"/_dash-component-suites/{path}").status_code == 404


def test_an_error_of_ours_elsewhere_is_no_fault_of_the_visitor(tmp_path):
    app = create_app(Runs("sqlite:///nowhere.db", tmp_path))
    app.server.add_url_rule("/broken", "broken", lambda: 1 // 0)
    assert app.server.test_client().get("/broken").status_code == 500


def test_connections_that_ask_nothing_lock_nobody_out():
    assert SERVER["channel_timeout"] <= 20

    def answer(environ, start):
        start("200 OK", [])
        return [b"here"]

    server = create_server(answer, host="127.0.0.1", port=0, **SERVER)
    threading.Thread(target=server.run, daemon=True).start()
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        address = ("127.0.0.1", server.effective_port)
        for _ in range(150):
            stack.enter_context(socket.create_connection(address)).sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        visitor = stack.enter_context(socket.create_connection(address, timeout=10))
        visitor.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert b"here" in b"".join(iter(lambda: visitor.recv(4096), b""))
