"""The check of notebooks can fail."""
from check_notebooks import differing, same, stale_cells


def test_numbers_may_differ_in_the_last_digits_only():
    assert same("loss 0.69314, [1, 2]", "loss 0.69315, [1, 2]")
    assert not same("loss 0.69", "loss 0.72") and not same("[1, 2]", "[1, 3]") and not same("yes 0.5", "no 0.5")
    assert same("-0.0", "1e-09") and not same("12e5", "13e5")


def test_a_cell_that_says_something_else_is_stale():
    def notebook(text, cid="lesson"): return dict(cells=[dict(cell_type="code", id=cid, outputs=[dict(output_type="execute_result", data={"text/plain": [text]})])])
    assert stale_cells(notebook("3"), notebook("4")) == ["lesson"] and stale_cells(notebook("3"), notebook("3")) == []
    assert stale_cells(notebook("3", "demo-train"), notebook("4", "demo-train")) == []


def test_package_differences_are_seen(tmp_path):
    for name, text in (("a", "x = 1\n"), ("b", "x = 2\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "m.py").write_text(text)
    (tmp_path / "b" / "new.py").write_text("")
    assert differing(tmp_path / "a", tmp_path / "b") == ["m.py", "new.py"]
