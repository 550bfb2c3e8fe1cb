"""Which products a run learnt from, was selected on and was tested on, as MLflow's datasets and as files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.splitting import Split


def parts_of(split: Split) -> dict[str, NDArray[np.int64]]:
    """Catalogue rows (n,) of each part, under MLflow's names; training holds a row as often as it is drawn."""
    return {"training": split.train, "validation": split.validation, "test": split.test}


def dataset_inputs(catalogue: Catalogue, split: Split) -> list[Any]:
    """One `mlflow.entities.DatasetInput` a part; its digest tells part, split and catalogue apart."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource(
        {"catalogue": catalogue.name, "fingerprint": catalogue.fingerprint, "split": split.fingerprint}
    )
    inputs = []
    for part, rows in parts_of(split).items():
        digest = hashlib.blake2b(
            json.dumps([catalogue.fingerprint, split.fingerprint, part]).encode() + rows.tobytes(), digest_size=8
        ).hexdigest()
        profile = {"rows": len(rows), "products": len(np.unique(rows)), "protocol": split.protocol, "seed": split.seed}
        name = f"{catalogue.name} ({part})"
        dataset = Dataset(name, digest, "code", source.to_json(), profile=json.dumps(profile))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    return inputs


def write_split(catalogue: Catalogue, split: Split, folder: Path) -> None:
    """Nothing; `<part>.json` for each part holds its product ids, repeats included."""
    ids = catalogue.products["product_id"]
    for part, rows in parts_of(split).items():
        content = {
            "catalogue": catalogue.name,
            "fingerprint": catalogue.fingerprint,
            "split": split.fingerprint,
            "protocol": split.protocol,
            "label": split.label,
            "categories": list(split.categories),
            "seed": split.seed,
            "products": [str(value) for value in ids.iloc[rows]],
        }
        (folder / f"{part}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
