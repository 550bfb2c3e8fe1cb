"""What every command shares: its exit codes, and what it prints."""

import errno
from collections.abc import Iterator

import pytest

from experiments import evaluate
from experiments.cli import Parser, run_command, show_table
from tests.messages import logging_restored
from vlm_core.errors import UserError
from vlm_core.tracking.signals import STOPPED


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    with logging_restored():
        yield


def _run(error: BaseException | None) -> int:
    def main() -> None:
        if error:
            raise error

    return run_command(main)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (UserError("epochs=0: use 1 or more."), 1, "error: epochs=0: use 1 or more.\n"),
        (
            OSError(errno.ENOSPC, "Detail: [errno 28]", "a.csv"),
            1,
            "error: a.csv cannot be written: No space left on device. Free some space there, then start again.\n",
        ),
        (
            OSError(errno.ENOTDIR, "Detail", "file/out"),
            1,
            "error: file/out cannot be written: Not a directory. Choose another place.\n",
        ),
        (
            OSError(errno.EACCES, "Denied"),
            1,
            "error: A file cannot be written: Permission denied. Make its folder writable, or choose another place.\n",
        ),
    ],
)
def test_an_error_that_the_user_can_fix_is_one_sentence(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(error) == code
    assert capsys.readouterr() == ("", message)


def test_the_catalogue_that_was_evaluated_on_is_shown_without_its_signature(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vlm_core.workflows.evaluate.run_evaluation", lambda *_: ("child", None))
    monkeypatch.setattr("experiments.tables.evaluation_rows", lambda _: [])
    evaluate.main(["--run", "parent", "--data", "abfs://c@a.dfs/shop?sig=hunter2"])
    shown = "".join(capsys.readouterr().out.split())  # without line breaks
    assert "abfs://a.dfs" in shown and "hunter2" not in shown


def test_an_interruption_says_how_to_resume(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(KeyboardInterrupt()) == STOPPED
    assert "resume=<run id>" in capsys.readouterr().err


def test_other_errors_are_raised() -> None:
    with pytest.raises(OSError, match="Is a directory"):
        _run(OSError(errno.EISDIR, "Is a directory"))
    with pytest.raises(ZeroDivisionError):
        _run(ZeroDivisionError())


def test_a_table_keeps_its_numbers_whole_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_table("Scores", ("", "score", "interval"), [("a long name " * 4, "0.1234", "0.1200 to 0.1300")])
    printed = capsys.readouterr().out
    assert printed.startswith("Scores") and "0.1200 to 0.1300" in printed


def test_a_table_shows_texts_from_data_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(
        "[b]Shop[/i]",
        ("[red]category", "n"),
        [("Tops [/b]", "1"), ("Bags [sale] :shoe:", "2"), ("\x1b[2J\n\u202eme", "3")],
    )
    printed = capsys.readouterr().out
    for text in ("[b]Shop[/i]", "[red]category", "Tops [/b]", "Bags [sale] :shoe:", "\\x1b[2J\\n\\u202eme"):
        assert text in printed
    assert "\x1b" not in printed


def test_an_error_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(UserError("label=\x1b]0;title\x07 is no column of é.csv\udcff.")) == 1
    assert capsys.readouterr().err == "error: label=\\x1b]0;title\\x07 is no column of é.csv\\udcff.\n"


@pytest.mark.parametrize(
    ("words", "read"),
    [
        (["--data", "shop.csv", "label=kind of"], ("shop.csv", "kind of", [])),
        (["data=a=b.csv", "--label=kind"], ("a=b.csv", "kind", [])),
        (["--data", "label=kind"], ("label=kind", "", [])),  # the name of a folder, as Spark writes them
        (["--pictures", "1.jpg", "size=2.jpg", "label=kind"], ("", "kind", ["1.jpg", "size=2.jpg"])),
        (["--label=", "data=x"], ("x", "", [])),
    ],
)
def test_settings_are_also_written_as_in_messages(words: list[str], read: tuple[str, str, list[str]]) -> None:
    parser = Parser()
    parser.add_argument("--data", default="")
    parser.add_argument("--label", default="")
    parser.add_argument("--pictures", nargs="+", default=[])
    options = parser.parse_args(words)
    assert (options.data, options.label, options.pictures) == read


def test_a_word_that_is_no_setting_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(prog="prepare").parse_args(["lable=kind"])
    assert "unrecognized arguments: lable=kind" in capsys.readouterr().err
