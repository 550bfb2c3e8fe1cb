"""The public catalogue, brought from Kaggle or from the Hugging Face hub into `data/raw` in Kaggle's layout.

A folder under `data/raw` is there whole or not at all: it is built under a hidden name beside its own and renamed.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from vlm_core.errors import UserError
from vlm_core.progress import track

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

T = TypeVar("T")

KAGGLE_SET: Final = "paramaggarwal/fashion-product-images-small"
KAGGLE_PAGE: Final = f"https://www.kaggle.com/datasets/{KAGGLE_SET}"
HF_SET: Final = "ashraq/fashion-product-images-small"
RAW: Final = Path("data", "raw")
TABLE: Final = "styles.csv"
PICTURES: Final = "images"
COLUMNS: Final = (
    *("id", "gender", "masterCategory", "subCategory", "articleType", "baseColour"),
    *("season", "year", "usage", "productDisplayName"),
)
SECONDS_TO_ANSWER: Final = 8.0
CONNECT_SECONDS: Final = 5.0
READ_SECONDS: Final = 20.0


def fetch_kaggle(root: Path) -> Path:
    """The folder `root/data/raw/myntra_fashion_products`, filled from Kaggle unless it is there already.

    What kagglehub keeps in its cache is used, and linked rather than copied where the disk allows. Raises UserError.
    """
    target = root / RAW / "myntra_fashion_products"
    with _building(target, "Kaggle") as folder:
        if folder:
            _link_products(_download_from_kaggle(), folder)
    return target


def fetch_hf(root: Path) -> Path:
    """The folder `root/data/raw/myntra_fashion_products_hf`, filled from the hub unless it is there already.

    Raises UserError.
    """
    target = root / RAW / "myntra_fashion_products_hf"
    with _building(target, "the Hugging Face hub") as folder:
        if folder:
            _write_products(_download_shards(folder.parent), folder)
    return target


@contextlib.contextmanager
def _building(target: Path, place: str) -> Iterator[Path | None]:
    """An empty folder that becomes `target` when the block ends well; None when `target` is there already.

    Its parent stays after a failure, for downloads that go on later. Raises UserError for whatever goes wrong inside.
    """
    from filelock import FileLock, Timeout

    workshop = target.with_name(f".{target.name}.partial")
    folder = workshop / "products"
    if _holds_products(target):  # asked before the lock is taken: what is there may be where nobody can write
        shutil.rmtree(workshop, ignore_errors=True)
        yield None
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            if _holds_products(target):  # since a moment ago, by another process
                yield None
                return
            _make_way(target)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            yield folder
            os.replace(folder, target)
            shutil.rmtree(workshop, ignore_errors=True)
    except UserError:
        raise
    except Timeout:
        raise UserError(f"{target} is being fetched by another process: wait until that one ends.") from None
    except Exception as error:
        raise UserError(_explain(error, place, target)) from error


def _make_way(target: Path) -> None:
    """Take an empty folder out of the way. Raises UserError when something is in it."""
    if target.exists():
        try:
            target.rmdir()
        except OSError:
            raise UserError(
                f"{target} is there but holds no {TABLE} and {PICTURES}/: move it away and run the command again."
            ) from None


def _holds_products(folder: Path) -> bool:
    return (folder / TABLE).is_file() and (folder / PICTURES).is_dir()


def _explain(error: Exception, place: str, target: Path) -> str:
    """One sentence for people: what went wrong, and what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full; make room in {target.parent} and in the home folder's cache, then run the command "
            f"again: a download goes on from where it broke off."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        place_on_disk = getattr(error, "filename", None) or target
        return f"{place_on_disk} cannot be written: give yourself the right to write there, then run the command again."
    if status in (401, 403):
        problem = f"it refuses access with HTTP {status}"
    elif status == 404:
        problem = "it does not have the set any more, HTTP 404"
    elif status:
        problem = f"it answers with HTTP {status}"
    elif isinstance(error, TimeoutError):
        problem = f"it did not answer within {SECONDS_TO_ANSWER:.0f} seconds"
    elif type(error).__name__ == "OfflineModeIsEnabled":
        problem = "HF_HUB_OFFLINE is set, which forbids to ask it"
    elif type(error).__module__.split(".")[0] in ("requests", "urllib3", "httpx2"):
        problem = "there is no network, or the connection broke off"
    else:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"The catalogue cannot be had from {place} ({problem}): run the command again, for a download goes on from "
        f"where it broke off, or download the zip by hand from {KAGGLE_PAGE} and give its path with data=."
    )


def call_with_timeout(seconds: float, ask: Callable[[], T]) -> T:
    """What `ask` returns or raises. Raises TimeoutError when that takes longer.

    A socket's own timeout bounds neither the look-up of a name nor the trying of one address after another.
    """
    answer: Future[T] = Future()

    def work() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return answer.result(timeout=seconds)


