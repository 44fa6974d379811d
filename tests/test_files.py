"""Files: hashes that see every module, places to write, installed copies, and what ended runs leave behind."""

import ast
import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from shared import until
from typer.testing import CliRunner

from daedalus import jobs, paths, results
from daedalus.designers import search
from daedalus.pipeline import reproduce, verify
from daedalus.cli import app
from daedalus.schema import DEFAULT_MECHANISM

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
        paths.write_text(folder / name, code)
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


def test_an_edit_in_a_nested_module_changes_every_hash_that_stands_on_it(nested, tmp_path):
    cell = dict(cell_type="code", id="defaults", metadata={"tags": ["parameters"]}, outputs=[], execution_count=None,
                source="from daedalus.top import play")
    path = paths.write_text(tmp_path / "30_example.ipynb", json.dumps(dict(cells=[cell], metadata={}, nbformat=4,
                                                                            nbformat_minor=5)))

    def hashes():
        return {"library": results.library_hash(), "used": results.library_hash(results.modules_used("import daedalus.top")),
                "apart": results.library_hash(["apart"]), "notebook": reproduce.fingerprint(path, {}, "smoke"),
                "tree": reproduce.tree_hash(tmp_path)}

    before = hashes()
    paths.write_text(nested / "market" / "deep" / "noise.py", "from ... import base\nz = 2")
    assert {name for name, value in hashes().items() if value != before[name]} == {"library", "used", "notebook", "tree"}
    assert [results.module_files()[name] for name in results.modules_used("from daedalus.top import play")] == [
        nested / name for name in ("base.py", "market/__init__.py", "market/deep/noise.py", "market/engine.py", "top.py")]


def test_the_hash_of_a_job_sees_nested_modules(tmp_path):
    """A kept job of code in a sub-package is not taken over after the code below it changed."""
    package = shutil.copytree(paths.PACKAGE, tmp_path / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "data").symlink_to(paths.data_dir())
    paths.write_text(package / "rooms" / "__init__.py", "")
    paths.write_text(package / "rooms" / "below.py", "x = 1")
    paths.write_text(package / "rooms" / "work.py", "from .below import x\n\n\ndef work(n):\n    return n + x\n")
    ask = "from daedalus.jobs import Job, job_name\nfrom daedalus.rooms.work import work\nprint(job_name(Job(work, (1,))))"

    def name():
        return subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
                              capture_output=True, text=True, check=True).stdout

    before = name()
    assert name() == before
    paths.write_text(package / "rooms" / "below.py", "x = 2")
    assert name() != before


def test_a_job_outside_the_library_does_not_stand_on_it(tmp_path, monkeypatch):
    paths.write_text(tmp_path / "mine" / "__init__.py", "")
    paths.write_text(tmp_path / "mine" / "market.py", "x = 1")
    paths.write_text(tmp_path / "mine" / "work.py", "from .market import x\n\n\ndef work():\n    return x\n")
    monkeypatch.syspath_prepend(tmp_path)
    from mine.work import work

    asked = []
    monkeypatch.setattr(jobs, "library_hash", lambda modules: asked.append(modules) or "")
    jobs.code_hash.__wrapped__(work)
    assert asked == [[]]


def test_the_hash_of_a_flat_library_is_what_it_was(monkeypatch, tmp_path):
    for name in ("base", "top"):
        paths.write_text(tmp_path / f"{name}.py", f"name = {name!r}")
    for name in ("__init__", "_modidx"):
        paths.write_text(tmp_path / f"{name}.py", "")
    monkeypatch.setattr(results, "PACKAGE", tmp_path)
    assert results.library_hash() == results.short_hash("base", "name = 'base'", "top", "name = 'top'")


