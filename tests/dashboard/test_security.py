"""Who has access, and the headers of every response."""

import base64

import pytest

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
