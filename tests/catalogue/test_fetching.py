from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import io
import os
import re
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from tests.standins import PICTURES, PIXELS, TABLE, HubStandIn, KaggleStandIn, make_shard, wait_for
from tests.standins import hub_stand_in as hub_stand_in  # fixtures, `hub` and `kaggle`
from tests.standins import kaggle_stand_in as kaggle_stand_in
from vlm_core.catalogue import fetching
from vlm_core.catalogue.fetching import KAGGLE_PAGE, fetch_hf, fetch_kaggle
from vlm_core.errors import UserError

PROGRAM = """
import sys, pathlib
from vlm_core.catalogue.fetching import *
from vlm_core.progress import log_to_stdout
log_to_stdout()
{}(pathlib.Path(sys.argv[1]))
"""


@pytest.fixture
def full_hub(hub: HubStandIn) -> HubStandIn:
    hub.repositories["datasets/" + fetching.HF_SET] = {
        "README.md": b"a set",
        "data/train-00000-of-00002-abc.parquet": make_shard(1),
        "data/train-00001-of-00002-def.parquet": make_shard(10, (b"last" * 50_000,)),
    }
    return hub


def read_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "styles.csv").read_text(encoding="utf-8").splitlines()))


def left_in(root: Path) -> set[str]:
    return {entry.name for entry in (root / "data" / "raw").iterdir() if not entry.name.endswith(".lock")}


def refusing(number: int) -> Callable[..., None]:
    """A call that the system refuses with error `number`; root, who may run this, is refused nothing by modes."""

    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), str(arguments[0]))

    return refuse


def archive_of(tmp_path: Path) -> Path:
    return tmp_path / "kagglehub" / "datasets" / "paramaggarwal" / "fashion-product-images-small" / "1.archive"


