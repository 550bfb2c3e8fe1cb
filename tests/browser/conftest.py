"""A real browser on a real server over real runs."""

import os
import shutil
import threading
from pathlib import Path

import pytest

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium, driven by Playwright. Without one: skipped on a user's machine, a failure in CI."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        message = "no Chromium is installed (Debian: apt-get install chromium)"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def context(browser):
    """The browser with what it has fetched and compiled, for every test: pages of a new one start from nothing."""
    opened = browser.new_context(viewport={"width": 1440, "height": 900}, color_scheme="light")
    opened.set_default_timeout(60_000)  # for a busy machine
    return opened


class Site:
    """A running dashboard and one page in the browser; what the page complained of is in `complaints`."""

    def __init__(self, address, context):
        self.address = address
        self.page = context.new_page()
        self.complaints = []
        self.page.on("console", lambda line: line.type == "error" and self.complaints.append(line.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))

    def open(self, path):
        self.page.goto(self.address + path)
        return self.page

    def close(self):
        """Close the page; what it has stored goes."""
        self.page.evaluate("localStorage.clear(), sessionStorage.clear()")
        self.page.close()


def serve(folder: Path, milliseconds_per_tick: int = 2000) -> str:
    """Where a dashboard over the store in `folder` listens, in this process: another would import PyTorch for seconds.

    It ends with the process.
    """
    import waitress

    from dashboard import app
    from dashboard.__main__ import SERVER
    from dashboard.runs import Runs

    runs = Runs(f"sqlite:///{folder}/mlflow.db", folder)
    runs.refresh()
    runs.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app, "MILLISECONDS_PER_TICK", milliseconds_per_tick)
        flask = app.create_app(runs).server
    server = waitress.create_server(flask, host="127.0.0.1", port=0, **SERVER)
    threading.Thread(target=server.run, daemon=True).start()
    return f"http://127.0.0.1:{server.effective_port}"


@pytest.fixture(scope="session")
def address(filled_store: Path) -> str:
    """Where a dashboard over the filled store listens.

    Its pages ask seldom whether the store has changed, so that one is at rest even where the machine is busy.
    """
    return serve(filled_store, 5000)


@pytest.fixture
def site(address, context):
    """A fresh page; it must have had nothing to complain of."""
    opened = Site(address, context)
    yield opened
    opened.close()
    assert opened.complaints == []
