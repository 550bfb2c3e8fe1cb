"""Attack the dashboard in its real process: `python -m tests.campaigns.dashboard_attacks`.

Strangers guess its login, other web pages call it (request forgery, DNS rebinding), addresses climb out of its folders,
connections stall and requests swell; runs hold markup, scripts and formulas, which Chromium opens on every page; and
the store is damaged, or a server that lies. Each attack is a line of the table, with what was tried and what failed.
"""

from __future__ import annotations

import argparse
import base64
import csv
import gzip
import http.client
import io
import itertools
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

from dashboard.app import PAGES
from dashboard.limits import LARGEST_REQUEST
from tests.browser.conftest import FLAGS
from tests.campaigns.hostile import table
from tests.campaigns.hostile_dashboard import UPDATE, callback, shell_tick, shown_store, upload
from tests.campaigns.hostile_server import MIB, Memory, Outcome, free_port, server
from tests.campaigns.lying_server import LIES, lying_server
from tests.campaigns.poisoned_store import FOREIGN, TEXTS, poisoned

TARGETS: Final = ("login", "requests", "pages", "stores")
LOGIN: Final = ("ann", "correct horse battery")
SECRET: Final = "no-visitor-may-read-this"
SECONDS_FOR_A_VISITOR: Final = 10.0  # who asks while the dashboard is attacked
SECONDS_FOR_A_STORE: Final = 40.0  # until a page says what is wrong with it
MOST_MIB: Final = 500  # that a store may cost the dashboard
Attack = tuple[str, Callable[[], str]]


