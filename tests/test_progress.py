import logging
from collections.abc import Iterator

import pytest

from tests.messages import logging_restored
from vlm_core.progress import log_to_stdout, quiet, shows_messages, track

LOGGER = logging.getLogger("vlm_core.somewhere")


@pytest.fixture(autouse=True)
def _library() -> Iterator[None]:
    with logging_restored():
        yield


@pytest.fixture
def command() -> None:
    """Log as in a command."""
    log_to_stdout()


def test_a_library_user_sees_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    LOGGER.info("work")
    LOGGER.warning("careful")
    assert list(track(range(3), "work", 3)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("command")
def test_a_command_prints_each_message_once_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    log_to_stdout()  # again, as a worker may
    LOGGER.info("[1/2] 100 %% of [bold]this[/bold]")
    LOGGER.warning("careful")
    LOGGER.debug("details")
    logging.getLogger("mlflow").info("of a library")
    LOGGER.info("Left out category \x1b[2J\r\x9b1A: two\nlines, \u202eright to left\u2069")
    assert (
        capsys.readouterr().out == "[1/2] 100 %% of [bold]this[/bold]\nWARNING: careful\n"
        "Left out category \\x1b[2J\\r\\x9b1A: two\\nlines, \\u202eright to left\\u2069\n"
    )


@pytest.mark.usefixtures("command")
def test_where_a_program_failed_is_told_line_by_line(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("\x1bbad")
    except ValueError:
        LOGGER.exception("not measured")
    said, first, *_, last = capsys.readouterr().out.splitlines()
    assert (said, first, last) == (
        "ERROR: not measured", "Traceback (most recent call last):", "ValueError: \\x1bbad",
    )  # fmt: skip


@pytest.mark.usefixtures("command")
def test_letters_of_all_scripts_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    texts = "Möbel, Mo\u0308bel, 家具, كراسي, می\u200cخواهم, 👩\u200d👧, 👟\ufe0f"
    LOGGER.info(texts)
    assert capsys.readouterr().out == f"{texts}\n"


@pytest.mark.usefixtures("command")
def test_errors_alone_are_shown_inside_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="stop"), quiet():
        LOGGER.warning("careful")
        LOGGER.error("lost")
        assert not shows_messages()
        raise ValueError("stop")
    LOGGER.info("work")
    assert capsys.readouterr().out == "ERROR: lost\nwork\n"


def test_values_pass_through_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm_core.progress._at_a_terminal", lambda: True)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes any stream for a terminal
    assert list(track(iter("abc"), "letters [/b]")) == ["a", "b", "c"]
    assert "letters [/b]" in capsys.readouterr().err
