from pathlib import Path
from typing import BinaryIO

import pytest

from vlm_core.atomic import building, write_atomically


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
