"""Which products a run was trained, selected and tested on, as MLflow datasets and as files."""

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


def split_rows(split: Split) -> dict[str, NDArray[np.int64]]:
    """Return catalogue rows (n,) of each part, under MLflow's names; training repeats oversampled rows."""
    return {"training": split.train, "validation": split.validation, "test": split.test}


def dataset_inputs(catalogue: Catalogue, split: Split) -> list[Any]:
    """Return one `mlflow.entities.DatasetInput` per part, with a digest of part, split and catalogue."""
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = CodeDatasetSource(
        {"catalogue": catalogue.name, "fingerprint": catalogue.fingerprint, "split": split.fingerprint}
    )
    inputs = []
    for part, rows in split_rows(split).items():
        digest = hashlib.blake2b(
            json.dumps([catalogue.fingerprint, split.fingerprint, part]).encode() + rows.tobytes(), digest_size=8
        ).hexdigest()
        profile = {"rows": len(rows), "products": len(np.unique(rows)), "protocol": split.protocol, "seed": split.seed}
        name = f"{catalogue.name} ({part})"
        dataset = Dataset(name, digest, "code", source.to_json(), profile=json.dumps(profile))
        inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", part)]))
    return inputs


def write_split(catalogue: Catalogue, split: Split, folder: Path) -> None:
    """Write `<part>.json` with the product ids of each part, repeats included."""
    ids = catalogue.products["product_id"]
    for part, rows in split_rows(split).items():
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
