"""The GPU benchmark's tables, from results made by hand."""

from dataclasses import asdict, replace

from vlm_core.benchmark.device_agreement import AgreementResult
from vlm_core.benchmark.device_steps import StepResult
from vlm_core.benchmark.device_tables import agreement_table, all_tables, faults, steps_table

STEP = StepResult(
    "CLIP ViT-B/32", 224, "full", "bf16", compiled=True, images_per_second=12345.6, tflops=321.0, share_of_peak=0.4,
    share_of_own_peak=0.4, peak_gib=3.21, loss_error=0.00123, gradient_error=0.02, within_tolerance=True,
)  # fmt: skip
CHECK = AgreementResult("git", "resume", 0.02, {"losses": 0.0001}, 1.0, 2.5)


def test_a_step_has_its_speed_and_its_distance():
    row = (
        "| CLIP ViT-B/32 | 224 | full | bf16, compiled | 12,346 | 321 | 40.0% | 40.0% | 3.2 | 1.2e-03 | 2.0e-02 | yes |"
    )
    assert steps_table([asdict(STEP)]).splitlines()[2:] == [row]
    failed = StepResult("GIT base", 224, "full", "fp32", compiled=False, error="OutOfMemoryError: too much")
    assert "| GIT base | 224 | full | fp32 | OutOfMemoryError: too much |" in steps_table([asdict(failed)])


def test_a_check_has_its_differences():
    check = {**asdict(CHECK), "agrees": CHECK.agrees}
    assert agreement_table([check]).splitlines()[2:] == ["| git | resume | losses 1.0e-04 | 0.02 | yes | 1.0 | 2.5 |"]


def test_faults_are_what_failed_or_is_too_far():
    steps = [asdict(each) for each in (STEP, replace(STEP, within_tolerance=False, compiled=False))]
    checks = [{**asdict(each), "agrees": each.agrees} for each in (CHECK, replace(CHECK, error="RuntimeError: no"))]
    assert faults({"steps": steps, "agreement": checks}) == "git resume, CLIP ViT-B/32 full bf16"
    assert faults({"steps": steps[:1], "agreement": checks[:1]}) == ""


def test_the_machine_stands_first():
    machine = {"device": "A Card", "memory_gib": 80.0, "cpu": "a processor", "cores": "16", "torch": "2.14"}
    results = {
        "machine": machine,
        "peaks": {"bf16": {"median": 790.0, "lower": 780.0, "upper": 795.0, "count": 9}},
        "batch_size": 64,
        "seconds": 300,
        "steps": [],
        "agreement": [],
    }
    text = all_tables(results)
    assert text.startswith("Machine: A Card (80 GiB), a processor, 16 cores, PyTorch 2.14. Batch size 64.")
    assert "TFLOP/s: 790 in bf16 (780 to 795). 300 s in all." in text and "###" not in text
