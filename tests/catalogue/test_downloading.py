"""Pictures at web addresses: fetched once, within bounds, and each failure explained."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.catalogue.handovers import PICTURES, put_folder
from vlm_core.catalogue import downloading
from vlm_core.catalogue.catalogue import prepare_catalogue
from vlm_core.catalogue.picture_files import address_of
from vlm_core.catalogue.reading import Columns
from vlm_core.errors import UserError

COLUMNS = Columns("id", "photo", "", "kind", ())


@pytest.fixture
def shop():
    """A server of pictures: its address, and the paths that were asked for."""
    asked = []

    class Shop(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            name = self.path.split("?")[0].strip("/")
            if name == "moved":
                self.send_response(302)
                self.send_header("Location", "/1001")
                self.end_headers()
                return
            data = {"large": bytes(3000), "empty": b""}.get(name, PICTURES.get(name))
            self.send_response(404 if data is None else 200)
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Shop)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()


def _table(tmp_path, cells):
    lines = [f'{number},"{cell}",Bag' for number, cell in enumerate(cells)]
    return put_folder(tmp_path, {"shop.csv": "\n".join(["id,photo,kind", *lines]).encode()}) / "shop.csv"


def test_pictures_are_downloaded_once(tmp_path, shop):
    address, asked = shop
    table = _table(tmp_path, [f"{address}/1001?v=1", f"{address}/1002|{address}/1003", f"{address}/moved"])
    with pytest.raises(UserError, match=r"web address that is not downloaded, http.*: add download=true"):
        prepare_catalogue(str(table), COLUMNS, tmp_path)
    assert asked == []
    catalogue = prepare_catalogue(str(table), COLUMNS, tmp_path, download=True)
    assert (catalogue.reading.products, catalogue.reading.further_pictures) == (3, 1)
    assert sorted(asked) == ["/1001", "/1001?v=1", "/1002", "/moved"]
    again = prepare_catalogue(str(table), COLUMNS, tmp_path, download=True)
    assert again.fingerprint == catalogue.fingerprint == prepare_catalogue(str(table), COLUMNS, tmp_path).fingerprint
    assert len(asked) == 4


def test_what_cannot_be_downloaded_is_explained_and_costs_no_other(tmp_path, shop, monkeypatch):
    address, _ = shop
    monkeypatch.setattr(downloading, "MOST_PICTURE_BYTES", 2000)
    cells = [
        f"{address}/1001",
        f"{address}/9",
        f"{address}/large",
        f"{address}/empty",
        "ftp://a.example/1.jpg",
        "http://[/1",
    ]
    table = _table(tmp_path, [*cells, "http://127.0.0.1:1/x.jpg"])
    catalogue = prepare_catalogue(str(table), COLUMNS, tmp_path, download=True)
    assert catalogue.reading.products == 1
    reasons = [found.reason.rpartition(": ")[2] for found in catalogue.reading.missing]
    assert reasons[:4] == ["HTTP 404", "more than 0 MB", "it is empty", downloading._NO_WEB]
    assert len(reasons) == 6 and all(reasons)
    assert not list((tmp_path / "data" / "downloads").rglob("*.part"))


@pytest.mark.parametrize(
    ("cell", "address"),
    [
        ("https://a.example/1.jpg", "https://a.example/1.jpg"),
        (" 'https://a.example/1.jpg' ", "https://a.example/1.jpg"),
        ("https://a.example/1.jpg,https://a.example/2.jpg", "https://a.example/1.jpg"),
        ("https://a.example/1.jpg | https://a.example/2.jpg", "https://a.example/1.jpg"),
        ('["https://a.example/a,b;c.jpg", "x"]', "https://a.example/a,b;c.jpg"),
        ("images/1.jpg", ""),
        ("file:///images/1.jpg", ""),
        ("", ""),
    ],
)
def test_the_first_address_of_a_cell(cell, address):
    assert address_of(cell) == address