@pytest.mark.slow
def test_kaggle_set_arrives_in_its_layout_without_the_second_copy(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    folder = fetch_kaggle(tmp_path)
    assert folder == tmp_path / "data" / "raw" / "myntra_fashion_products"
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert files == {"styles.csv": TABLE, **PICTURES}
    assert left_in(tmp_path) == {folder.name}
    cached = archive_of(tmp_path).parent / "versions" / "1"
    assert (folder / "images/1.jpg").samefile(cached / "images/1.jpg")
    assert not (folder / "styles.csv").samefile(cached / "styles.csv")


@pytest.mark.slow
def test_second_call_asks_nobody(kaggle: KaggleStandIn, full_hub: HubStandIn, tmp_path: Path) -> None:
    first = fetch_kaggle(tmp_path), fetch_hf(tmp_path)
    kaggle.status = full_hub.status = 500
    assert (fetch_kaggle(tmp_path), fetch_hf(tmp_path)) == first


@pytest.mark.slow
def test_kagglehub_cache_serves_without_a_network_and_is_filled_again_when_it_lost_files(
    kaggle: KaggleStandIn, tmp_path: Path
) -> None:
    fetch_kaggle(tmp_path / "one")
    kaggle.status = 500
    assert (fetch_kaggle(tmp_path / "two") / "styles.csv").read_bytes() == TABLE
    kaggle.status = 0
    (archive_of(tmp_path).parent / "versions" / "1" / "styles.csv").unlink()
    assert (fetch_kaggle(tmp_path / "three") / "styles.csv").read_bytes() == TABLE


@pytest.mark.slow
def test_kaggle_download_goes_on_after_the_connection_broke(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    kaggle.cut_after = 1_500_000
    with pytest.raises(UserError, match=r"connection was lost.*run the command again"):
        fetch_kaggle(tmp_path)
    assert not (tmp_path / "data/raw/myntra_fashion_products").exists()
    assert archive_of(tmp_path).stat().st_size == 2**20  # kagglehub writes whole MiB
    kaggle.cut_after = None
    assert (fetch_kaggle(tmp_path) / "images/2.jpg").read_bytes() == PICTURES["images/2.jpg"]
    assert kaggle.bodies()[-1].range == f"bytes={2**20}-"


def spoil(archive: bytes) -> bytes:
    """The same zip with one byte of a picture changed: only the member's checksum tells."""
    at = archive.index(PICTURES["images/1.jpg"])
    return archive[:at] + bytes([archive[at] ^ 1]) + archive[at + 1 :]


@pytest.mark.slow
@pytest.mark.parametrize("damage", [lambda archive: archive[::-1], lambda archive: bytes(len(archive)), spoil])
def test_damaged_kaggle_archive_is_thrown_away(
    kaggle: KaggleStandIn, tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    archive_of(tmp_path).parent.mkdir(parents=True)
    archive_of(tmp_path).write_bytes(damage(kaggle.archive))
    with pytest.raises(UserError, match=r"has been deleted|is repeated"):
        fetch_kaggle(tmp_path)
    assert (fetch_kaggle(tmp_path) / "styles.csv").read_bytes() == TABLE


@pytest.mark.slow
def test_kaggle_download_goes_on_after_the_process_was_killed(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    kaggle.slow = True
    command = [sys.executable, "-c", PROGRAM.format("fetch_kaggle"), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: archive_of(tmp_path).exists() and archive_of(tmp_path).stat().st_size >= 2**20)
        process.kill()
        assert process.communicate()[0] == b""  # what kagglehub tells goes to stderr
    assert not (tmp_path / "data/raw/myntra_fashion_products").exists()
    kaggle.slow = False
    assert (fetch_kaggle(tmp_path) / "images/2.jpg").read_bytes() == PICTURES["images/2.jpg"]
    assert kaggle.bodies()[-1].range.startswith("bytes=")


def test_hub_set_is_written_in_kaggles_layout(full_hub: HubStandIn, tmp_path: Path) -> None:
    folder = fetch_hf(tmp_path)
    assert folder == tmp_path / "data" / "raw" / "myntra_fashion_products_hf"
    rows = read_rows(folder)
    assert tuple(rows[0]) == fetching.COLUMNS
    assert [row["id"] for row in rows] == ["1", "2", "3", "10"]
    assert [row["productDisplayName"] for row in rows] == ['Shirt, "slim" fit', "Watch", "", 'Shirt, "slim" fit']
    assert [row["year"] for row in rows] == ["2012", "", "2016", "2012"]
    pictures = {path.name: path.read_bytes() for path in (folder / "images").iterdir()}
    assert pictures == {"1.jpg": PIXELS[0], "2.jpg": PIXELS[1], "10.jpg": b"last" * 50_000}
    assert left_in(tmp_path) == {folder.name}


def test_hub_is_told_and_asked_nothing_besides(full_hub: HubStandIn, tmp_path: Path) -> None:
    fetch_hf(tmp_path)
    paths = [asked.path for asked in full_hub.asked]
    assert [path for path in paths if fetching.HF_SET not in path] == []
    assert paths.count(f"/api/datasets/{fetching.HF_SET}") == 1


def test_hub_download_goes_on_where_it_broke_off(
    full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    full_hub.cut_after, full_hub.dead_after_cut = len(make_shard(1)) + 50_000, True
    with pytest.raises(UserError, match="HTTP 500"):
        fetch_hf(tmp_path)
    assert left_in(tmp_path) == {".myntra_fashion_products_hf.partial"}
    full_hub.cut_after = None
    full_hub.asked.clear()
    folder = fetch_hf(tmp_path)
    stored = [asked for asked in full_hub.asked if asked.path.startswith("/storage")]
    assert [asked.range for asked in stored] == ["bytes=50000-"]
    assert (folder / "images" / "10.jpg").read_bytes() == b"last" * 50_000


def test_damaged_hub_download_is_thrown_away(full_hub: HubStandIn, tmp_path: Path) -> None:
    full_hub.cut_after, full_hub.dead_after_cut = 1000, True
    with pytest.raises(UserError):
        fetch_hf(tmp_path)
    (part,) = (tmp_path / "data/raw").rglob("*.part")
    part.write_bytes(bytes(1000))
    full_hub.cut_after = None
    with pytest.raises(UserError, match="damaged and has been deleted"):
        fetch_hf(tmp_path)
    part.write_bytes(bytes(1_000_000))  # longer than the file it is to become
    assert len(read_rows(fetch_hf(tmp_path))) == 4


def test_hub_file_without_a_sha_256_is_refused(
    full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.standins._is_large", lambda file: False)
    with pytest.raises(UserError, match=r"no SHA-256 for data/.*parquet, so it cannot be verified"):
        fetch_hf(tmp_path)
    assert [asked for asked in full_hub.asked if "/resolve/" in asked.path] == []


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
@pytest.mark.parametrize("fetch", [fetch_kaggle, fetch_hf])
def test_refusal_names_the_status_and_the_way_out(
    kaggle: KaggleStandIn, full_hub: HubStandIn, tmp_path: Path, fetch: object, status: int
) -> None:
    kaggle.status = full_hub.status = status
    with pytest.raises(UserError) as caught:
        fetch(tmp_path)
    assert re.search(f"HTTP {status}.*{KAGGLE_PAGE}.*data=", str(caught.value))


@pytest.mark.parametrize("fetch", [fetch_kaggle, fetch_hf])
def test_server_that_never_answers_is_given_up(
    kaggle: KaggleStandIn, full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetch: object
) -> None:
    monkeypatch.setattr(fetching, "SECONDS_TO_ANSWER", 0.3)
    kaggle.hanging = full_hub.hanging = True
    start = time.monotonic()
    with pytest.raises(UserError, match="no answer"):
        fetch(tmp_path)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("fetch", [fetch_kaggle, fetch_hf])
def test_missing_network_is_said(kaggle: KaggleStandIn, full_hub: HubStandIn, tmp_path: Path, fetch: object) -> None:
    kaggle.close()
    full_hub.close()
    with pytest.raises(UserError, match="there is no network"):
        fetch(tmp_path)


@pytest.mark.slow
def test_kaggle_download_that_stalls_is_given_up(
    kaggle: KaggleStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "READ_SECONDS", 0.3)
    answer = kaggle.answer

    def stall(handler: object, path: str, query: dict[str, list[str]]) -> None:
        if path.startswith("/storage"):
            time.sleep(2)
        answer(handler, path, query)

    monkeypatch.setattr(kaggle, "answer", stall)
    with pytest.raises(UserError, match="connection was lost"):
        fetch_kaggle(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is always full")
def test_full_disk_is_said(kaggle: KaggleStandIn, full_hub: HubStandIn, tmp_path: Path) -> None:
    archive_of(tmp_path).parent.mkdir(parents=True)
    archive_of(tmp_path).symlink_to("/dev/full")
    with pytest.raises(UserError, match="disk is full"):
        fetch_kaggle(tmp_path)
    workshop = tmp_path / "data/raw/.myntra_fashion_products_hf.partial"
    workshop.mkdir(parents=True)
    for data in full_hub.repositories["datasets/" + fetching.HF_SET].values():
        (workshop / f"{hashlib.sha256(data).hexdigest()}.part").symlink_to("/dev/full")
    with pytest.raises(UserError, match="disk is full"):
        fetch_hf(tmp_path)


@pytest.mark.slow
def test_disk_that_fills_while_linking_leaves_nothing_that_looks_whole(
    kaggle: KaggleStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("shutil.copyfile", refusing(errno.ENOSPC))
        with pytest.raises(UserError, match="disk is full"):
            fetch_kaggle(tmp_path)
    assert not (tmp_path / "data/raw/myntra_fashion_products").exists()
    monkeypatch.setattr("os.link", refusing(errno.EXDEV))  # pictures are copied instead
    assert (fetch_kaggle(tmp_path) / "images/1.jpg").read_bytes() == PICTURES["images/1.jpg"]


@pytest.mark.slow
def test_folder_with_something_else_in_it_is_left_alone(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    note = tmp_path / "data/raw/myntra_fashion_products/note.txt"
    note.parent.mkdir(parents=True)
    note.touch()
    with pytest.raises(UserError, match=r"has no styles\.csv"):
        fetch_kaggle(tmp_path)
    note.unlink()
    assert (fetch_kaggle(tmp_path) / "styles.csv").exists()


def test_only_one_process_fetches_at_a_time(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    (tmp_path / "data/raw").mkdir(parents=True)
    lock = FileLock(tmp_path / "data/raw/.myntra_fashion_products.lock")
    with lock, pytest.raises(UserError, match="by another process"):
        fetch_kaggle(tmp_path)


@pytest.mark.slow
def test_place_that_cannot_be_written_is_named_unless_nothing_is_to_be_written(
    kaggle: KaggleStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refusing(errno.EACCES))
        with pytest.raises(UserError, match=r"data/raw cannot be written"):
            fetch_kaggle(tmp_path)
    folder = fetch_kaggle(tmp_path)
    monkeypatch.setattr("os.open", refusing(errno.EROFS))
    assert fetch_kaggle(tmp_path) == folder


def test_credentials_that_are_none_are_said(kaggle: KaggleStandIn, tmp_path: Path) -> None:
    (tmp_path / "kaggle.json").write_text("{")
    with pytest.raises(UserError, match="Invalid Kaggle credentials file"):
        fetch_kaggle(tmp_path)


def test_set_without_a_column_is_refused(full_hub: HubStandIn, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"id": [1], "image": [{"bytes": b"x", "path": None}]}), buffer)
    full_hub.repositories["datasets/" + fetching.HF_SET] = {"data/train.parquet": buffer.getvalue()}
    with pytest.raises(UserError, match="has no column articleType"):
        fetch_hf(tmp_path)


def test_offline_switch_is_obeyed(full_hub: HubStandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        fetch_hf(tmp_path)
    assert full_hub.asked == []


@pytest.mark.slow
def test_new_process_needs_the_environment_alone_and_shows_a_bar(full_hub: HubStandIn, tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM.format("fetch_hf"), str(tmp_path)]
    environment = {**os.environ, **full_hub.environment(tmp_path / "home")}
    terminal, end = os.openpty()
    termios.tcsetwinsize(end, (24, 100))
    with subprocess.Popen(command, env=environment, stderr=end) as process:
        os.close(end)
        shown = b""
        with contextlib.suppress(OSError):  # what reading a terminal ends with
            while got := os.read(terminal, 10_000):
                shown += got
        os.close(terminal)
    assert process.returncode == 0, shown.decode()
    assert re.search(rb"(?s)train-00000-of-00002.*Writing products", shown)  # a bar for each
    assert left_in(tmp_path) == {"myntra_fashion_products_hf"}
    assert not (tmp_path / "home").exists()
