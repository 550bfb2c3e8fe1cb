"""Which products a run was trained, selected and tested on, as MLflow datasets and as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import TypeAdapter

from vlm_core.evaluation.spreadsheets import spreadsheet_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from vlm_core.catalogue.catalogue import Catalogue
    from vlm_core.catalogue.splitting import Split


@dataclass(frozen=True)
class SplitPart:
    """One part of a split, as a run stores it; runs of earlier code hold the protocol's former name."""

    catalogue: str
    fingerprint: str  # of the catalogue
    split: str  # its fingerprint
    protocol: str
    label: str
    categories: tuple[str, ...]
    seed: int
    products: tuple[str, ...]  # ids, repeats included
    pictures: tuple[str, ...] = ()  # digests of their pictures; none in runs of earlier versions


SPLIT_PART: Final = TypeAdapter(SplitPart)


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
    """Write a `SplitPart` as `<part>.json` for each part."""
    ids, pictures = catalogue.products["product_id"], catalogue.products["picture_digest"]
    for name, rows in split_rows(split).items():
        part = SplitPart(
            catalogue.name,
            catalogue.fingerprint,
            split.fingerprint,
            split.protocol,
            split.label,
            split.categories,
            split.seed,
            tuple(str(value) for value in ids.iloc[rows]),
            tuple(str(value) for value in pictures.iloc[rows]),
        )
        (folder / f"{name}.json").write_bytes(SPLIT_PART.dump_json(part) + b"\n")


def write_subsets(catalogue: Catalogue, split: Split, subsets: Mapping[str, NDArray[np.bool_]], folder: Path) -> None:
    """Write `test_products.csv`: the id of each test product, and 1 where it is in a subset (n,), else 0."""
    import pandas as pd

    ids = catalogue.products["product_id"].iloc[split.test].map(spreadsheet_text).to_numpy()
    table = pd.DataFrame({"id": ids, **{name: rows.astype(int) for name, rows in subsets.items()}})
    table.to_csv(folder / "test_products.csv", index=False, errors="backslashreplace")
