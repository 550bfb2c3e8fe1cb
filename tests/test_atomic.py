from pathlib import Path
from typing import BinaryIO

import pytest

from vlm_core.atomic import write_atomically


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
    assert [found.name for found in tmp_path.iterdir()] == ["file"]
