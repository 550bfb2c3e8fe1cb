import errno
import os
import tempfile
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO

import pytest

from vlm_core.files.atomic import building, errors_name, own_temporary_folder, write_atomically


def test_a_file_is_written_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, lambda file: file.write(b"all of it"))
    assert path.read_bytes() == b"all of it"


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    def fill_the_disk(file: BinaryIO) -> None:
        file.write(b"half of")
        raise OSError("No space left on device")

    path = tmp_path / "file"
    path.write_bytes(b"as before")
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fill_the_disk)
    assert path.read_bytes() == b"as before"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with building(folder) as partial:
        partial.mkdir()
        (partial / "file").write_bytes(b"all of it")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["file"]
    assert list(folder.parent.iterdir()) == [folder]


def test_what_was_built_is_on_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int | str] = []
    replace = os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "replace", lambda *paths: (steps.append("renamed"), replace(*paths)))
    with building(tmp_path / "folder") as partial:
        (partial / "below").mkdir(parents=True)
        for name in ("file", "below/file"):
            (partial / name).write_bytes(b"all of it")
        built = {each.stat().st_ino for each in (partial, *partial.rglob("*"))}
        assert steps == []
    assert len(built) == 4 and set(steps[:4]) == built
    assert steps[4:] == ["renamed", tmp_path.stat().st_ino]


def test_many_files_are_synchronised_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    monkeypatch.setattr("vlm_core.files.atomic._MANY", 3)
    monkeypatch.setattr("vlm_core.files.atomic.synchronise", lambda folder: steps.append("all"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: steps.append("one"))
    with building(tmp_path / "folder") as partial:
        partial.mkdir()
        for number in range(3):
            (partial / str(number)).touch()
    assert steps == ["all", "one"]  # the folder that it is in comes last


def test_a_folder_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), building(tmp_path / "folder") as partial:
        partial.mkdir()
        (partial / "file").write_bytes(b"half of")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file").write_bytes(b"as before")
    with pytest.raises(OSError, match="not empty"), building(folder) as partial:
        partial.mkdir()
    assert [(path, path.read_bytes()) for path in tmp_path.rglob("file")] == [(folder / "file", b"as before")]
    assert list(tmp_path.iterdir()) == [folder]


def test_what_a_killed_process_was_building_goes_when_it_is_built_again(tmp_path: Path) -> None:
    def build_and_die() -> None:
        with building(tmp_path / "target") as target, building(tmp_path / "other") as other:
            target.mkdir()
            other.mkdir()
            os._exit(9)

    _run_in_a_fork(build_and_die)
    assert len(list(tmp_path.iterdir())) == 2
    with building(tmp_path / "target") as of_a_living_process:
        of_a_living_process.mkdir()
        write_atomically(tmp_path / "target", lambda file: None)
        assert of_a_living_process.exists()
        (tmp_path / "target").unlink()
    assert sorted(path.name[:6] for path in tmp_path.iterdir()) == [".other", "target"]


def test_a_command_keeps_its_temporary_files_in_one_folder_and_removes_that_of_a_killed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    (tmp_path / "vlm-of-somebody-else").mkdir()

    def write_and_die() -> None:
        with own_temporary_folder():
            Path(tempfile.mkdtemp(), "weights").touch()
            os._exit(9)

    _run_in_a_fork(write_and_die)
    assert len(list(tmp_path.rglob("weights"))) == 1
    with own_temporary_folder():
        folder = Path(tempfile.mkdtemp())
        assert folder.parent.parent == tmp_path and os.environ["TMPDIR"] == str(folder.parent)
        assert list(tmp_path.rglob("weights")) == []
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["vlm-of-somebody-else"]


def _run_in_a_fork(work: Callable[[], None]) -> None:
    process = get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == 9


@pytest.mark.parametrize("named", [None, "part", "other"])
def test_an_error_without_a_file_or_with_the_unfinished_one_names_what_was_to_be_written(
    tmp_path: Path, named: str | None
) -> None:
    path = tmp_path / "file"
    with pytest.raises(OSError, match="No space") as raised, building(path) as partial:
        files = {"part": str(partial / "inner"), "other": "/other", None: None}
        raise OSError(errno.ENOSPC, "No space left on device", files[named])
    assert raised.value.filename == ("/other" if named == "other" else str(path))


def test_the_error_of_what_writes_weights_becomes_one_of_the_system(tmp_path: Path) -> None:
    from safetensors import SafetensorError

    with pytest.raises(OSError, match="No space left") as raised, errors_name(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path))
    with pytest.raises(SafetensorError), errors_name(tmp_path):
        raise SafetensorError("header too large")