def test_a_file_in_a_data_folder_s_folder_is_an_input(tmp_path, monkeypatch):
    deep = paths.write_text(tmp_path / "tenders" / "one" / "bids.csv", "1")
    monkeypatch.setenv("DAEDALUS_DATA_DIR", str(tmp_path))
    cell = dict(cell_type="code", id="defaults", metadata={"tags": ["parameters"]}, source="#| reads: tenders/")
    path = paths.write_text(tmp_path / "30.ipynb", json.dumps({"cells": [cell]}))
    assert deep in reproduce.inputs(path, "smoke")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy of the project with the files that building needs, and a notebook that exports to a sub-package."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("setup.py", "settings.ini", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(paths.CHECKOUT / name, folder)
    shutil.copytree(paths.PACKAGE, folder / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(paths.CHECKOUT / "data", folder / "data")
    sources = ["#| default_exp market2.engine", "#| export\nfrom daedalus.schema import DEFAULT_MECHANISM\nx = DEFAULT_MECHANISM"]
    cells = [dict(cell_type="code", id=f"cell-{at}", metadata={}, source=source, outputs=[], execution_count=None)
             for at, source in enumerate(sources)]
    paths.write_text(folder / "nbs" / "50_engine.ipynb", json.dumps(
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
    data = paths.CHECKOUT / "data"
    assert {f"daedalus/data/{file.relative_to(data).as_posix()}" for file in data.rglob("*") if file.is_file()} <= names


# Committed files are replaced by name only


@pytest.fixture
def plain(monkeypatch):
    """No variable says where results go, or which notebook runs."""
    for name in ("DAEDALUS_RESULTS_DIR", "DAEDALUS_FIGURES_DIR", "DAEDALUS_NOTEBOOK"):
        monkeypatch.delenv(name, raising=False)


def committed_bytes():
    """The committed results and figures."""
    folders = [paths.data_dir(), paths.CHECKOUT / "paper"]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_results_and_figures_go_to_the_build_folder(plain):
    assert paths.results_dir() == paths.CHECKOUT / "build" / "results"
    assert paths.figures_dir() == paths.CHECKOUT / "build" / "figures"


def test_a_result_that_names_no_notebook_is_never_committed(plain, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path)
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path / "results"))
    with pytest.raises(ValueError, match="among the committed results, which only `daedalus reproduce --profile paper` replaces"):
        results.write_result("search", 1, {"seed": 0})
    assert not (tmp_path / "results").exists()
    monkeypatch.setenv("DAEDALUS_NOTEBOOK", str(reproduce.NOTEBOOKS / "22_search.ipynb"))
    assert results.write_result("search", 1, {"seed": 0}).exists()


def test_every_committed_result_says_which_notebook_made_it():
    for path in paths.committed_dir("results").glob("*.json"):
        assert json.loads(path.read_text())["provenance"]["notebook"], path.name


def test_what_an_earlier_experiment_left_is_not_taken_for_the_committed_result(plain, monkeypatch, tmp_path):
    committed = search.oracle()
    stale = {name: {"best_fixed": dict(DEFAULT_MECHANISM), "oracle": []} for name in ("stages", "open")}
    monkeypatch.setattr(paths, "build_dir", lambda: tmp_path)
    paths.write_text(tmp_path / "results" / "search.json", json.dumps({"value": stale}))
    assert search.oracle() == committed and search.best_fixed() != DEFAULT_MECHANISM
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path / "results"))
    assert search.oracle() == [] and search.best_fixed() == DEFAULT_MECHANISM


def test_what_a_process_has_written_it_reads(plain, monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "build_dir", lambda: tmp_path)
    results.write_result("speed", 7, {"seed": 0})
    assert results.read_result("speed") == 7


def fake_jobs(parts, workers, folder, what):
    """As if every search found the default mechanism."""
    found = [dict(DEFAULT_MECHANISM)] if what == "populations climbed" else dict(DEFAULT_MECHANISM)
    return [jobs.Done(found, 0.0, 0, False)] * len(parts)


