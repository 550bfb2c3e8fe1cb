"""Where an optional library is missing, one sentence names the extra that brings it; no text shows a password."""

import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.stores import run_python
from tests.test_pins import PROJECT, normalise, requirements
from vlm_core.errors import EXTRAS, MissingExtra, UserError, naming_extras, redact, require_extra

# The core's own dependencies bring three of these too: whoever installs the core alone has them. torchvision is read
# by transformers and torchmetrics where its metadata say that it is there.
NOT_HIDDEN = {"flask", "jinja2", "requests", "torchvision"}
HIDDEN = sorted({module for modules in EXTRAS.values() for module in modules} - NOT_HIDDEN)
HIDE_EXTRAS = f"""
import sys
for module in {HIDDEN}:
    sys.modules[module] = None
"""
RUN_MODULE = """
import runpy
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
def test_the_modules_of_each_extra_are_those_that_pyproject_asks_for() -> None:
    distributions = packages_distributions()
    brought = {extra: {normalise(distributions[module][0]) for module in modules} for extra, modules in EXTRAS.items()}
    asked = {extra: {*requirements(PROJECT["optional-dependencies"][extra])} for extra in EXTRAS}
    assert brought == asked
    assert {*PROJECT["optional-dependencies"]} == {*EXTRAS, "all", "dev"}


def test_an_installed_extra_passes() -> None:
    for extra in EXTRAS:
        require_extra(extra)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r"^onnx is not installed: run pip install '[a-z-]+\[export\]', or make"):
        require_extra("export")


def test_an_import_that_fails_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtra, match=r"^optuna is not installed: .*\[search\]"), naming_extras():
        import optuna  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="no_such_module"), naming_extras():
        import no_such_module  # type: ignore[import-not-found]  # noqa: F401


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "extra"),
    [
        (["experiments.tune", "--data", "sample"], "search"),
        (["experiments.study", "--data", "sample"], "study"),
        (["experiments.export", "--run", "any"], "export"),
        (["experiments.prepare", "--data", "hf"], "data"),
        (["dashboard"], "dashboard"),
    ],
)
def test_a_command_without_its_extra_says_one_sentence(tmp_path: Path, words: list[str], extra: str) -> None:
    done = run_python(HIDE_EXTRAS + RUN_MODULE, tmp_path, *words)
    assert done.returncode == 1
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith("error: ")
    assert sentence.endswith(f"[{extra}]', or make setup EXTRAS={extra} in a clone of the project.")
    assert not list(tmp_path.glob("mlflow.db*"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://seeker:hunter2@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql+psycopg://seeker:hun/ter2@host/db?sslmode=require", "postgresql+psycopg://host/db?sslmode=require"),
        ("postgresql://host/db?user=seeker&password=hunter2&sslmode=require",
         "postgresql://host/db?user=seeker&password=***&sslmode=require"),
        ("mssql+pyodbc:///?odbc_connect=DRIVER%3Dx%3BPWD%3Dhunter2", "mssql+pyodbc:///?odbc_connect=***"),
        ("https://seeker:hunter2@host:5000/mlflow", "https://host:5000/mlflow"),
        ("https://hunter2@host/", "https://host/"),
        ("http://seeker:hun@ter2@host", "http://host"),
        ("API request to http://seeker:hunter2@host/api?x=a@b failed", "API request to http://host/api?x=a@b failed"),
        ("[('mysql://seeker:hunter2@host/db', 'password=hunter2')]", "[('mysql://host/db', 'password=***')]"),
        ("http://host:5000/x?y=a@b", "http://host:5000/x?y=a@b"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("models:/categoriser-clip@champion", "models:/categoriser-clip@champion"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("set MLFLOW_TRACKING_PASSWORD, or a token", "set MLFLOW_TRACKING_PASSWORD, or a token"),
        ("abfs://c@a.dfs.core.windows.net/shop?sv=2022-11-02&sp=rl&sig=hunter2%3D",
         "abfs://a.dfs.core.windows.net/shop?sv=2022-11-02&sp=rl&sig=***"),
        ("GET https://a.blob.core.windows.net/c?sig=hun/ter2+x=&sp=rl failed",
         "GET https://a.blob.core.windows.net/c?sig=***&sp=rl failed"),
        ("s3://b/x?access_key=AKIA&secret_key=hunter2&region=eu", "s3://b/x?access_key=***&secret_key=***&region=eu"),
        ("az://c/x?account_key=hun/ter2==&sas_token=hunter2", "az://c/x?account_key=***&sas_token=***"),
        ("AccountName=a;AccountKey=hunter2==", "AccountName=a;AccountKey=***"),
        ("https://b/x?X-Amz-Credential=AKIA%2Feu&X-Amz-Expires=60&X-Amz-Security-Token=hunter2&X-Amz-Signature=5e1f",
         "https://b/x?X-Amz-Credential=***&X-Amz-Expires=60&X-Amz-Security-Token=***&X-Amz-Signature=***"),
        ("https://b/x?AWSAccessKeyId=AKIA&Signature=hun/ter2%3D&Expires=60",
         "https://b/x?AWSAccessKeyId=***&Signature=***&Expires=60"),
        ("s3://b/x?region=eu&scheme=http&key=title&design=a&sigma=2", "s3://b/x?region=eu&scheme=http&key=title&design=a&sigma=2"),
    ],
)  # fmt: skip
def test_what_is_shown_of_an_address(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(UserError(text)) == shown


@pytest.mark.timeout(20)  # a time that grows with the square of the length is minutes here
@pytest.mark.parametrize("text", ["v" * 200_000, "a://x:" * 30_000, "http://" * 30_000, "token." * 30_000])
def test_a_long_text_is_looked_through_once(text: str) -> None:
    assert redact(f"{text} @ =") == f"{text} @ ="
