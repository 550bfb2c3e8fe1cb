"""What a process needs to know of a run that others have begun: its settings, and where its weights came from."""

from __future__ import annotations

from typing import TypeVar

from vlm_core.config import Config, ExtensionConfig, PretrainingConfig, WeightsSettings
from vlm_core.errors import UserError
from vlm_core.files.addresses import is_address, shown_address

C = TypeVar("C", bound=WeightsSettings)
R = TypeVar("R", Config, PretrainingConfig)
S = TypeVar("S", Config, ExtensionConfig, PretrainingConfig)


def resumed_config(given: R) -> R:
    """Return the settings of the run that `given` resumes; its weights come from where they came from then.

    Raises UserError for a run that cannot be resumed.
    """
    params, extends = _logged(run_id := given.resume)
    if not params:
        raise UserError(
            f"resume={run_id}: that run was stopped before its settings were logged: repeat its command instead."
        )
    if extends:
        raise UserError(
            f"resume={run_id}: that run learns more from another: python -m experiments.extend --resume {run_id}."
        )
    return as_begun(_with_addresses(type(given).from_params(params), given), run_id)


def resumed_extension(given: ExtensionConfig) -> ExtensionConfig:
    """Return the settings of the extension that `given` resumes.

    Raises UserError for a run that is none, or has ended.
    """
    params, extends = _logged(run_id := given.resume)
    if not extends:
        raise UserError(
            f"resume={run_id}: that run is no extension, or was stopped before its settings were logged: repeat its "
            "command instead."
        )
    return _with_addresses(ExtensionConfig.from_params(params), given).model_copy(update={"resume": run_id})


def _logged(run_id: str) -> tuple[dict[str, str], bool]:
    """Return the params of an unfinished run, and whether it extends another. Raises UserError for any other run."""
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.tags import EXTENDS

    reader = RunReader()
    reader.check_resumable(run_id)
    return reader.params(run_id), EXTENDS in reader.tags(run_id)


def _with_addresses(stored: S, given: S) -> S:
    """Return stored settings with the addresses as they are given again: those stored have no passwords."""
    again = {
        name: text
        for name, text in given
        if isinstance(text, str) and is_address(text) and shown_address(text) == shown_address(getattr(stored, name))
    }
    return stored.model_copy(update=again)


def as_begun(config: C, run_id: str) -> C:
    """Return the settings for a process that takes part in a run, whose weights come from where they came from then."""
    from vlm_core.tracking.reader import RunReader

    source = RunReader().tags(run_id).get("weights_source", "")
    kinds = {"": config.weights, "shipped": "tiny", "tiny-random": "tiny-random"}
    return config.model_copy(update={"resume": run_id, "weights": kinds.get(source.split(":")[0], "pretrained")})


def logged_commit(run_id: str) -> str:
    """Return the commit of the hub's checkpoint that a run started from; "" without one, and for a new run ("")."""
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.tags import COMMIT

    return RunReader().tags(run_id).get(COMMIT, "") if run_id else ""