def test_a_search_leaves_the_yardsticks_and_its_output_where_it_was_told(plain, monkeypatch, tmp_path):
    before = committed_bytes()
    monkeypatch.setattr("daedalus.designers.search.run_jobs", fake_jobs)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["search", "--budget", "1"])
    assert done.exit_code == 0 and done.stdout.endswith("written: build/results/search.json\n"), done.output
    found = json.loads((tmp_path / "build" / "results" / "search.json").read_text())
    assert found["value"]["open"]["best_fixed"] == dict(DEFAULT_MECHANISM)
    assert found["provenance"]["parameters"] == {"budget": 1, "fixed_budget": 240, "final": 240, "seed": 0}
    assert CliRunner().invoke(app, ["search", "--budget", "1", "--output", "mine.json"]).exit_code == 0
    assert json.loads((tmp_path / "mine.json").read_text())["value"] == found["value"]
    assert committed_bytes() == before


def test_arrays_are_written_whole_or_not_at_all_and_always_as_the_same_bytes(tmp_path):
    arrays = {"numbers": np.arange(1000.0), "texts": ["a", "bc"], "one": 3}
    first, second = (paths.write_arrays(tmp_path / name / "made.npz", arrays) for name in "ab")
    assert first.read_bytes() == second.read_bytes() and len(first.read_bytes()) > 8000   # nothing depends on a compressor
    with np.load(first) as kept: assert kept["numbers"].sum() == 499500 and list(kept["texts"]) == ["a", "bc"]
    with pytest.raises(ValueError): paths.write_arrays(first, arrays | {"ragged": [[1], [2, 3]]})
    assert first.read_bytes() == second.read_bytes() and [each.name for each in first.parent.iterdir()] == ["made.npz"]


@pytest.mark.parametrize(("command", "option"), [("search", "--output"), ("inference", "--output"), ("ablate", "--record"),
                                                 ("train", "--record"), ("search", "--work"), ("train", "--output")])