def silence_telemetry() -> None:
    """Keep huggingface_hub from telling the hub what is installed here.

    While it may tell, it also asks the hub, before a process's first request, for a list to recognise programs by.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def _download_from_kaggle() -> Path:
    """kagglehub's folder of the set, downloaded unless its cache has it."""
    import zipfile

    with contextlib.redirect_stdout(sys.stderr), _impatient_requests():
        import requests
        from kagglehub import dataset_download
        from kagglehub.cache import Cache
        from kagglehub.config import get_kaggle_credentials
        from kagglehub.exceptions import DataCorruptionError
        from kagglehub.handle import parse_dataset_handle
        from kagglesdk.kaggle_env import get_endpoint, get_env

        # With the version named, kagglehub asks its cache before it asks Kaggle.
        name = f"{KAGGLE_SET}/versions/1"
        handle, cache = parse_dataset_handle(name), Cache()
        cached = cache.load_from_cache(handle)
        if cached and _holds_products(Path(cached)):
            return Path(cached)
        get_kaggle_credentials()  # raises ValueError for a file that is none, which must not pass for a damaged archive
        call_with_timeout(SECONDS_TO_ANSWER, lambda: requests.head(get_endpoint(get_env()), timeout=CONNECT_SECONDS))
        try:
            folder = Path(dataset_download(name, force_download=cached is not None))
        except (DataCorruptionError, zipfile.BadZipFile, ValueError, TypeError) as error:
            # kagglehub would go on from a damaged archive for ever. Zeros pass for a tar, which it unpacks with an
            # argument that Python before 3.11.4 does not know: Kaggle itself sends zips.
            Path(cache.get_archive_path(handle)).unlink(missing_ok=True)
            raise RuntimeError("what arrived was damaged and has been thrown away") from error
        if not _holds_products(folder):
            raise RuntimeError(f"what arrived holds no {TABLE} and {PICTURES}/, and is fetched afresh next time")
        return folder


@contextlib.contextmanager
def _impatient_requests() -> Iterator[None]:
    """While it lasts, no request made with `requests` waits for ever: kagglehub sends its own with no timeout."""
    from requests import adapters

    adapter: Any = adapters.HTTPAdapter
    send = adapter.send

    def send_in_time(self: Any, request: Any, stream: bool = False, timeout: Any = None, **named: Any) -> Any:
        return send(self, request, stream, timeout or (CONNECT_SECONDS, READ_SECONDS), **named)

    adapter.send = send_in_time
    try:
        yield
    finally:
        adapter.send = send


def _link_products(source: Path, folder: Path) -> None:
    """Give `folder` the table and the pictures of `source`, the pictures as hard links where the disk allows."""
    pictures = sorted(entry.name for entry in os.scandir(source / PICTURES))
    (folder / PICTURES).mkdir()
    for name in track(pictures, "Linking pictures", len(pictures)):
        try:
            os.link(source / PICTURES / name, folder / PICTURES / name)
        except OSError:
            shutil.copyfile(source / PICTURES / name, folder / PICTURES / name)
    # Copied: people edit tables, and an edit must not reach kagglehub's cache.
    shutil.copyfile(source / TABLE, folder / TABLE)


def _download_shards(workshop: Path) -> list[Path]:
    """The set's parquet files, in order, downloaded into `workshop` unless they are there."""
    from huggingface_hub import HfApi

    silence_telemetry()
    api = HfApi()
    info = call_with_timeout(
        SECONDS_TO_ANSWER, lambda: api.dataset_info(HF_SET, files_metadata=True, timeout=SECONDS_TO_ANSWER)
    )
    siblings = sorted(info.siblings or (), key=lambda sibling: sibling.rfilename)
    shards = [sibling for sibling in siblings if sibling.rfilename.endswith(".parquet")]
    if not shards:
        raise RuntimeError(f"{HF_SET} holds no parquet file")
    return [_download_shard(shard, str(info.sha), workshop) for shard in shards]


def _download_shard(shard: RepoSibling, commit: str, workshop: Path) -> Path:
    """One file of the set, whole and with the hub's own checksum.

    huggingface_hub's download functions begin again after an interruption and drop what they had; this one goes on.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported by name at run time

    digest = shard.lfs.sha256 if shard.lfs else str(shard.blob_id)
    whole = workshop / f"{digest}.parquet"
    if whole.exists():
        return whole
    part = workshop / f"{digest}.part"
    if part.exists() and part.stat().st_size > (shard.size or 0):
        part.unlink()
    with part.open("ab") as file:
        http_get(
            hf_hub_url(HF_SET, shard.rfilename, repo_type="dataset", revision=commit),
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=shard.size,
            displayed_filename=shard.rfilename,
        )
    # Git numbers small files by the SHA-1 of their content behind a header; large ones go by plain SHA-256.
    hasher = hashlib.sha256() if shard.lfs else hashlib.sha1(b"blob %d\0" % part.stat().st_size)
    with part.open("rb") as file:
        if hashlib.file_digest(file, lambda: hasher).hexdigest() != digest:
            part.unlink()
            raise RuntimeError("what arrived was damaged and has been thrown away")
    return part.replace(whole)


def _write_products(shards: Sequence[Path], folder: Path) -> None:
    """Write the shards' rows into `folder` in Kaggle's layout, a batch in memory at a time, pictures byte for byte."""
    import pyarrow.parquet
    from datasets import IterableDataset

    # The library makes its cache folder even when it caches nothing.
    cache = str(folder.parent / "cache")
    products = IterableDataset.from_parquet([str(shard) for shard in shards], batch_size=256, cache_dir=cache)
    if lacking := {*COLUMNS, "image"}.difference(products.features):
        raise RuntimeError(f"{HF_SET} has no column {', '.join(sorted(lacking))}")
    # Arrow's own tables: pictures stay as they are stored, and rows come forty times as fast as one by one.
    batches = products.with_format("arrow").iter(batch_size=256)
    rows = (row for batch in batches for row in batch.to_pylist())
    count = sum(pyarrow.parquet.read_metadata(shard).num_rows for shard in shards)
    (folder / PICTURES).mkdir()
    with (folder / TABLE).open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(COLUMNS)
        for row in track(rows, "Writing products", count):
            table.writerow([_cell(row[column]) for column in COLUMNS])
            if row["image"] and row["image"]["bytes"]:
                (folder / PICTURES / f"{int(row['id'])}.jpg").write_bytes(row["image"]["bytes"])


def _cell(value: Any) -> str:
    """A value as Kaggle's table has it: missing is empty, and the year is whole."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
