"""Download of the public catalogue from Kaggle or the Hugging Face Hub into `data/raw`, in Kaggle's layout.

A folder in `data/raw` is complete or missing: it is built under a hidden name beside its final one and then renamed.
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

from vlm_core.errors import UserError, require_extra
from vlm_core.files.atomic import replace
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
    """Return the folder `root/data/raw/myntra_fashion_products`, downloaded from Kaggle unless it exists.

    Files in kagglehub's cache are reused, hard-linked rather than copied where the disk allows. Raises UserError.
    """
    target = root / RAW / "myntra_fashion_products"
    with _building(target, "Kaggle") as folder:
        if folder:
            _link_products(_download_from_kaggle(), folder)
    return target


def fetch_hf(root: Path) -> Path:
    """Return the folder `root/data/raw/myntra_fashion_products_hf`, downloaded from the Hub unless it exists.

    Raises UserError.
    """
    target = root / RAW / "myntra_fashion_products_hf"
    with _building(target, "the Hugging Face Hub") as folder:
        if folder:
            _write_products(_download_shards(folder.parent), folder)
    return target


@contextlib.contextmanager
def _building(target: Path, place: str) -> Iterator[Path | None]:
    """Yield an empty folder that becomes `target` when the block succeeds; None when `target` exists.

    Its parent stays after a failure, so that downloads can resume. Raises UserError for any failure inside.
    """
    from filelock import FileLock, Timeout

    workshop = target.with_name(f".{target.name}.partial")
    folder = workshop / "products"
    if _holds_products(target):  # checked before locking: the folder may be read-only
        shutil.rmtree(workshop, ignore_errors=True)
        yield None
        return
    require_extra("data")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock"), timeout=0):
            if _holds_products(target):  # another process has just finished
                yield None
                return
            _make_way(target)
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            yield folder
            replace(folder, target)
            shutil.rmtree(workshop, ignore_errors=True)
    except UserError:
        raise
    except Timeout:
        raise UserError(f"{target} is being downloaded by another process: wait until that has finished.") from None
    except Exception as error:
        raise UserError(_explain(error, place, target)) from error


def _make_way(target: Path) -> None:
    """Remove an empty folder. Raises UserError when it is not empty."""
    if target.exists():
        try:
            target.rmdir()
        except OSError:
            raise UserError(
                f"{target} exists but has no {TABLE} and {PICTURES}/: move it away and run the command again."
            ) from None


def _holds_products(folder: Path) -> bool:
    return (folder / TABLE).is_file() and (folder / PICTURES).is_dir()


def _explain(error: Exception, place: str, target: Path) -> str:
    """Return one sentence for users: what went wrong, and what to do about it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    number = getattr(error, "errno", None)
    if number in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"The disk is full: free some space in {target.parent} and in the home folder's cache, then run the "
            f"command again. The download resumes where it stopped."
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        path = getattr(error, "filename", None) or target
        return f"{path} cannot be written: change its permissions, then run the command again."
    if status in (401, 403):
        problem = f"access denied, HTTP {status}"
    elif status == 404:
        problem = "the data set no longer exists there, HTTP 404"
    elif status:
        problem = f"HTTP {status}"
    elif isinstance(error, TimeoutError):
        problem = f"no answer within {SECONDS_TO_ANSWER:.0f} seconds"
    elif type(error).__name__ == "OfflineModeIsEnabled":
        problem = "HF_HUB_OFFLINE is set, which forbids downloads"
    elif type(error).__module__.split(".")[0] in ("requests", "urllib3", "httpx2"):
        problem = "there is no network, or the connection was lost"
    else:
        problem = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    return (
        f"The catalogue cannot be downloaded from {place} ({problem}): run the command again, which resumes the "
        f"download, or download the zip yourself from {KAGGLE_PAGE} and give its path with data=."
    )


def call_with_timeout(seconds: float, request: Callable[[], T]) -> T:
    """Return or raise what `request` does. Raises TimeoutError when it takes longer.

    A socket's own timeout bounds neither name resolution nor trying several addresses.
    """
    result: Future[T] = Future()

    def work() -> None:
        try:
            result.set_result(request())
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return result.result(timeout=seconds)


