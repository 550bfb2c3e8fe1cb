"""A made-up study with every part that results can have."""

from __future__ import annotations

from pathlib import Path

from vlm_core.attention.faithfulness import ControlComparison, Faithfulness, MapCurves, RandomisationCheck
from vlm_core.attention.statistics import LayerStatistics
from vlm_core.evaluation.bootstrap import Estimate
from vlm_core.evaluation.decoding_scores import DecodingScore
from vlm_core.evaluation.gaps import Gap, ServedValue
from vlm_core.evaluation.label_audit import WithoutSuspects
from vlm_core.evaluation.leak import CategoryLeak, ProtocolScore
from vlm_core.evaluation.seed_comparison import SeedComparison
from vlm_core.study import results
from vlm_core.study.cost import Cost
from vlm_core.study.results_json import results_to_json
from vlm_core.tracking.writer import RunWriter

CATEGORIES = ("Accessories", "Apparel", "Free <i>Items</i>")
NOTHING = float("nan")


def about(value: float, width: float = 0.02) -> Estimate:
    return Estimate(value, value - width, value + width)


def make_results(run_id: str, cells: dict[str, str], done: int = 6) -> results.Results:
    """Return results with every part; `cells` are the runs by cell key."""
    labels = {"clip probe": 0.78, "blip probe": 0.74, "HOG + colour": 0.70, "mean-pool": 0.71, "attention-pool": 0.76}
    ids = tuple(cells.values())[:2]
    rows = tuple(_row(label, score, ids) for label, score in labels.items())
    main = ("clip probe", "blip probe")
    support = {"Apparel": 3900, "Accessories": 100}
    return results.Results(
        study="made",
        run_id=run_id,
        settings={"seeds": "2", "preset": "demo", "label": "masterCategory"},
        machine={"cpu": "x", "cores": "2"},
        catalogue="shop",
        categories=CATEGORIES,
        cells_planned=8,
        cells_finished=done,
        failed={"git/probe/classify/holdout/0": "RuntimeError: <script>alert(1)</script>"},
        thin={},
        scores=rows,
        held_out=tuple(
            results.HeldOutRow(label, ids, 4000, support, *map(about, (0.7, 0.9, 0.6, 0.8))) for label in main
        ),
        pairs=(
            _pair("families", *main),
            _pair("mechanisms", "attention-pool", "mean-pool"),
            _pair("held_out", *main),
        ),
        leak=tuple(_leak(label, ids) for label in main),
        robustness=tuple(_robust(label, ids) for label in main),
        calibration=tuple(_calibration(label, ids) for label in main),
        gaps=(results.GapRow(main[0], ids, (_gap(),)),),
        decoding=(results.DecodingRow("git writing", ids, {"free text": DecodingScore(9, 0.8, 0.7, 1.0, 0.0, None)}),),
        cost=tuple(
            results.CostRow(label, ids[0], Cost(1000, flops, seconds, 0.02, 90.0, 1, 12.0), 0.7, seconds < 0.02)
            for label, flops, seconds in (("clip probe", 10**9, 0.01), ("HOG + colour", None, 0.03))
        ),
        label_audit=results.LabelAuditResult(
            encoder="clip",
            audited=100,
            macro_f1=0.7,
            suspects=(results.Suspect("7", "Apparel", "Accessories", 0.01, "A <b>"),),
            without={"clip probe": WithoutSuspects(1, about(0.78), about(0.80))},
        ),
        faithfulness={"clip probe": _faithfulness()},
        layers={"clip probe": (_layer(),)},
        continual=(_continual("clip", "naive"), _continual("clip", "joint")),
    )


def write_study(folder: Path, *, finished: bool = True) -> str:
    """Write a study with three cells into the store of `folder`, and return the id of its run."""
    with RunWriter("shop", "study made", folder=folder) as study:
        study.tags({"kind": "study", "study": "made", "cells": "8"})
        cells = {}
        for key in ("clip/probe/classify/holdout/0", "clip/probe/classify/holdout/1", "blip/probe/classify/holdout/0"):
            with RunWriter("shop", key, folder=folder, parent=study.run_id) as cell:
                cell.params({"model": key.split("/")[0]})
                cell.tags({"fingerprint": "none"})
                cell.metrics({"test_macro_f1": 0.789})
            cells[key] = cell.run_id
        if finished:
            place = folder / "results.json"
            place.write_text(results_to_json(make_results(study.run_id, cells)))
            study.artifact(place, "study")
    return study.run_id