def send(port: int, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of the answer, as it came. Names of headers have `_` for `-`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        given = {name.replace("_", "-"): text for name, text in headers.items()}
        connection.request(method, path, body or None, given)
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def judge(target: str, attacks: Sequence[Attack]) -> Outcome:
    """Make each attack, which returns what it achieved ("" if nothing)."""
    outcome, started = Outcome(target), time.monotonic()
    durations, kinds = list[float](), Counter[str]()
    for name, attack in attacks:
        began = time.perf_counter()
        try:
            achieved = attack()
        except (OSError, http.client.HTTPException) as error:
            achieved = f"{type(error).__name__}: {error}"
        durations.append(time.perf_counter() - began)
        outcome.tried += 1
        kinds["succeeded" if achieved else "repelled"] += 1
        if achieved:
            outcome.fail(f"{name}: {achieved}")
    outcome.finish(started, durations, kinds)
    return outcome


def basic(user: str, password: str) -> str:
    """Return the header of a login."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def break_in(port: int, guesses: int, seed: int) -> Outcome:
    """Ask for everything without the login and with a broken one, then guess passwords from 16 threads."""
    paths = ("/", *(page.PATH for page in PAGES), "/alive", UPDATE, "/_dash-layout", "/assets/style.css", "/picture/a")
    user, password = LOGIN
    right = basic(user, password)
    wrong: tuple[str, ...] = (
        "",
        "Basic",
        "Basic !!!",
        "Bearer x",
        basic(user, ""),
        basic("", password),
        basic(user, password + " "),
    )
    wrong += (
        basic(user.upper(), password),
        basic(user, password.upper()),
        f"{right}A",
        right.replace("Basic", "Digest"),
    )
    methods = ("GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE")

    def ask(path: str, method: str, header: str) -> str:
        status, headers, body = send(port, method, path, b"{}", Authorization=header, Content_Type="application/json")
        closed = status in (401, 405, 501) and len(body) < 200 and "set-cookie" not in headers
        return "" if closed else f"status {status}, {len(body)} bytes"

    words = [(f"{m} {p} {h!r}", partial(ask, p, m, h)) for p, m, h in itertools.product(paths, methods, wrong)]
    outcome, started = judge("login", words), time.monotonic()
    chance = random.Random(seed)
    attempts = [basic(user, f"{chance.choice((password[:-1], password[1:], ''))}{n}") for n in range(guesses)]
    with ThreadPoolExecutor(16) as pool:
        statuses = list(pool.map(lambda header: send(port, "GET", "/", Authorization=header)[0], attempts))
    for status in statuses:
        outcome.tried += 1
        if status != 401:
            outcome.fail(f"a guess was answered with {status}")
    if send(port, "GET", "/", Authorization=right)[0] != 200:
        outcome.fail("the right password was refused after the guesses")
    outcome.answers["guesses a second"] = round(guesses / (time.monotonic() - started))
    return outcome


def forgeries(port: int, headers: Mapping[str, str]) -> list[Attack]:
    """Return what another web page can ask: with forms, without a preflight, and with one."""
    tick = json.dumps(shell_tick()).encode()
    picture = json.dumps(upload(["data:image/png;base64,AAAA"], ["x.png"])).encode()
    kinds = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "")
    origins = (f"http://{FOREIGN}", "null", "http://127.0.0.1.evil.example")

    def ask(method: str, body: bytes, kind: str, origin: str, site: str) -> str:
        more = {"Content_Type": kind} if kind else {}
        more |= {"Access_Control_Request_Method": "POST"} if method == "OPTIONS" else {}
        status, said, _ = send(port, method, UPDATE, body, Origin=origin, Sec_Fetch_Site=site, **more, **headers)
        if any(name.startswith("access-control-") for name in said):
            return "the other page may read the answer"
        obeyed = method == "POST" and status < 400
        return f"status {status}" if obeyed or status >= 500 else ""

    choices = itertools.product((tick, picture, b"x", b"a=1&b=2"), kinds, origins, ("cross-site", "none"))
    attacks: list[Attack] = [
        (f"{kind} {origin}", partial(ask, "POST", body, kind, origin, site)) for body, kind, origin, site in choices
    ]
    attacks += [(f"preflight {origin}", partial(ask, "OPTIONS", b"", "", origin, "cross-site")) for origin in origins]
    return attacks


def rebindings(port: int) -> list[Attack]:
    """Return requests under names that are made to mean this machine."""
    hosts: tuple[str, ...] = (
        FOREIGN,
        f"{FOREIGN}:{port}",
        f"127.0.0.1.{FOREIGN}",
        f"localhost.{FOREIGN}",
        "10.0.0.1",
        "0.0.0.0",
        "[::]",
    )
    hosts += ("localhost@evil.example", "evil.example#localhost", "127.0.0.1 evil.example", "[::1", "", "2130706433")

    def ask(path: str, host: str) -> str:
        status, _, body = send(port, "GET", path, Host=host)
        return "" if status == 400 and len(body) < 300 else f"status {status}, {len(body)} bytes"

    paths = ("/", "/_dash-layout", "/assets/style.css", "/alive", "/picture/abc?product=1")
    return [(f"{h} {p}", partial(ask, p, h)) for h, p in itertools.product(hosts, paths)]


def climbs(port: int, folder: Path) -> list[Attack]:
    """Return requests for files that are not served: one with a secret, in the folder and above it, /etc/passwd."""
    for place in (folder, folder.parent):
        (place / "secret.txt").write_text(SECRET)
    steps = ("../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%252f", "..\\", "..%5c", "....//", "..;/", "%c0%ae%c0%ae/")
    files = ("secret.txt", "mlflow.db", "etc/passwd", "proc/self/environ", "secret.txt%00.png")
    targets = (
        "/",
        "/assets/",
        "/picture/",
        "/_dash-component-suites/",
        "/_dash-component-suites/dash/",
        "/_favicon.ico/",
    )
    climbed = [f"{d}{step * n}{f}" for d, step, n, f in itertools.product(targets, steps, (1, 3, 9), files)]
    climbed += [f"{target}{folder}/secret.txt" for target in targets] + [f"{target}//etc/passwd" for target in targets]
    named = (f"../{folder.name}/secret.txt", "/etc/passwd", "..", "%2e%2e", "a/../../..")
    climbed += [f"/picture/{part}?product={part}" for part in named] + [f"/run?run={part}" for part in named]

    def ask(path: str) -> str:
        status, _, body = send(port, "GET", path.replace("\\", "%5c"))
        leaks = SECRET.encode() in body or b"root:" in body or b"SQLite format" in body or b"PATH=" in body
        return f"status {status}" if leaks or status >= 500 else ""

    return [(path, partial(ask, path)) for path in climbed]


def formulas(port: int) -> list[Attack]:
    """Return downloads of results whose files, categories and errors are formulas: no cell may be evaluated."""

    def ask(text: str, lead: str) -> str:
        prediction = {"top": [[lead + text, 0.9]], "confidence": 0.9, "category": lead + text, "error": lead + text}
        results = [
            {"name": lead + text, "predictions": {lead + text: prediction}},
            {"name": text, "error": lead + text},
        ]
        inputs = [{"id": "categorise-csv", "property": "n_clicks", "value": 1}]
        given = (("results", "data", results), ("threshold", "value", 0.5))
        state = [{"id": f"categorise-{name}", "property": what, "value": value} for name, what, value in given]
        body = json.dumps(
            callback((("categorise-download", "data"),), inputs, state, "categorise-csv.n_clicks")
        ).encode()
        status, _, answer = send(port, "POST", UPDATE, body, Content_Type="application/json")
        if status != 200:
            return f"status {status}"
        content = json.loads(answer)["response"]["categorise-download"]["data"]["content"]
        cells = [cell for row in csv.reader(io.StringIO(content)) for cell in row]
        return next((cell for cell in cells if cell.lstrip(" ")[:1] in tuple("=+-@\t\r\n")), "")

    choices = itertools.product(TEXTS, ("", "=", "+", "-", "@", "\t=", "\r=", "\n="))
    return [(repr(lead + text), partial(ask, text, lead)) for text, lead in choices]


def stall(port: int, connections: int) -> Outcome:
    """Hold connections that say little or nothing, and send what is too large, while a visitor asks for a page."""

    def visit(_: int = 0) -> str:
        began = time.monotonic()
        status = send(port, "GET", "/")[0]
        seconds = time.monotonic() - began
        return "" if status == 200 and seconds < SECONDS_FOR_A_VISITOR else f"status {status} after {seconds:.1f} s"

    beginnings = (
        b"",
        b"GET",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ",
        b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n1",
    )
    posted = f"POST {UPDATE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n".encode()
    swollen = {
        "a body above the limit": posted + f"Content-Length: {LARGEST_REQUEST + 1}\r\n\r\n".encode() + b"1" * 100_000,
        "a length that is none": posted + b"Content-Length: -1\r\n\r\n{}",
        "two lengths": posted + b"Content-Length: 2\r\nContent-Length: 90000\r\n\r\n{}",
        "a length and chunks": posted + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "a chunk of no size": posted + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        "a long address": b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "many headers": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 30_000 + b"\r\n",
        "no HTTP": os.urandom(5000) + b"\r\n\r\n",
        "deep JSON": posted + b"Content-Length: 100000\r\n\r\n" + b"[" * 100_000,
        "gzip that swells": posted + b"Content-Encoding: gzip\r\n" + _sized(gzip.compress(bytes(50 * MIB))),
    }
    with ExitStack() as held:
        for number in range(connections):
            opened = held.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            with suppress(OSError):
                opened.sendall(beginnings[number % len(beginnings)])
        attacks = [(f"a visitor beside {connections} connections", visit)] * 10
        attacks += [(name, partial(_survive, port, body, visit)) for name, body in swollen.items()]
        return judge("slow and oversized", attacks)


def _sized(body: bytes) -> bytes:
    return f"Content-Length: {len(body)}\r\n\r\n".encode() + body


def _survive(port: int, body: bytes, visit: Callable[[], str]) -> str:
    """Send bytes and read the beginning of an answer, which may be none; then a visitor must be served."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as opened, suppress(OSError):
        opened.sendall(body)
        answer = opened.recv(100)
    status = re.match(rb"HTTP/1\.\d (\d+)", answer)
    if status and int(status[1]) in (500, *range(200, 300)):
        return f"status {int(status[1])}"
    return visit()


def open_pages(port: int, run_ids: Sequence[str]) -> Outcome:
    """Open every page over the poisoned runs in Chromium: no text of theirs may run, load anything or open a dialog."""
    from playwright.sync_api import Error, sync_playwright

    paths = [page.PATH for page in PAGES]
    paths += [
        f"{path}?{name}={each}"
        for each in run_ids
        for path, name in (("/run", "run"), ("/attention", "run"), ("/catalogue", "run"))
    ]
    paths += [f"/compare?runs={','.join(run_ids[start : start + 4])}" for start in range(0, len(run_ids), 4)]
    paths += [
        f"{page.PATH}?run={text}&runs={text}&find={text}&study={text}&search={text}&set={text}"
        for page in PAGES
        for text in TEXTS[:6]
    ]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
        page, events = browser.new_page(), list[str]()
        page.on("dialog", lambda dialog: dialog.dismiss())
        page.on("dialog", lambda dialog: events.append(f"dialog {dialog.message}"))
        page.on("request", lambda each: events.append(each.url) if FOREIGN in each.url.split("?")[0] else None)
        page.on("response", lambda each: events.append(f"{each.status} {each.url}") if each.status >= 500 else None)

        def visit(path: str) -> str:
            events.clear()
            try:
                page.goto(f"http://127.0.0.1:{port}{path}")
                page.wait_for_load_state("networkidle", timeout=15_000)
            except Error as error:
                if "Timeout" not in str(error):
                    return str(error).splitlines()[0]
            owned = page.evaluate("window.owned")
            hidden = page.evaluate("getComputedStyle(document.body).display === 'none'")
            return "; ".join(events[:3]) or ("a script ran" if owned else "a style was taken" if hidden else "")

        page.goto(f"http://127.0.0.1:{port}/")
        page.get_by_text(TEXTS[0], exact=True).first.wait_for(timeout=60_000)  # the pages do show the runs
        outcome = judge("stored markup", [(path, partial(visit, path)) for path in paths])
        browser.close()
    return outcome


@contextmanager
def dashboard(folder: Path, store: str = "", login: tuple[str, str] | None = None) -> Iterator[tuple[int, int]]:
    """Run a dashboard over a store, `mlflow.db` of the folder by default; give its port and process number."""
    port = free_port()
    command = [sys.executable, "-m", "dashboard", "--port", str(port)]
    command += ["--store", store or f"sqlite:///{folder}/mlflow.db"]
    words = dict(zip(("DASHBOARD_USER", "DASHBOARD_PASSWORD"), login, strict=True)) if login else {}
    with server(command, port, folder, "/alive", **words) as process:
        yield port, process.pid


def watch_store(folder: Path, store: str, wanted: str) -> str:
    """Open a dashboard over a bad store: it must live, stay small, and say `wanted` (a pattern) of the store soon."""
    with dashboard(folder, store) as (port, pid):
        memory, began, said = Memory(pid), time.monotonic(), ""
        while time.monotonic() - began < SECONDS_FOR_A_STORE and not re.search(wanted, said):
            time.sleep(0.5)
            said = shown_store(port)
        for page in PAGES:
            if (status := send(port, "GET", page.PATH)[0]) != 200:
                return f"{page.PATH} answers {status}"
        start, peak, _ = memory.stop()
    if peak - start > MOST_MIB:
        return f"the dashboard took {peak - start} MiB"
    return "" if re.search(wanted, said) else f"the page says {said[:200]!r}"


def damaged_stores(folder: Path, good: Path) -> list[Attack]:
    """Return attacks by stores that are no MLflow store, or one that was changed behind its back."""
    data = good.read_bytes()
    with closing(sqlite3.connect(folder / "other.db")) as other:
        other.execute("CREATE TABLE runs (x)")
        other.commit()
    files = {
        "random bytes": os.urandom(100_000),
        "an empty file": b"",
        "the first half": data[: len(data) // 2],
        "zeros in the middle": data[: len(data) // 2] + bytes(len(data) // 4) + data[3 * len(data) // 4 :],
        "another program's database": (folder / "other.db").read_bytes(),
    }
    changes = {
        "of a later version": "UPDATE alembic_version SET version_num = 'ffffffffffff'",
        "times that are none": "UPDATE runs SET start_time = -9223372036854775808, end_time = 9223372036854775807",
        "status that is none": "UPDATE runs SET status = 'EATEN'",
        "names of a megabyte": f"UPDATE runs SET name = '{'n' * MIB}'",
        "settings of a megabyte": f"UPDATE params SET value = '{'v' * MIB}'",
        "metrics that are infinite": "UPDATE latest_metrics SET value = 1e999, is_nan = 0",
        "metrics that are texts": "UPDATE latest_metrics SET value = 'text'",
        "artifacts of another machine": f"UPDATE runs SET artifact_uri = 'http://{FOREIGN}/a'",
        "artifacts that are this machine's files": "UPDATE runs SET artifact_uri = 'file:///etc'",
        "a table less": "DROP TABLE params",
    }

    def write(name: str, content: bytes) -> str:
        (folder / "bad.db").write_bytes(content)
        return watch_store(folder, f"sqlite:///{folder}/bad.db", r"store unreachable|\d runs?\b")

    def change(statement: str) -> str:
        shutil.copy(good, folder / "bad.db")
        with closing(sqlite3.connect(folder / "bad.db")) as database:
            database.execute("PRAGMA ignore_check_constraints = 1")
            database.execute(statement)
            database.commit()
        return watch_store(folder, f"sqlite:///{folder}/bad.db", r"store unreachable|\d runs?\b")

    attacks: list[Attack] = [(name, partial(write, name, content)) for name, content in files.items()]
    return attacks + [(name, partial(change, statement)) for name, statement in changes.items()]


def lying_stores(folder: Path) -> list[Attack]:
    """Return attacks by servers that answer as MLflow's would not."""

    def lie(name: str, wanted: str) -> str:
        with lying_server(name) as address:
            return watch_store(folder, address, wanted)

    return [(name, partial(lie, name, wanted)) for name, wanted in LIES.items()]


def run(work: Path, targets: Sequence[str], seed: int, guesses: int, connections: int) -> Iterator[Outcome]:
    """Make every attack on those targets; yield the figures of each kind."""
    folder = work / "folder"
    folder.mkdir()
    run_ids = poisoned(folder)
    if "login" in targets:
        with dashboard(folder, login=LOGIN) as (port, _):
            yield break_in(port, guesses, seed)
            yield judge("request forgery, logged in", forgeries(port, {"Authorization": basic(*LOGIN)}))
    if "requests" in targets:
        with dashboard(folder) as (port, _):
            yield judge("request forgery", forgeries(port, {}))
            yield judge("DNS rebinding", rebindings(port))
            yield judge("path traversal", climbs(port, folder))
            yield judge("formulas in CSV", formulas(port))
            yield stall(port, connections)
    if "pages" in targets:
        with dashboard(folder) as (port, _):
            yield open_pages(port, run_ids)
    if "stores" in targets:
        yield judge("store of garbage", damaged_stores(folder, folder / "mlflow.db"))
        yield judge("store that lies", lying_stores(folder))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.campaigns.dashboard_attacks", description=__doc__)
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guesses", type=int, default=10_000, help="passwords that are guessed")
    parser.add_argument("--connections", type=int, default=300, help="that are held while a visitor asks")
    options = parser.parse_args(arguments)
    failed = 0
    with tempfile.TemporaryDirectory(prefix="attacks-") as work:
        targets = options.targets.split(",")
        for outcome in run(Path(work), targets, options.seed, options.guesses, options.connections):
            print(table([outcome]), flush=True)
            failed += outcome.failed
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