def silence_telemetry() -> None:
    """Stop huggingface_hub from reporting to the Hub what is installed here.

    With telemetry it also downloads, before a process's first request, a list by which it recognises programs.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True


def _download_from_kaggle() -> Path:
    """Return kagglehub's folder of the data set, downloaded unless its cache has it."""
    import zipfile

    with contextlib.redirect_stdout(sys.stderr), _impatient_requests():
        import requests
        from kagglehub import dataset_download
        from kagglehub.cache import Cache
        from kagglehub.config import get_kaggle_credentials
        from kagglehub.exceptions import DataCorruptionError
        from kagglehub.handle import parse_dataset_handle
        from kagglesdk.kaggle_env import get_endpoint, get_env

        # With an explicit version, kagglehub looks into its cache before it connects to Kaggle.
        name = f"{KAGGLE_SET}/versions/1"
        handle, cache = parse_dataset_handle(name), Cache()
        cached = cache.load_from_cache(handle)
        if cached and _holds_products(Path(cached)):
            return Path(cached)
        get_kaggle_credentials()  # an invalid file raises ValueError here, not as a damaged archive
        call_with_timeout(SECONDS_TO_ANSWER, lambda: requests.head(get_endpoint(get_env()), timeout=CONNECT_SECONDS))
        try:
            folder = Path(dataset_download(name, force_download=cached is not None))
        except (DataCorruptionError, zipfile.BadZipFile, ValueError, TypeError) as error:
            # kagglehub would resume from a damaged archive for ever. It takes zeros for a tar, which it unpacks with an
            # argument that Python before 3.11.4 does not have; Kaggle itself sends zips.
            Path(cache.get_archive_path(handle)).unlink(missing_ok=True)
            raise RuntimeError("the download was damaged and has been deleted") from error
        if not _holds_products(folder):
            raise RuntimeError(f"the download has no {TABLE} and {PICTURES}/, and is repeated next time")
        return folder


@contextlib.contextmanager
def _impatient_requests() -> Iterator[None]:
    """Give every request made with `requests` a timeout while it lasts: kagglehub's own have none."""
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
    """Copy the table and the pictures of `source` into `folder`, pictures as hard links where the disk allows."""
    pictures = sorted(entry.name for entry in os.scandir(source / PICTURES))
    (folder / PICTURES).mkdir()
    for name in track(pictures, "Linking pictures", len(pictures)):
        try:
            os.link(source / PICTURES / name, folder / PICTURES / name)
        except OSError:
            shutil.copyfile(source / PICTURES / name, folder / PICTURES / name)
    # Copied, because users edit tables, and an edit must not change kagglehub's cache.
    shutil.copyfile(source / TABLE, folder / TABLE)


def _download_shards(workshop: Path) -> list[Path]:
    """Return the data set's Parquet files, in order, downloaded into `workshop` unless they exist."""
    from huggingface_hub import HfApi

    silence_telemetry()
    api = HfApi()
    info = call_with_timeout(
        SECONDS_TO_ANSWER, lambda: api.dataset_info(HF_SET, files_metadata=True, timeout=SECONDS_TO_ANSWER)
    )
    siblings = sorted(info.siblings or (), key=lambda sibling: sibling.rfilename)
    shards = [sibling for sibling in siblings if sibling.rfilename.endswith(".parquet")]
    if not shards:
        raise RuntimeError(f"{HF_SET} has no Parquet file")
    return [_download_shard(shard, str(info.sha), workshop) for shard in shards]


def _download_shard(shard: RepoSibling, commit: str, workshop: Path) -> Path:
    """Return one complete file of the data set, verified by the SHA-256 that the hub gives for a file in Git LFS.

    huggingface_hub's download functions start over after an interruption; this one resumes. Raise RuntimeError if the
    download was damaged, or the hub gives no SHA-256, as for a file that is in Git itself.
    """
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # exported by name at run time

    if not shard.lfs:
        raise RuntimeError(f"the hub gives no SHA-256 for {shard.rfilename}, so it cannot be verified")
    digest = shard.lfs.sha256
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
    with part.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != digest:
            part.unlink()
            raise RuntimeError("the download was damaged and has been deleted")
    return part.replace(whole)


def _write_products(shards: Sequence[Path], folder: Path) -> None:
    """Write the shards' rows into `folder` in Kaggle's layout, batch by batch, pictures byte for byte."""
    import pyarrow.parquet
    from datasets import IterableDataset

    # The library creates its cache folder even when it caches nothing.
    cache = str(folder.parent / "cache")
    products = IterableDataset.from_parquet([str(shard) for shard in shards], batch_size=256, cache_dir=cache)
    if lacking := {*COLUMNS, "image"}.difference(products.features):
        raise RuntimeError(f"{HF_SET} has no column {', '.join(sorted(lacking))}")
    # Arrow's own tables: pictures stay as they are stored, and reading is forty times as fast as row by row.
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
    """Return a value as in Kaggle's table: missing ones are empty, and the year is an integer."""
    if value is None or value != value:
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
