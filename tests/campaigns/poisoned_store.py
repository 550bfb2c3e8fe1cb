"""A store whose runs hold markup, scripts, templates and formulas wherever they can hold a text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.stores import ROOT

FOREIGN: Final = "evil.example"
TEXTS: Final = (  # which nothing may run, load or evaluate
    "<script>window.owned=1</script>",
    "<img src=x onerror=window.owned=1>",
    '"><svg onload=window.owned=1>',
    "</script><script>window.owned=1</script>",
    "[click](javascript:window.owned=1)",
    f"![picture](http://{FOREIGN}/x.png)",
    f"<link rel=stylesheet href=http://{FOREIGN}/x.css>",
    "<style>*{display:none}</style>",
    "javascript:window.owned=1",
    "{{constructor.constructor('window.owned=1')()}}",
    "%(owned)s ${owned} {0.__class__}",
    f'=HYPERLINK("http://{FOREIGN}","click")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1,1)",
    "\u202egnp.exe",
)


def poisoned(folder: Path) -> list[str]:
    """Fill a new store of the folder by a process of its own; return the ids of its runs."""
    program = "import json; from tests.campaigns.poisoned_store import poison; print(json.dumps(poison()))"
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT)}
    surroundings.pop("MLFLOW_TRACKING_URI", None)
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=surroundings, check=True, stdout=subprocess.PIPE, text=True)
    run_ids: list[str] = json.loads(done.stdout.splitlines()[-1])
    return run_ids


def poison() -> list[str]:
    """Write tested runs whose names, settings, tags, categories and groups are hostile; return their ids."""
    import numpy as np
    import pandas as pd

    from vlm_core.evaluation.evaluation import evaluate
    from vlm_core.evaluation.predictions import Predictions
    from vlm_core.tracking.store import connect
    from vlm_core.tracking.writer import RunWriter

    connect(to_write=True)
    generator, run_ids = np.random.default_rng(0), []
    labels = np.arange(60) % 3
    for number, text in enumerate(TEXTS):
        names = tuple(sorted((text, f"{text} 2", "Tops")))
        logs = np.log(generator.dirichlet(np.ones(3), 60)).astype(np.float32)
        predictions = Predictions(np.array([f"{text}{place}" for place in range(60)]), labels, logs, names)
        groups = pd.DataFrame({text: [text if place % 2 else "x" for place in range(60)]})
        with RunWriter(f"experiment {text}", text) as run:
            settings = ("data", "weights", "preset", "image_column", "label", "text_columns", "learning_rate", "extra")
            run.params({"model": ("clip", "blip", text)[number % 3], "mode": ("probe", text)[number % 2]})
            run.params(dict.fromkeys(settings, text))
            tags = (
                "fingerprint",
                "label",
                "catalogue",
                "protocol",
                "training_log",
                "weights_commit",
                "mlflow.note.content",
            )
            run.tags(
                {**dict.fromkeys(tags, text), "split": f"s{number % 2}", "leaking": ("false", "true", text)[number % 3]}
            )
            run.metrics({"train_seconds": 5.0, "seconds_per_image": 0.01, "test_macro_f1_" + "x" * 50: 0.5})
            run.evaluation(evaluate(predictions, groups, np.full(3, 1 / 3), resamples=50, seed=0))
        run_ids.append(str(run.run_id))
    for kind in ("study", "search"):
        with RunWriter("experiment", TEXTS[0]) as leader:
            leader.tags({"kind": kind, "study": TEXTS[1], "search_name": TEXTS[1]})
            leader.params({"model": TEXTS[0], "search": TEXTS[0]})
            with RunWriter("experiment", TEXTS[0], parent=leader.run_id) as trial:
                trial.tags({"kind": "trial"})
                trial.params({"learning_rate": TEXTS[0], TEXTS[0][1:7]: TEXTS[1]})
                trial.metrics({"best_validation_macro_f1": 0.5})
    with suppress(RuntimeError), RunWriter("experiment", TEXTS[2]) as failed:
        raise RuntimeError(TEXTS[0])
    run_ids.append(str(failed.run_id))
    return run_ids
