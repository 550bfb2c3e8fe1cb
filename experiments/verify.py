"""Compare what is installed with requirements-hashed.lock, file by file: `python -m experiments.verify`.

pip downloads each package anew and refuses one whose SHA-256 is not in the lock file. Every file of the package is then
compared with the one that is installed.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Final

from experiments.cli import Parser, run_command
from vlm_core.errors import UserError
from vlm_core.progress import track

LOCK: Final = Path(__file__).resolve().parent.parent / "requirements-hashed.lock"
_PIN: Final = re.compile(r"^(?P<name>[\w.-]+)(\[[^]]+\])?==(?P<version>[^\s;]+)")
_OWN_RECORD: Final = re.compile(r"[^/]+\.dist-info/RECORD")
_WRITTEN_BY_PIP: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_AT_ONCE: Final = 10  # packages that lie on the disk together


def main(arguments: Sequence[str] | None = None) -> None:
    """Verify every installed package, or those that are named, and print what is not in the lock file."""
    parser = Parser(
        prog="python -m experiments.verify",
        description="Download each installed package anew, refuse one whose SHA-256 is not in "
        "requirements-hashed.lock, and compare its files with those that are installed.",
    )
    parser.add_argument("packages", nargs="*", help="packages to verify (none: all)")
    chosen = {normalise(name) for name in parser.parse_args(arguments).packages}
    if not LOCK.exists():
        raise UserError(f"{LOCK.name} is not beside the code: run this in a clone of the project.")
    installed = {normalise(each.name): each.version for each in distributions()}
    if unknown := chosen - installed.keys():
        raise UserError(f"{min(unknown)} is not installed.")
    locked = read_lock(LOCK.read_text(encoding="utf-8"))
    names = sorted(chosen or installed)
    others = [f"{name} {installed[name]}" for name in names if installed[name] not in locked.get(name, {})]
    pins = [locked[name][installed[name]] for name in names if installed[name] in locked.get(name, {})]
    files, changed = 0, list[str]()
    for start in track(range(0, len(pins), _AT_ONCE), "verifying", -(-len(pins) // _AT_ONCE)):
        with tempfile.TemporaryDirectory() as folder:
            download(pins[start : start + _AT_ONCE], Path(folder))
            for wheel in sorted(Path(folder).glob("*.whl")):
                count, wrong = compare(wheel, Path(sysconfig.get_path("purelib")))
                files += count
                changed += wrong
    if others:
        print(f"Not in the lock file, so not verified: {', '.join(others)}.")
    if changed:
        raise UserError(
            f"{len(changed):,} of {files:,} installed files are not those of their packages: remove .venv and run make "
            f"setup again. The first: {', '.join(changed[:20])}."
        )
    print(f"{len(pins)} packages have the hashes of the lock file, and {files:,} installed files are those of them.")


def read_lock(text: str) -> dict[str, dict[str, str]]:
    """Return the lines of a lock file with hashes, by package and version, each as one requirement."""
    locked: dict[str, dict[str, str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if match := _PIN.match(line):
            locked.setdefault(normalise(match["name"]), {})[match["version"]] = line
    return locked


def normalise(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def download(pins: Sequence[str], folder: Path) -> None:
    """Download the wheels of requirements with hashes. Raises UserError where a hash or a package is missing."""
    requirements = folder / "requirements.txt"
    requirements.write_text("\n".join(pins), encoding="utf-8")
    words = ("download", "--quiet", "--require-hashes", "--no-deps", "--only-binary", ":all:", "--dest", str(folder))
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, "--requirement", str(requirements)], capture_output=True, text=True
    )
    if done.returncode:
        raise UserError(f"Packages could not be verified. pip says: {done.stderr.strip()}")


def compare(wheel: Path, site_packages: Path) -> tuple[int, list[str]]:
    """Return how many files a wheel installs, and those of them that are missing or have other contents.

    Scripts, whose first line pip rewrites, are left out.
    """
    count, changed = 0, []
    for name, digest in _record(wheel):
        count += 1
        path = site_packages / name
        if not path.is_file():
            changed.append(f"{path} is missing")
        elif _digest(path) != digest:
            changed.append(f"{path} was changed")
    return count, changed


def _record(wheel: Path) -> Iterator[tuple[str, str]]:
    """Yield the files of a wheel that are installed as they are, with their SHA-256 as wheels write it."""
    with zipfile.ZipFile(wheel) as archive:
        # a package such as setuptools holds others, with records of their own
        (record,) = (name for name in archive.namelist() if _OWN_RECORD.fullmatch(name))
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
    for name, digest, *_ in rows:
        is_pips = name.removeprefix(record.removesuffix("RECORD")) in _WRITTEN_BY_PIP
        if digest.startswith("sha256=") and ".data/" not in name and not is_pips:
            yield name, digest.removeprefix("sha256=")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    return base64.urlsafe_b64encode(digest).decode().rstrip("=")


if __name__ == "__main__":
    sys.exit(run_command(main))
