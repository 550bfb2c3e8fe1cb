"""A drop of several files: in their order, and none lost over another."""

from dashboard.dropzone import in_drop_order


def _entry(name):
    return {"name": name, "token": f"token of {name}"}


def test_files_come_in_the_order_of_the_drop_with_the_refused_ones_in_their_places():
    drop = {"names": ["b", "large", "a", "c"], "large": ["large"]}
    entries = in_drop_order([_entry("c"), _entry("a"), _entry("b")], drop)
    assert [entry["name"] for entry in entries] == drop["names"]
    assert "larger than 10 MB" in entries[1]["error"] and entries[0]["token"] == "token of b"


def test_names_that_repeat_or_are_not_known_lose_nothing():
    entries = [_entry("a"), _entry("x"), _entry("a")]
    assert sorted(each["name"] for each in in_drop_order(entries, {"names": ["a", "a"], "large": []})) == [
        "a",
        "a",
        "x",
    ]
    assert in_drop_order(entries, None) == entries
