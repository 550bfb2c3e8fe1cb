"""One model of several label levels from training to every use of it."""

import base64

import pandas as pd
import pytest

from dashboard.pages.run_tables import levels_card
from dashboard.upload_predictions import _prediction
from experiments.tables import evaluation_rows
from tests.messages import collected_messages
from vlm_core.catalogue.sample import draw_picture, plan_rows
from vlm_core.config import Config
from vlm_core.errors import UserError
from vlm_core.inference import predict_records, record_columns
from vlm_core.models.saved import load_categoriser
from vlm_core.pixels.picture_store import decode_picture, fit_picture
from vlm_core.tracking.reader import RunReader
from vlm_core.tracking.registry import resolve
from vlm_core.workflows.evaluate import run_evaluation
from vlm_core.workflows.export import run_export
from vlm_core.workflows.extension_data import open_old_run
from vlm_core.workflows.predict import write_predictions
from vlm_core.workflows.train import run_training

SETTINGS = {
    "preset": "demo", "model": "clip", "label": "masterCategory,articleType", "epochs": 20, "batch_size": 16,
    "min_products": 12, "threads": 1, "resamples": 100, "balance": "logit-adjusted",
}  # fmt: skip
ABOVE = ["category_masterCategory", "confidence_masterCategory"]


@pytest.mark.slow
def test_a_run_of_two_levels_is_evaluated_predicted_served_shown_and_refused_where_one_label_is_needed(shop, stocked):
    with collected_messages() as messages:
        outcome = run_training(Config.build({**SETTINGS, "data": str(shop)}), stocked)
    assert "Label masterCategory: " in "\n".join(messages)
    reader, run_id = RunReader(), outcome.run_id
    tags, metrics = reader.tags(run_id), reader.metrics(run_id)
    assert (tags["label"], tags["labels"]) == ("articleType", "masterCategory,articleType")
    assert metrics["articleType_test_macro_f1"] == metrics["test_macro_f1"]
    assert metrics["test_inconsistent"] == 0 <= metrics["test_inconsistent_without_rule"]
    assert metrics["masterCategory_test_accuracy"] > 0.6
    score = reader.evaluation(run_id).levels
    assert score == outcome.evaluation.levels and score.levels[0].label == "masterCategory"
    shown = {row[:2] for row in evaluation_rows(outcome.evaluation)}
    assert ("accuracy, masterCategory", f"{score.levels[0].accuracy.value:.4f}") in shown
    assert "masterCategory" in str(levels_card(outcome.evaluation)[0])
    assert "## Label levels" in reader.text(run_id, "model/README.md")

    model = load_categoriser(resolve(run_id))
    picture = draw_picture(plan_rows(20, seed=3)[0], seed=3)
    (record,) = predict_records(model, [lambda: picture])
    assert set(ABOVE) < set(record) <= set(record_columns(model))
    pair = model.hierarchy.categories[0].index(record[ABOVE[0]]), model.categories.index(record["category"])
    assert pair in model.hierarchy.pairs[0]
    written = stocked / "predictions.parquet"
    write_predictions(written, ["id", *record_columns(model)], [[{"id": "1", **record}]])
    assert pd.read_parquet(written)[ABOVE[0]].tolist() == [record[ABOVE[0]]]
    prediction = _prediction(model, fit_picture(decode_picture(picture), model.canvas), "")
    assert prediction["levels"] == [["masterCategory", record[ABOVE[0]], round(record[ABOVE[1]], 6)]]

    import mlflow

    served = mlflow.pyfunc.load_model(f"runs:/{run_id}/model")
    names = served.metadata.signature.outputs.input_names()
    answer = served.predict(pd.DataFrame({"picture": [base64.b64encode(picture).decode()]}))
    assert set(ABOVE) < set(names) and list(answer) == names
    assert answer[ABOVE[0]].tolist() == [record[ABOVE[0]]]

    with pytest.raises(UserError, match="predicts several labels .masterCategory, articleType., and an export holds"):
        run_export(run_id, ["fp32"], 2, 1, stocked)
    with pytest.raises(UserError, match="predicts several labels"):
        open_old_run(run_id)
    other = {"data": str(shop), "label": "articleType", "resamples": 100, "threads": 1}
    _, evaluation = run_evaluation(run_id, Config.build(other), stocked)
    assert [level.label for level in evaluation.levels.levels] == ["masterCategory", "articleType"]


def test_a_level_without_a_column_is_named(shop, stocked):
    with pytest.raises(UserError, match="label=masterCategry .* masterCategory"):
        run_training(Config.build({**SETTINGS, "data": str(shop), "label": "masterCategry,articleType"}), stocked)
