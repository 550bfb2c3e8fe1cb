from vlm_core.study import report_contents as contents


def test_a_row_leads_to_its_runs_and_reads_as_text() -> None:
    row = contents.linked_row("clip probe", ("run-a", "run-b"), "0.81", "12")
    assert row[0] == contents.RunLink("clip probe", ("run-a", "run-b"))
    assert contents.cell_texts(row) == ("clip probe", "0.81", "12")
    assert contents.cell_texts(()) == ()
