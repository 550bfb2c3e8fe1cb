"""What is installed is compared with the hashes in the lock file: what was replaced or changed is named."""

import base64
import hashlib
import re
import sysconfig
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from experiments import verify
from vlm_core.errors import UserError

LOCK = verify.LOCK.read_text()
FILES = {"shop/__init__.py": b"price = 1\n", "shop/table.py": b"rows = []\n"}


def _wheel(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    """A wheel of the package `shop`, as build tools write it."""
    info = "shop-1.0.dist-info"
    metadata = {
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: shop\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "shop-1.0.data/scripts/shop": b"#!python\n",
    }
    everything = {**files, **metadata}
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in everything.items()]
    everything[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    path = folder / "shop-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in everything.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def _install(wheel: Path, site_packages: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages)


def test_files_that_were_changed_or_removed_are_named(tmp_path: Path) -> None:
    wheel, site_packages = _wheel(tmp_path), tmp_path / "site-packages"
    _install(wheel, site_packages)
    assert verify.compare(wheel, site_packages) == (4, [])
    (site_packages / "shop/__init__.py").write_text("price = 2\n")
    (site_packages / "shop/table.py").unlink()
    (site_packages / "shop-1.0.data/scripts/shop").write_text("#!/usr/bin/python3\n")  # as pip rewrites it
    assert verify.compare(wheel, site_packages) == (
        4,
        [f"{site_packages}/shop/__init__.py was changed", f"{site_packages}/shop/table.py is missing"],
    )


def test_a_package_may_hold_others_with_records_of_their_own(tmp_path: Path) -> None:
    wheel = _wheel(tmp_path, {**FILES, "shop/_vendor/box-1.0.dist-info/RECORD": b"box.py,,"})
    _install(wheel, tmp_path / "site-packages")
    assert verify.compare(wheel, tmp_path / "site-packages") == (5, [])


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and from nowhere else."""
    folder = tmp_path / "registry"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _pin(wheel: Path) -> str:
    return f"shop==1.0 --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}"


@pytest.mark.slow
def test_a_package_that_was_replaced_at_the_registry_is_refused(registry: Path, tmp_path: Path) -> None:
    pin = _pin(_wheel(registry))
    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    verify.download([pin], tmp_path / "before")
    assert (tmp_path / "before/shop-1.0-py3-none-any.whl").exists()
    _wheel(registry, {**FILES, "shop/table.py": b"import os\n"})
    with pytest.raises(UserError, match="Packages could not be verified"):
        verify.download([pin], tmp_path / "after")
    assert not list((tmp_path / "after").glob("*.whl"))


@pytest.mark.slow
def test_the_command_verifies_what_is_installed_and_names_what_is_not_locked(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel, site_packages = _wheel(registry), tmp_path / "site-packages"
    _install(wheel, site_packages)
    monkeypatch.setattr(verify, "LOCK", tmp_path / "lock")
    verify.LOCK.write_text(_pin(wheel).replace(" --hash", " \\\n    --hash") + "\n")
    monkeypatch.syspath_prepend(str(site_packages))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(site_packages))
    verify.main(["shop", "pip"])
    printed = capsys.readouterr().out
    assert f"Not in the lock file, so not verified: pip {version('pip')}." in printed
    assert "1 packages have the hashes of the lock file, and 4 installed files are those of them." in printed
    (site_packages / "shop/table.py").write_text("import os\n")
    with pytest.raises(UserError, match=r"1 of 4 installed files .* The first: .*shop/table.py was changed"):
        verify.main(["shop"])
    with pytest.raises(UserError, match="no-such-shop is not installed"):
        verify.main(["no_such_shop"])


def test_without_a_lock_file_nothing_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "LOCK", tmp_path / "requirements-hashed.lock")
    with pytest.raises(UserError, match="is not beside the code: run this in a clone"):
        verify.main([])


def test_every_locked_package_has_hashes_and_both_lock_files_agree() -> None:
    locked = verify.read_lock(LOCK)
    assert len(locked) > 150
    for versions in locked.values():
        for line in versions.values():
            assert re.fullmatch(r"[\w.-]+(\[[^]]+\])?==\S+( ; [^-]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", line), line
    plain = (verify.LOCK.parent / "requirements.lock").read_text().splitlines()
    pins = {line for line in plain if not line.startswith("#")}
    lines = [line.partition(" --hash")[0].strip() for versions in locked.values() for line in versions.values()]
    hashed = {re.sub(r"\[.+]", "", line) for line in lines}  # a file of constraints takes no extras
    assert pins <= hashed
    assert all(re.match(r"cuda-|nvidia-[^m]|triton", line) for line in hashed - pins)
