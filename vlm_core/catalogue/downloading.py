"""Pictures at web addresses: downloaded once into a cache, within bounds, and read from there.

A picture is in the cache whole or not at all, so that a download that was stopped resumes where it was.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vlm_core.catalogue.containers.files import MOST_PICTURE_BYTES
from vlm_core.catalogue.containers.folder import FolderFiles
from vlm_core.catalogue.picture_files import MatchedFile, PictureMissing, Pictures, address_of, count_further
from vlm_core.files.addresses import is_address
from vlm_core.files.atomic import write_atomically
from vlm_core.progress import track

if TYPE_CHECKING:
    import httpx2

DOWNLOADS: Final = Path("data", "downloads")
AT_ONCE: Final = 8
SECONDS_TO_ANSWER: Final = 20.0
MOST_REDIRECTIONS: Final = 5
_SCHEMES: Final = ("http://", "https://")
_NO_WEB: Final = (
    "only http and https are downloaded, and a table in a bucket may name what is in it, so copy these pictures to a "
    "folder and give their paths"
)
logger = logging.getLogger(__name__)


class DownloadedPictures:
    """Pictures of a catalogue, of which those at web addresses are in a folder if they were downloaded."""

    def __init__(self, pictures: Pictures, folder: Path) -> None:
        self._pictures = pictures
        self._files = FolderFiles(folder)
        self._problems: dict[str, str] = {}

    def find(self, cell: str) -> MatchedFile:
        """Return where a picture is. Raises PictureMissing, also for an address that was not downloaded."""
        if not (address := address_of(cell)):
            return self._pictures.find(cell)
        if is_address(address):
            with suppress(PictureMissing):  # beside a table of the same bucket
                return self._pictures.find(address)
        name = name_of(address)
        if self._files.contains(name):
            return MatchedFile(f"{DOWNLOADS}/{name}", count_further(cell))
        is_web = address.lower().startswith((*_SCHEMES, "//", "www."))
        problem = self._problems.get(address, "add download=true to download it" if is_web else _NO_WEB)
        raise PictureMissing(f"a web address that is not downloaded, {address[:200]}: {problem}")

    def read(self, path: str) -> bytes:
        """Return a picture's bytes, cut for one that is far too large. Raises OSError."""
        name = path.removeprefix(f"{DOWNLOADS}/")
        return self._pictures.read(path) if name == path else self._files.read_picture(name)

    def state(self, path: str) -> str:
        """Return a text that changes with the picture."""
        name = path.removeprefix(f"{DOWNLOADS}/")
        return self._pictures.state(path) if name == path else self._files.state(name)

    def download(self, cells: Iterable[str]) -> None:
        """Download the pictures of all addresses in these cells that are not in the folder yet."""
        addresses = dict.fromkeys(address for cell in cells if (address := address_of(cell)))
        missing = [address for address in addresses if not self._files.contains(name_of(address))]
        if not missing:
            return
        for address, problem in track(
            _fetch_all(missing, Path(self._files.name)), "downloading pictures", len(missing)
        ):
            if problem:
                self._problems[address] = problem
        logger.info(
            f"Downloaded {len(missing) - len(self._problems):,} of {len(missing):,} pictures to {self._files.name}."
        )


def _fetch_all(addresses: list[str], folder: Path) -> Iterator[tuple[str, str]]:
    """Yield each address when it is done, with what went wrong; stop within seconds when it is left."""
    import httpx2

    with httpx2.Client(timeout=SECONDS_TO_ANSWER, follow_redirects=True, max_redirects=MOST_REDIRECTIONS) as client:
        pool = ThreadPoolExecutor(AT_ONCE)
        try:
            yield from zip(addresses, pool.map(lambda address: _fetch(client, address, folder), addresses), strict=True)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _fetch(client: httpx2.Client, address: str, folder: Path) -> str:
    """Download one picture; return what went wrong, "" for nothing."""
    import httpx2

    if not address.lower().startswith(_SCHEMES):
        return _NO_WEB
    try:
        with client.stream("GET", address) as response:
            if response.status_code != 200:
                return f"HTTP {response.status_code}"
            data = bytearray()
            for part in response.iter_bytes(1 << 16):
                data += part
                if len(data) >= MOST_PICTURE_BYTES:
                    return f"more than {MOST_PICTURE_BYTES // 1_000_000} MB"
        if not data:
            return "it is empty"
        write_atomically(folder / name_of(address), lambda file: file.write(data))
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        return str(error)[:200] or type(error).__name__
    return ""


def name_of(address: str) -> str:
    """Return the path of an address's picture in the folder of downloads."""
    digest = hashlib.blake2b(address.encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
    return f"{digest[:2]}/{digest}"
