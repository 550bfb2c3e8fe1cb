"""What a process needs to know of a run that others have begun: its settings, and where its weights came from."""

from __future__ import annotations

from typing import TypeVar

from vlm_core.config import WeightsSettings
from vlm_core.errors import UserError

C = TypeVar("C", bound=WeightsSettings)


def resumed_config(run_id: str, kind: type[C]) -> C:
    """Return the settings of a run that is resumed; its weights come from where they came from then.

    Raises UserError for a run that cannot be resumed.
    """
    from vlm_core.tracking.reader import RunReader
    from vlm_core.tracking.tags import EXTENDS

    reader = RunReader()
    reader.check_resumable(run_id)
    params = reader.params(run_id)
    if not params:
        raise UserError(
            f"resume={run_id}: that run was stopped before its settings were logged: repeat its command instead."
        )
    run_tags = reader.tags(run_id)
    if EXTENDS in run_tags:
        raise UserError(
            f"resume={run_id}: that run learns more from another: python -m experiments.extend --resume {run_id}."
        )
    return as_begun(kind.from_params(params), run_id)


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
