"""Files: hashes that see every module, places to write, installed copies, and what ended runs leave behind."""

import ast
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from daedalus import jobs, reproduce, results

# Modules in sub-packages


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """A library in which `top` stands on `market.engine`, which stands on `market.deep.noise` and `base`."""
    folder = tmp_path / "daedalus"
    sources = {
        "base.py": "x = 1", "apart.py": "y = 1", "top.py": "from .market import play",
        "market/__init__.py": "from .engine import play", "market/engine.py": "from .deep import noise\nfrom ..base import x",
        "market/deep/noise.py": "from ... import base\nz = 1", "market/lonely.py": "import numpy"}
    for name, code in sources.items():
        results.write_text(folder / name, code)
    monkeypatch.setattr(results, "PACKAGE", folder)
    return folder


EVERY = ["apart", "base", "market", "market.deep.noise", "market.engine", "market.lonely", "top"]
ENGINE = ["base", "market", "market.deep.noise", "market.engine"]


@pytest.mark.parametrize(("code", "package", "modules"), [
    ("from daedalus.top import play", "daedalus", sorted([*ENGINE, "top"])),
    ("from daedalus.market.engine import play", "daedalus", ENGINE),
    ("import daedalus.market.engine as engine", "daedalus", ENGINE),
    ("from daedalus.market import lonely", "daedalus", sorted([*ENGINE, "market.lonely"])),
    ("from .deep import noise", "daedalus.market", ENGINE),
    ("from ...base import x", "daedalus.market.deep", ["base"]),
    ("from . import engine", "daedalus.market", ENGINE),
    ("from daedalus import simulate", "daedalus", EVERY),
    ("from .engine import play", "elsewhere", []),
    ("from . import helpers", "", []),
])
def test_imports_are_followed_into_sub_packages(nested, code, package, modules):
    assert results.modules_used(code, package) == modules


def test_an_edit_in_a_nested_module_changes_every_hash_that_stands_on_it(nested, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path)
    cell = dict(cell_type="code", id="defaults", metadata={"tags": ["parameters"]}, outputs=[], execution_count=None,
                source="from daedalus.top import play")
    path = results.write_text(tmp_path / "30_example.ipynb", json.dumps(dict(cells=[cell], metadata={}, nbformat=4,
                                                                            nbformat_minor=5)))

    def hashes():
        return {"library": results.library_hash(), "used": results.library_hash(results.modules_used("import daedalus.top")),
                "apart": results.library_hash(["apart"]), "notebook": reproduce.fingerprint(path, {}, "smoke"),
                "tree": reproduce.tree_hash()}

    before = hashes()
    results.write_text(nested / "market" / "deep" / "noise.py", "from ... import base\nz = 2")
    assert {name for name, value in hashes().items() if value != before[name]} == {"library", "used", "notebook", "tree"}
    assert reproduce._modules(path) == [nested / "base.py", nested / "market" / "__init__.py",
                                        nested / "market" / "deep" / "noise.py", nested / "market" / "engine.py",
                                        nested / "top.py"]


def test_the_hash_of_a_job_sees_nested_modules(tmp_path):
    """A kept job of code in a sub-package is not taken over after the code below it changed."""
    package = shutil.copytree(results.PACKAGE, tmp_path / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(results.data_dir())
    results.write_text(package / "rooms" / "__init__.py", "")
    results.write_text(package / "rooms" / "below.py", "x = 1")
    results.write_text(package / "rooms" / "work.py", "from .below import x\n\n\ndef work(n):\n    return n + x\n")
    ask = "from daedalus.jobs import Job, job_name\nfrom daedalus.rooms.work import work\nprint(job_name(Job(work, (1,))))"

    def name():
        return subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                              capture_output=True, text=True, check=True).stdout

    before = name()
    assert name() == before
    results.write_text(package / "rooms" / "below.py", "x = 2")
    assert name() != before


def test_a_job_outside_the_library_does_not_stand_on_it(tmp_path, monkeypatch):
    results.write_text(tmp_path / "mine" / "__init__.py", "")
    results.write_text(tmp_path / "mine" / "market.py", "x = 1")
    results.write_text(tmp_path / "mine" / "work.py", "from .market import x\n\n\ndef work():\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    from mine.work import work

    asked = []
    monkeypatch.setattr(jobs, "library_hash", lambda modules: asked.append(modules) or "")
    jobs.code_hash.__wrapped__(work)
    assert asked == [[]]


def test_the_hash_of_a_flat_library_is_what_it_was(monkeypatch, tmp_path):
    for name in ("base", "top"):
        results.write_text(tmp_path / f"{name}.py", f"name = {name!r}")
    for name in ("__init__", "_modidx"):
        results.write_text(tmp_path / f"{name}.py", "")
    monkeypatch.setattr(results, "PACKAGE", tmp_path)
    assert results.library_hash() == results.short_hash("base", "name = 'base'", "top", "name = 'top'")


def test_a_file_in_a_data_folder_s_folder_is_an_input(tmp_path, monkeypatch):
    deep = results.write_text(tmp_path / "tenders" / "one" / "bids.csv", "1")
    monkeypatch.setenv("DAEDALUS_DATA_DIR", str(tmp_path))
    cell = dict(cell_type="code", id="defaults", metadata={"tags": ["parameters"]}, source="folder = 'tenders'")
    path = results.write_text(tmp_path / "30.ipynb", json.dumps({"cells": [cell]}))
    assert deep in reproduce.inputs(path, "smoke")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the files that building needs, and a notebook that exports to a sub-package."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(results.CHECKOUT / name, folder)
    shutil.copytree(results.PACKAGE, folder / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(results.CHECKOUT / "data", folder / "data")
    sources = ["#| default_exp market2.engine", "#| export\nfrom daedalus.schema import DEFAULT_MECHANISM\nx = DEFAULT_MECHANISM"]
    cells = [dict(cell_type="code", id=f"cell-{at}", metadata={}, source=source, outputs=[], execution_count=None)
             for at, source in enumerate(sources)]
    results.write_text(folder / "nbs" / "50_engine.ipynb", json.dumps(
        dict(cells=cells, metadata=dict(kernelspec=dict(display_name="p", language="python", name="python3")), nbformat=4,
             nbformat_minor=5)))
    subprocess.run([Path(sys.executable).parent / "nbdev-export"], cwd=folder, check=True, capture_output=True)
    return folder


def test_a_notebook_exports_into_a_sub_package_and_imports_from_above_it(project):
    module = project / "daedalus" / "market2" / "engine.py"
    imports = [node for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom)]
    assert [(node.level, node.module) for node in imports] == [(2, "schema")]
    told = subprocess.run([sys.executable, "-c", "import daedalus.market2.engine as e; print(e.x.auction_type)"], text=True,
                          cwd=project, env=os.environ | {"PYTHONPATH": str(project)}, capture_output=True, check=True)
    assert told.stdout == "second_price\n"


@pytest.fixture(scope="module")
def wheel(project, tmp_path_factory):
    """A wheel of that copy."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, project]
    subprocess.run(build, check=True, capture_output=True, cwd=project)
    made, = folder.glob("*.whl")
    return made


def test_the_wheel_contains_nested_modules_and_the_data(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"daedalus/market2/engine.py", "daedalus/market2/__init__.py", "daedalus/schema.py"} <= names
    data = results.CHECKOUT / "data"
    assert {f"daedalus/data/{file.relative_to(data).as_posix()}" for file in data.rglob("*") if file.is_file()} <= names
