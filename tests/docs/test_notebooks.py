"""The notebooks run from their first cell to their last, and hold nothing of the machine that ran them."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[2] / "docs" / "notebooks").glob("*.ipynb"))


def code(notebook: Path) -> list[str]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["classifier", "language-model"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_can_be_read_and_carries_no_output(notebook):
    loaded = json.loads(notebook.read_text(encoding="utf-8"))
    assert (loaded["nbformat"], loaded["cells"][0]["cell_type"]) == (4, "markdown")
    for number, cell in enumerate(loaded["cells"]):
        assert cell.get("outputs", []) == []
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), f"{notebook.stem}, cell {number}", "exec")


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": notebook.stem}
    for number, cell in enumerate(code(notebook)):
        exec(compile(cell, f"{notebook.stem}, cell {number}", "exec"), names)
