"""deploy/ and its page: what they start exists, images are pinned, and no secret or registry's host is named."""

from __future__ import annotations

import configparser
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from vlm_core.config import Settings
from vlm_core.engine import cluster

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "deploy" / "compose.yaml").read_text()
COMPOSE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
PAGES = {name: (ROOT / "docs" / name).read_text() for name in ("operations.md", "scaling.md")}


def _shell_lines(page: str) -> Iterator[list[str]]:
    """The commands of a page's blocks, with lines that a backslash continues."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        if language:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            if re.search(r"\b(mlflow|ray|python -m) ", line):
                yield shlex.split(line, comments=True)


def _program(words: list[str]) -> list[str]:
    """What a line starts, without what Docker or a shell does first."""
    if words[:2] == ["docker", "compose"]:
        verb = next((number for number, word in enumerate(words) if word in ("exec", "run")), len(words))
        rest = [word for word in words[verb + 1 :] if word != "--rm"]
        words = rest[1:] if rest and rest[0] in SERVICES else []
    names = [word in ("mlflow", "ray", "python") for word in words]
    return words[names.index(True) :] if True in names else []


COMMANDS = [
    *(service["command"] for service in SERVICES.values() if isinstance(service.get("command"), list)),
    *(program for page in PAGES.values() for line in _shell_lines(page) if (program := _program(line))),
]


def test_every_service_is_one_of_a_pinned_image_of_no_named_registry() -> None:
    assert {*SERVICES} >= {"database", "objects", "mlflow", "dashboard", "head", "worker"}
    base = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    for image in [service["image"] for service in SERVICES.values()] + base:
        name, tag = image.split(":")
        assert re.fullmatch(r"[a-z0-9/-]+", name) and re.fullmatch(r"\d+\.\d+(\.\d+)?(-slim)?", tag)


def test_what_services_refer_to_is_declared() -> None:
    for service in SERVICES.values():
        assert {*service.get("depends_on", ())} <= {*SERVICES}
        assert {each["source"] for each in service.get("configs", ())} <= {*COMPOSE["configs"]}
        assert {each.split(":")[0] for each in service.get("volumes", ())} <= {*COMPOSE["volumes"]}
        for address in service.get("ports", ()):
            assert address.startswith("127.0.0.1:")


def test_every_secret_comes_from_a_variable_that_the_page_makes() -> None:
    made = re.search(r"for name in ([A-Z0-9_ ]+);", PAGES["operations.md"])
    assert made and {*re.findall(r"\$\{(\w+):\?\}", TEXT)} == {*made[1].split()}
    given = {name: text for service in SERVICES.values() for name, text in service.get("environment", {}).items()}
    secret = re.compile(r"PASSWORD|SECRET|TOKEN")
    assert [name for name, text in given.items() if secret.search(name) and not text.startswith("${")] == []
    assert "/deploy/.env\n" in (ROOT / ".gitignore").read_text()


def test_nodes_read_the_object_store_and_commands_know_where_runs_are() -> None:
    needed = {"MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert needed <= {*SERVICES["head"]["environment"]} & {*SERVICES["worker"]["environment"]}
    used = re.findall(r"docker compose exec (\w+) (?:mlflow (?:gc|runs)|python -m)", PAGES["operations.md"])
    assert used and all("MLFLOW_TRACKING_URI" in SERVICES[name]["environment"] for name in used)


def test_the_page_has_the_settings_of_the_login_that_the_services_have() -> None:
    assert COMPOSE["configs"]["auth"]["content"] in PAGES["operations.md"]


def test_the_variables_that_the_page_says_travel_do() -> None:
    told = re.search(r"names begin with ([^,]+, .*?), and no other credentials", PAGES["scaling.md"])
    assert told
    begins = {*re.findall(r"`(\w+)`", told[1])}
    alternatives = re.match(r"\(([\w|]+)\)", cluster._HANDED_ON.pattern)
    assert alternatives and begins == {*alternatives[1].split("|")} - {"STORE_WAIT", "OMP_WAIT", "GOMP"}


def test_the_manifest_of_kubernetes_is_yaml_of_the_locked_ray() -> None:
    block = re.search(r"^```yaml\n(.*?)^```", PAGES["scaling.md"], re.MULTILINE | re.DOTALL)
    assert block
    volume, nodes = yaml.safe_load_all(block[1])
    pod = nodes["spec"]["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
    assert f"--uid {pod['securityContext']['runAsUser']} " in DOCKERFILE
    assert f"ray=={nodes['spec']['rayVersion']}" in (ROOT / "requirements.lock").read_text().splitlines()


def test_the_image_has_what_it_copies_and_installs() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for line in re.findall(r"^COPY (.*) \S+$", DOCKERFILE, re.MULTILINE):
        for name in line.split():
            assert (ROOT / name).exists() and f"!{name}" in ignored
    assert "'.[all]'" in DOCKERFILE


def _package(name: str) -> Path:
    return Path(str(find_spec(name).origin)).parent  # type: ignore[union-attr]


@pytest.mark.slow
def test_the_settings_of_mlflow_are_known_to_it() -> None:
    package = _package("mlflow")
    known = (package / "environment_variables.py").read_text()
    known += "".join(path.read_text() for path in (package / "server" / "auth").glob("*.py"))
    names = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert [name for name in sorted(names) if name.startswith("MLFLOW_") and name not in known] == []
    own, theirs = configparser.ConfigParser(), configparser.ConfigParser()
    own.read_string(COMPOSE["configs"]["auth"]["content"])
    theirs.read(package / "server" / "auth" / "basic_auth.ini")
    assert {*own["mlflow"]} <= {*theirs["mlflow"]}


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=lambda words: " ".join(words)[:60])
def test_a_command_and_its_flags_exist(words: list[str]) -> None:
    flags = [word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word) and word != "-m"]
    if words[0] == "python" and words[2].split(".")[0] in ("experiments", "dashboard", "tests"):
        spec = find_spec(words[2] if words[2] != "dashboard" else "dashboard.__main__")
        assert spec and spec.origin
        own = Path(spec.origin).read_text()
        settings = {f"--{name}" for kind in _kinds(Settings) for name in kind.model_fields}
        assert [flag for flag in flags if flag not in settings and f'"{flag}"' not in own] == []
        return
    if words[:3] == ["python", "-m", "mlflow.server.auth"]:  # its package asks for Flask-WTF, which the image has
        sources = "".join(path.read_text() for path in _package("mlflow").glob("server/auth/**/*.py"))
        assert [flag for flag in flags if f'"{flag}"' not in sources] == [] != flags
        return
    command, rest = _of_click(words)
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    assert {*flags} <= known


def _kinds(kind: type[Settings]) -> Iterator[type[Settings]]:
    """A kind of settings, and all that are made of it."""
    yield kind
    for other in kind.__subclasses__():
        yield from _kinds(other)


def _of_click(words: list[str]) -> tuple[Any, list[str]]:
    """The program of another library, as its library defines it, and the words behind its name."""
    if words[0] == "ray":
        from ray.scripts.scripts import cli

        return cli, words[1:]
    assert words[0] == "mlflow"
    from mlflow.cli import cli

    return cli, words[1:]