def test_a_command_does_not_write_among_the_committed_results(command, option, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    target = paths.committed_dir("results") / ("search.json" if option != "--work" else "search")
    done = CliRunner().invoke(app, [command, option, str(target)])
    assert done.exit_code == 2 and "among the committed results" in done.stderr and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# A place that cannot be written is refused before the work


@pytest.fixture
def below_a_file(tmp_path, monkeypatch):
    """A folder that nobody can make, root neither: its parent is a file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")

    def work(*asked, **options):
        raise AssertionError("the work has begun")

    for name in ("daedalus.designers.search.search_suites", "daedalus.training.train.train", "daedalus.training.variants.run_ablations",
                 "daedalus.designers.language.LanguageDesigner.load", "doit.doit_cmd.DoitMain.run", "daedalus.pipeline.verify.spot_row"):
        monkeypatch.setattr(name, work)
    return tmp_path / "file" / "below"


@pytest.mark.parametrize("words", [
    "search --work {}", "search --output {}/search.json", "ablate --work {}", "ablate --record {}/records.json",
    "train --profile smoke --work {}", "train --profile smoke --output {}", "train --profile smoke --record {}/record.json",
    "inference --output {}/out.json"])
def test_a_command_refuses_a_place_that_it_cannot_write_to(words, below_a_file):
    done = CliRunner().invoke(app, words.format(below_a_file).split())
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert str(below_a_file) in done.stderr and "cannot be written" in done.stderr
    assert [path.name for path in below_a_file.parent.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("words", ["search", "ablate", "train --profile smoke", "inference"])
def test_a_command_refuses_a_working_folder_that_is_read_only(words, below_a_file, monkeypatch):
    def read_only(**options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert "cannot be written: " in done.stderr and f"Read-only file system ('{below_a_file.parent.parent}')" in done.stderr


@pytest.mark.parametrize(("words", "place"), [
    ("reproduce", "BUILD"), ("verify", "BUILD"), ("reproduce --profile paper --only 70_theory", "BUILD"),
    ("reproduce --profile paper --only 70_theory", "results"), ("reproduce --profile paper --only 70_theory", "figures"),
    ("reproduce --keep-outputs --only 70_theory", "CHECKOUT")])
def test_notebooks_do_not_run_where_their_results_could_not_be_kept(words, place, below_a_file, monkeypatch):
    known = {name: paths.committed_dir(name) for name in ("results", "figures")}
    if place in known:
        monkeypatch.setattr(reproduce, "committed_dir", lambda kind: (known | {place: below_a_file})[kind])
    else:
        for module in (reproduce, verify):
            monkeypatch.setattr(module, place, below_a_file, raising=False)
    done = CliRunner().invoke(app, words.split())
    assert done.exit_code == 2 and done.stderr.count("\n") == 1, done.output
    assert f"{str(below_a_file)!r} cannot be written" in done.stderr


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "No space left on device"), (errno.EACCES, "Permission denied")])
def test_a_disk_that_fills_up_is_one_sentence(number, words, monkeypatch, tmp_path):
    def full(*asked, **options):
        raise OSError(number, words, "build/search/part.json")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("daedalus.designers.search.search_suites", full)
    done = CliRunner().invoke(app, ["search"])
    assert done.exit_code == 1 and done.stderr == f"daedalus: build/search/part.json cannot be written: {words}\n"


# Papermill alone


@pytest.fixture
def checkout(tmp_path):
    """A checkout with two notebooks that keep a result; one imports the library above its parameters, one below."""
    shutil.copytree(paths.PACKAGE, tmp_path / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    committed = paths.write_text(tmp_path / "data" / "results" / "table.json", '{"value": 7}')
    start, keep = "from daedalus.results import read_result, write_result", 'write_result("table", n, {"seed": 0})'
    parameters = dict(cell_type="code", id="defaults", metadata={"tags": ["parameters"]}, source="#| writes: results/table?\nn = 1")
    for name, above, below in (("30_above", [start], [keep]), ("31_below", [], [start, keep])):
        sources = [dict(cell_type="code", id=f"cell-{source[:4]}", metadata={}, source=source) for source in (*above, *below)]
        cells = [*sources[:len(above)], parameters, *sources[len(above):]]
        kernel = dict(display_name="python3", language="python", name="python3")
        paths.write_text(tmp_path / "nbs" / f"{name}.ipynb", json.dumps(dict(
            cells=[cell | dict(outputs=[], execution_count=None) for cell in cells], metadata=dict(kernelspec=kernel),
            nbformat=4, nbformat_minor=5)))
    yield tmp_path
    assert committed.read_text() == '{"value": 7}'


def papermill(checkout, name, *words):
    """Run a notebook as somebody who knows papermill would."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("DAEDALUS_")}
    return subprocess.run([Path(sys.executable).parent / "papermill", f"nbs/{name}.ipynb", "out.ipynb", *words], cwd=checkout,
                          env=environment | {"PYTHONPATH": str(checkout)}, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["30_above", "31_below"])
def test_papermill_writes_into_the_build_folder_and_an_unknown_parameter_is_an_error(name, checkout):
    done = papermill(checkout, name, "-p", "n", "3")
    assert done.returncode == 0, done.stderr
    made = json.loads((checkout / "build" / "results" / "table.json").read_text())
    assert made["value"] == 3 and made["provenance"]["notebook"] is None
    (checkout / "build" / "results" / "table.json").unlink()
    done = papermill(checkout, name, "-p", "m", "3")
    assert done.returncode == 1 and "ValueError: this notebook has no parameter 'm': its parameters are n" in done.stderr
    assert not (checkout / "build" / "results" / "table.json").exists()


def test_a_notebook_of_the_user_s_own_is_not_judged():
    cells = ["mine = 1", "# Parameters\nother = 2\n"]
    assert results.unknown_parameters(cells, ["seed = 0"]) is None
    assert results.unknown_parameters(["seed = 0", "# Parameters\nseed = 2\n"], ["seed = 0"]) is None


# A long path of the folder for temporary files


@pytest.fixture
def long_path(tmp_path):
    """A folder whose path is longer than that of any socket may be."""
    folder = tmp_path / ("long-" * 20)
    folder.mkdir()
    assert len(str(folder)) > 107
    return folder


def test_a_notebook_runs_however_long_the_path_of_temporary_files(checkout, long_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(long_path))
    executed = reproduce.run_notebook(checkout / "nbs" / "30_above.ipynb", {"n": 5}, checkout / "out.ipynb")
    assert executed.exists() and list(long_path.iterdir()) == []


def test_jobs_run_however_long_the_path_of_temporary_files(long_path):
    work = ("from daedalus.jobs import Job, run_jobs\n"
            "print([done.result for done in run_jobs([Job(divmod, (n, 2)) for n in range(4)], 2)])")
    done = subprocess.run([sys.executable, "-c", work], env=os.environ | {"TMPDIR": str(long_path)}, capture_output=True,
                          text=True)
    assert done.stdout == "[[0, 0], [0, 1], [1, 0], [1, 1]]\n", done.stderr


# An installed copy


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs the command, or code, from a folder elsewhere, with the wheel in place of the checkout.

    Packages of the extras that `without` names cannot be imported. Nothing may change where the wheel is.
    """
    site, elsewhere = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    zipfile.ZipFile(wheel).extractall(site)
    absent = ("import os, sys\nclass Absent:\n    def find_spec(self, name, path=None, target=None):\n"
              "        if name in os.environ['WITHOUT'].split(): raise ModuleNotFoundError(name, name=name)\n"
              "sys.meta_path.insert(0, Absent())\n")
    paths.write_text(site / "sitecustomize.py", absent)

    def run(*words, code=None, without="", status=0):
        program = code or "from daedalus.cli import main; main()"
        before = {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DAEDALUS_")}
        done = subprocess.run([sys.executable, "-c", program, *words], cwd=elsewhere, capture_output=True, text=True, env=environment | {
            "PYTHONPATH": str(site), "WITHOUT": without, "PYTHONDONTWRITEBYTECODE": "1", "HF_HUB_OFFLINE": "1"})
        assert done.returncode == status, done.stdout + done.stderr
        assert before == {path: path.stat().st_mtime_ns for path in site.rglob("*") if path.is_file()}
        return done.stdout or done.stderr

    return run


def test_an_installed_copy_plays_and_reads_the_committed_results(installed):
    told = installed(code="import daedalus as dd\nfrom daedalus.paths import build_dir, is_checkout\n"
                          "print(is_checkout(), dd.best_fixed().auction_type, build_dir().name, build_dir().parent.name)")
    assert told.startswith(f"False {search.best_fixed().auction_type} build elsewhere")


CORE_ALONE = "torch transformers openai optuna cma joblib gradio fastapi papermill nbdev IPython"   # of the extras, none


def test_an_installed_copy_of_the_core_makes_the_table_of_models_again(installed):
    told = installed("leaderboard", "--replay", without=CORE_ALONE)
    assert "written: build/leaderboard/leaderboard.json, " in told and "trained" in told


@pytest.mark.slow
def test_an_installed_copy_of_the_core_advises_in_money_and_says_what_the_rest_needs(installed):
    told = installed("design", "--bidders", "6", "--procurement", "--low", "80", "--high", "120", "--currency", "EUR", "--draws", "16",
                     "--report", "report.html", without=CORE_ALONE)
    assert "EUR a unit" in told and "written: report.html" in told
    assert "was not asked: a language model needs torch: pip install 'daedalus-mechanisms[designer]'." in told


@pytest.mark.slow
def test_the_first_cell_in_colab_installs_the_wheel_that_lies_beside_it(wheel, tmp_path):
    cells = json.loads((paths.CHECKOUT / "nbs" / "index.ipynb").read_text(encoding="utf-8"))["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert first["id"] == "colab"
    code = paths.write_text(tmp_path / "here" / "cell.py", "".join(first["source"]))
    shutil.copy(wheel, code.parent)
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("DAEDALUS_", "PYTHON", "PIP_"))}
    alone = environment | {"PIP_NO_DEPS": "1", "PIP_NO_INDEX": "1"}   # from this file and from nowhere else
    for time in ("it is installed", "it is there"):
        done = subprocess.run([python, "cell.py"], cwd=code.parent, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, (time, done.stderr)
        for file in code.parent.glob("*.whl"): file.unlink()
    told = subprocess.run([python, "-c", "import importlib.util as u; print(u.find_spec('daedalus').origin)"], cwd=code.parent,
                          env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(told.strip()).is_relative_to(tmp_path / "venv")


def test_an_installed_copy_writes_into_the_working_folder(installed):
    told = installed(code="from daedalus.paths import figures_dir\nfrom daedalus.results import write_result, read_result\n"
                          "path = write_result('table', 3, {'seed': 0})\n"
                          "print(path.parts[-4:-1], figures_dir().parts[-2:], read_result('table'))")
    assert "'build', 'results') ('build', 'figures') 3" in told and "elsewhere" in told


@pytest.mark.parametrize("words", [["reproduce"], ["reproduce", "--list"], ["verify"],
                                   ["reproduce", "--only", "70_theory", "--show"]], ids=" ".join)
def test_what_needs_a_checkout_says_so(installed, words):
    assert installed(*words, status=2, without="doit papermill") == (
        "daedalus: there is no folder nbs/: the notebooks are in a checkout of the project, not in an installed copy\n")


def test_numbers_are_traced_from_the_data_that_comes_along(installed):
    told = installed("trace", "random-mean")
    assert "made by:    nbs/42_evaluate.ipynb, in a checkout of the project" in told and "committed:  " in told
    assert "data/results/" in installed("trace", "0.663")
    assert installed("verify", "--list").count("\n") == len(verify.claims())


@pytest.mark.parametrize(("words", "without", "sentence"), [
    (["inference"], "transformers", "this needs transformers: pip install 'daedalus-mechanisms[designer]' brings it"),
    (["train"], "torch", "this needs torch: pip install 'daedalus-mechanisms[train]' brings it"),
    (["search", "--workers", "2"], "joblib", "this needs joblib: pip install 'daedalus-mechanisms[search]' brings it"),
    (["serve"], "anyio", "this needs anyio: pip install 'daedalus-mechanisms[serve]' brings it"),
    (["inference", "--model", "mine/NAME", "--base-url", "http://127.0.0.1:1/v1"], "openai",
     "this needs openai: pip install 'daedalus-mechanisms[endpoint]' brings it"),
], ids=["inference", "train", "search", "serve", "endpoint"])
def test_a_hint_is_true_in_an_installed_copy(installed, words, without, sentence):
    assert installed(*words, without=without, status=1).splitlines()[-1] == f"daedalus: {sentence}"


def test_only_one_place_makes_the_hint():
    """Except for packages that are of no extra for users, whose names are the same everywhere."""
    lines = [line.strip() for path in results.module_files().values() for line in path.read_text().splitlines()
             if "pip install" in line and '"""' not in line]
    mine = [line for line in lines if not any(name in line for name in ("gymnasium", "pettingzoo"))]
    assert len(mine) == 1 and mine[0].startswith("return f\"pip install -e '.[{extra}]'\" if is_checkout() else")


def test_a_service_of_an_installed_copy_has_its_story(installed):
    told = installed(code="from daedalus.serving.pages import story\nprint(story()[:40])")
    assert "DAEDALUS" in told or "Made from nbs/index.ipynb" in told


# Searches and trainings that are asked to end


@pytest.mark.parametrize(("words", "sign"), [
    ("search --budget 2000 --workers 2 --work work", "work/*.json"), ("train --profile smoke --work work", "work/.phase-*")])
def test_a_command_that_is_asked_to_end_leaves_nothing_behind(words, sign, tmp_path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-c", "from daedalus.cli import main; main()", *words.split()]
    environment = os.environ | {"TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, text=True, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        try:
            until(lambda: list(tmp_path.glob(sign)) or running.poll() is not None)
            running.terminate()
            told, errors = running.communicate(timeout=300)
        finally:
            running.kill()
    assert running.returncode == 128 + signal.SIGTERM, told + errors
    assert errors.splitlines()[-1] == "daedalus: interrupted; run the same command again to resume"
    assert list(temporary.glob("daedalus*")) + list(tmp_path.glob("work/.[!l]*")) + list(temporary.glob("joblib*")) == []
