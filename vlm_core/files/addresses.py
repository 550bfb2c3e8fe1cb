"""File systems at addresses such as s3://bucket/folder: what is an address, what opens it, and what can go wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from vlm_core.errors import UserError, redact

_ADDRESS: Final = re.compile(r"(?!https?:)([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_OPTION: Final = r"(?:sig=[^&?]*|(?!sig=)\w+=[^&/?]*)"  # Azure's signatures may hold a slash
_OPTIONS: Final = re.compile(rf"\?{_OPTION}(?:&{_OPTION})*$")  # Arrow's, such as ?region=eu-west-1
_OF_ARROW: Final = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs")
_CREDENTIALS: Final = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws; AWS_ENDPOINT_URL for a server of your own",
    **dict.fromkeys(("gs", "gcs"), "GOOGLE_APPLICATION_CREDENTIALS"),
    **dict.fromkeys(("abfs", "abfss"), "AZURE_CLIENT_ID and the like, or az login"),
}
_DENIED: Final = re.compile(
    r"ACCESS_DENIED|INVALID_ACCESS_KEY|INVALID_CLIENT|SIGNATURE|TOKEN|credential|HTTP status 40[13]"
)
_NOT_THERE: Final = re.compile(r"NO_SUCH_BUCKET|Bucket '[^']*' not found")
_MOST_SHOWN: Final = 400  # characters of what a file system says


def is_address(text: str) -> bool:
    """Return whether a text is the address of a file system, such as s3://bucket; http and https have none."""
    return _ADDRESS.match(text) is not None


def shown_address(address: str) -> str:
    """Return an address as messages may show it: without users, passwords and options."""
    return redact(_OPTIONS.sub("", address)).rstrip("/")


def local_path(setting: str, text: str) -> Path:
    """Return the path of a file or folder that is on this machine. Raises UserError for an address."""
    if is_address(text):
        raise UserError(f"{setting}={shown_address(text)} is an address: give a path of this machine.")
    return Path(text).expanduser()


def open_address(address: str) -> tuple[Any, str]:
    """Return the file system (fsspec's) of an address and the path in it, in which no sign has a meaning of its own.

    Those of S3, Google, Azure and Hadoop are Arrow's, which is always installed. Raises what the file system raises.
    """
    import fsspec
    from fsspec.implementations.arrow import ArrowFSWrapper

    scheme, _, place = address.partition("://")
    if scheme.lower() not in _OF_ARROW:
        files, path = fsspec.url_to_fs(address)
        return files, path
    from pyarrow import fs

    host, _, path = _OPTIONS.sub("", place).partition("/")
    options = match[0] if (match := _OPTIONS.search(place)) else ""
    files, top = fs.FileSystem.from_uri(f"{scheme.lower()}://{host}/{options}")
    return ArrowFSWrapper(files, skip_instance_cache=True), f"{top.rstrip('/')}/{path}".rstrip("/") or "/"


@contextmanager
def naming_address(address: str) -> Iterator[None]:
    """Turn whatever a file system raises into a UserError that names the address and the way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each file system has its own
        raise UserError(_problem(shown_address(address), error)) from error


def _problem(address: str, error: Exception) -> str:
    scheme = address.partition("://")[0].lower()
    reason = redact(" ".join(str(error).split()) or type(error).__name__)[:_MOST_SHOWN].rstrip(".")
    where = _CREDENTIALS.get(scheme, "as its driver reads them")
    if isinstance(error, ImportError):
        return f"{address} needs a library that is not installed ({reason}): install it with pip."
    if isinstance(error, ValueError) and "Protocol not known" in reason:
        return f"{address} begins with a scheme that is not known: give s3://, gs://, abfs:// or another of fsspec's."
    if isinstance(error, FileNotFoundError) or _NOT_THERE.search(reason):
        return f"{address} is not there: check the names of the bucket and of what is in it."
    if isinstance(error, PermissionError) or _DENIED.search(reason):
        return f"{address} may not be read ({reason}): give credentials that may list and read it ({where})."
    return f"{address} cannot be read ({reason}): check the address, the network and the credentials ({where})."