def _row(label: str, score: float, ids: tuple[str, ...]) -> results.ScoreRow:
    kind = "mechanism" if "pool" in label else "baseline" if "HOG" in label else "family"
    return results.ScoreRow(
        configuration=f"{label}/classify/holdout",
        label=label,
        model=label.split(" ")[0],
        kind=kind,
        protocol="holdout",
        seeds=(0, 1),
        run_ids=ids,
        test_products=600,
        headline_macro_f1=about(score),
        macro_f1=about(score),
        accuracy=about(0.8),
        worst_recall=Estimate(0.2, NOTHING, NOTHING),
        natural_macro_f1=about(0.7),
        per_category={name: about(0.7) for name in CATEGORIES},
        weights=10_000,
        weights_trained=645,
        train_seconds=12.0,
        learning_rates=(),
    )


def _pair(group: str, a: str, b: str) -> results.PairRow:
    test = SeedComparison(
        2, 1200, 900, 30, 20, 0.2, 0.15, 0.2, 0.15, about(0.04), 0.01, 0.01, Estimate(0.04, NOTHING, NOTHING), (0.04,),
        0.03, 0.02,
    )  # fmt: skip
    return results.PairRow(group, a, b, test, f"{a} beats {b} by 4.0 points of macro-F1.")


def _leak(label: str, ids: tuple[str, ...]) -> results.LeakRow:
    names = (*CATEGORIES, "all")
    scores = tuple(ProtocolScore(name, about(0.5), about(0.8), Estimate(0.3, NOTHING, NOTHING)) for name in names)
    return results.LeakRow(label, ids, scores, tuple(CategoryLeak(name, 9, 0.4, 0.9, NOTHING, 0.6) for name in names))


def _robust(label: str, ids: tuple[str, ...]) -> results.RobustnessRow:
    drops = {"blur": about(0.1), "noise": about(-0.01)}
    return results.RobustnessRow(label, ids, about(0.05), drops, dict.fromkeys(drops, (0.0, 0.1, 0.2)))


def _calibration(label: str, ids: tuple[str, ...]) -> results.CalibrationRow:
    curves = {"coverage": (0.5, 1.0), "risk": (0.1, 0.2), "unknown": 20}
    figures = [about(value) for value in (1.2, 0.1, 0.05, 0.6, 0.5, 0.1)]
    return results.CalibrationRow(label, ids, *figures, **curves, auroc_unknown=None, auroc_products=None)


def _gap() -> Gap:
    values = (ServedValue("Men", 90, about(0.9), 0.8, False), ServedValue("", 9, about(0.5), 0.4, True))
    return Gap("gender", values, "", "", Estimate(NOTHING, NOTHING, NOTHING), NOTHING, NOTHING, NOTHING)


def _faithfulness() -> Faithfulness:
    curves = tuple(
        MapCurves(name, (0.9, 0.2), (0.2, 0.9), about(0.5), about(0.6)) for name in ("raw", "gradient", "random")
    )
    compared = (
        ControlComparison("raw", "random", "deletion", about(0.1), 0.01, 0.02, "clip's raw map is better than <i>"),
    )
    return Faithfulness("clip", 64, "mean", (0.0, 1.0), curves, compared, (RandomisationCheck("raw", about(0.1)),))


def _continual(family: str, method: str) -> results.ContinualRow:
    scores = [about(value) for value in (0.8, 0.7, 0.2, -0.1)]
    nothing = Estimate(0.0, 0.0, 0.0)
    return results.ContinualRow(family, method, 4, 3, *scores, nothing, about(1.5), 12_000, ((0.9, 0.0), (0.5, 0.9)))


def _layer() -> LayerStatistics:
    return LayerStatistics("vision.block.1", "vision", 65, 3.2, 0.8, 2.5, 0.3, 0.1, None, 0.4, 0.2)
