"""The recipes of CONTRIBUTING.md, performed word for word in a copy of the project."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from daedalus.paths import CHECKOUT

TEXT = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w+)(?: (\S+)#([\w-]+)(?: below ([\w-]+))?)?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
RECIPES = ("A bidder", "A format", "A lever", "A reward", "A designer")


def blocks(heading):
    """The blocks of a section: language, notebook, cell, the cell above a new one, and the text."""
    section = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL)
    return BLOCK.findall(section[1])


def change(path, name, diff):
    """Apply a diff to one cell of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cell, = (cell for cell in notebook["cells"] if cell["id"] == name)
    lines = diff.splitlines(keepends=True)
    old = "".join(line[1:] for line in lines if line[0] in " -").rstrip("\n")
    new = "".join(line[1:] for line in lines if line[0] in " +").rstrip("\n")
    source = "".join(cell["source"])
    assert source.count(old) == 1, f"{path.name}, cell {name}, has no such place, or several:\n{old}"
    cell["source"] = source.replace(old, new).splitlines(keepends=True)
    path.write_text(json.dumps(notebook), encoding="utf-8")


def insert(path, name, above, source):
    """Put a new code cell below another."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    ids = [cell["id"] for cell in notebook["cells"]]
    cell = {"cell_type": "code", "id": name, "metadata": {}, "outputs": [], "execution_count": None,
            "source": source.splitlines(keepends=True)}
    notebook["cells"].insert(ids.index(above) + 1, cell)
    path.write_text(json.dumps(notebook), encoding="utf-8")


@pytest.fixture
def copy(tmp_path):
    """A copy of the project, without the language model and what was built."""
    for folder in ("daedalus", "nbs", "data"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "designer"))
    for name in ("pyproject.toml", "settings.ini", "setup.py"):
        shutil.copy(CHECKOUT / name, tmp_path)
    return tmp_path


def run(copy, *command):
    """Run a command in the copy, whose package comes first, its engine interpreted; returns what it prints."""
    places = {"PYTHONPATH": str(copy), "NUMBA_DISABLE_JIT": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=copy, env={**os.environ, **places}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("heading", RECIPES)
def test_a_recipe_works(heading, copy):
    *steps, (language, notebook, _, _, proof) = blocks(heading)
    assert language == "python" and not notebook and "assert" in proof, "a recipe ends with what shows that it works"
    before = {path: path.read_bytes() for path in (copy / "daedalus").rglob("*.py")}
    for language, notebook, name, above, text in steps:
        if language == "diff":
            change(copy / notebook, name, text)
        else:
            insert(copy / notebook, name, above, text)
    run(copy, str(Path(sys.executable).parent / "nbdev-export"))
    changed = {path.relative_to(copy / "daedalus").as_posix() for path in before if path.read_bytes() != before[path]}
    modules = {re.search(r"default_exp ([\w.]+)", (copy / notebook).read_text())[1] for _, notebook, *_ in steps}
    assert changed - {"_modidx.py"} == {f"{module.replace('.', '/')}.py" for module in modules}
    told = run(copy, sys.executable, "-c", f"import daedalus\nprint(daedalus.__file__)\n{proof}").splitlines()
    assert told[0] == str(copy / "daedalus" / "__init__.py") and len(told) > 1


@pytest.mark.parametrize("heading", [heading for heading in RECIPES if len(blocks(heading)) > 1])
def test_without_its_steps_a_recipe_shows_nothing(heading, copy):
    proof = blocks(heading)[-1][-1]
    with pytest.raises(AssertionError):
        run(copy, sys.executable, "-c", proof)


def test_the_recipe_of_a_figure_draws_it():
    (language, *_, proof), = blocks("A figure")
    assert language == "python"
    subprocess.run([sys.executable, "-c", proof], cwd=CHECKOUT, env=os.environ | {"MPLBACKEND": "Agg"}, check=True)


def test_every_path_and_target_of_the_text_exists():
    for path in re.findall(r"`((?:nbs|data|tests)/[\w./]+)`", TEXT):
        assert (CHECKOUT / path).exists(), path
    targets = re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE)
    assert set(re.findall(r"\bmake (test|export|figures|reproduce|train|serve)\b", TEXT)) <= set(targets)
