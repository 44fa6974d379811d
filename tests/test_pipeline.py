"""The pipeline: results on disk, the runner of the notebooks, the command line, the notebooks' form."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from configparser import ConfigParser

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from shared import ENDS, HEARS, PATIENCE, until
from typer.testing import CliRunner

import daedalus
from daedalus import paths, results
from daedalus.pipeline import reproduce
from daedalus.cli import app, says_what_is_wrong

NOTEBOOKS = reproduce.notebooks()


def code_cell(name, source, *tags):
    metadata = {"tags": list(tags)}
    return dict(cell_type="code", id=name, metadata=metadata, source=source, outputs=[], execution_count=None)


@pytest.fixture
def write_notebook(tmp_path):
    def write(*cells, name="example"):
        kernel = dict(display_name="python3", language="python", name="python3")
        content = dict(cells=list(cells), metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
        return paths.write_text(tmp_path / f"{name}.ipynb", json.dumps(content))

    return write


@pytest.fixture
def own_results(tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.delenv("DAEDALUS_NOTEBOOK", raising=False)
    return tmp_path / "results"


# Results


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_comes_back_with_the_same_bits(tmp_path_factory, number):
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DAEDALUS_RESULTS_DIR", str(folder))
        results.write_result("number", number, {"seed": 0})
        assert results.read_result("number").hex() == number.hex()


def test_a_result_says_where_it_comes_from(own_results, write_notebook, monkeypatch):
    path = write_notebook(code_cell("defaults", "import daedalus.results", "parameters"), name="30_example")
    monkeypatch.setenv("DAEDALUS_NOTEBOOK", str(path))
    results.write_result("table", {"mean": np.float64(0.1), "draws": np.arange(3)}, {"seed": 7, "episodes": 30})
    record = json.loads((own_results / "table.json").read_text())
    assert record["value"] == {"mean": 0.1, "draws": [0, 1, 2]}
    source = record["provenance"]
    assert source["notebook"] == "30_example"
    assert source["parameters"] == {"seed": 7, "episodes": 30}
    assert source["library_hash"] == results.library_hash(["_runtime", "paths", "results"]) != results.library_hash()
    assert set(source["versions"]) == {"python", "numpy", "scipy", "numba"}


def test_the_same_result_is_the_same_bytes(own_results):
    first = results.write_result("table", {"b": 1, "a": [0.1, 0.2]}, {"seed": 0}).read_bytes()
    assert results.write_result("table", {"b": 1, "a": [0.1, 0.2]}, {"seed": 0}).read_bytes() == first


@pytest.mark.parametrize("value", [float("nan"), [np.inf], {"mean": -np.inf}])
def test_a_result_must_be_finite(own_results, value):
    with pytest.raises(ValueError, match="'table' holds NaN or infinity"):
        results.write_result("table", value, {"seed": 0})
    assert not own_results.exists()


def test_a_result_needs_a_seed_and_a_plain_name(own_results):
    with pytest.raises(ValueError, match="must hold 'seed'"):
        results.write_result("table", 1, {"episodes": 30})
    with pytest.raises(ValueError, match="result name '../table'"):
        results.write_result("../table", 1, {"seed": 0})
    with pytest.raises(FileNotFoundError, match="no result 'table' yet"):
        results.read_result("table")


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = paths.write_text(tmp_path / "note.txt", "old")

    def interrupted(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        paths.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_smoke_run_reads_the_committed_result_and_does_not_touch_it(own_results, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "data_dir", lambda: tmp_path / "data")
    committed = paths.write_text(tmp_path / "data" / "results" / "mean.json", '{"value": 0.5}')
    assert results.read_result("mean") == 0.5
    results.write_result("mean", 0.4, {"seed": 0})
    assert results.read_result("mean") == 0.4
    assert committed.read_text() == '{"value": 0.5}'


def test_data_may_lie_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_DATA_DIR", str(tmp_path))
    (tmp_path / "bids.csv").write_text("bid\n")
    assert paths.data_file("bids.csv") == tmp_path / "bids.csv"
    assert paths.data_file("params.json") == paths.data_dir() / "params.json"
    with pytest.raises(FileNotFoundError, match="'none.csv' is in none of"):
        paths.data_file("none.csv")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A library of three modules: `top` imports `base`, and `apart` nothing."""
    folder = tmp_path / "daedalus"
    for name, code in (("base", "x = 1"), ("top", "def late():\n    from .base import x"), ("apart", "import numpy")):
        paths.write_text(folder / f"{name}.py", code)
    monkeypatch.setattr(results, "PACKAGE", folder)
    return folder


@pytest.mark.parametrize(
    ("code", "modules"),
    [
        ("import numpy", []),
        ("from daedalus.base import x", ["base"]),
        ("import daedalus.top", ["base", "top"]),
        ("def late():\n    from daedalus import top", ["base", "top"]),
        ("import daedalus as dd", ["apart", "base", "top"]),
        ("from daedalus import simulate", ["apart", "base", "top"]),
    ],
)
def test_modules_are_followed_through_imports(package, code, modules):
    assert results.modules_used(code) == modules


def test_a_notebook_runs_again_when_a_module_below_it_changes(package, write_notebook):
    path = write_notebook(code_cell("defaults", "from daedalus.top import late", "parameters"))
    before = reproduce.fingerprint(path, {}, "smoke")
    paths.write_text(package / "apart.py", "import scipy")
    assert reproduce.fingerprint(path, {}, "smoke") == before
    paths.write_text(package / "base.py", "x = 2")
    assert reproduce.fingerprint(path, {}, "smoke") != before


# The runner


@pytest.mark.parametrize("tags", [[], ["parameters", "parameters"]], ids=["none", "two"])
def test_exactly_one_parameters_cell(write_notebook, tags):
    path = write_notebook(*[code_cell(f"defaults-{i}", "n = 1", tag) for i, tag in enumerate(tags)])
    with pytest.raises(reproduce.NotebookError, match=f"has {len(tags)} cells tagged 'parameters'"):
        reproduce.check_parameters(path, {})


def test_an_unknown_parameter_is_refused_before_anything_runs(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "episodes = 1", "parameters"))
    with pytest.raises(reproduce.NotebookError, match="no parameter 'episode': its parameters are episodes"):
        reproduce.run_notebook(path, {"episode": 30}, tmp_path / "out" / "example.ipynb")
    assert not (tmp_path / "out").exists()


def test_a_run_injects_parameters_and_is_the_same_bytes_twice(write_notebook, tmp_path):
    work = "import sys, random\nprint(n, random.random() < 2, hash('a'))\nprint('bar', file=sys.stderr)\nobject()"
    path = write_notebook(code_cell("defaults", "n = 1", "parameters"), code_cell("work", work))
    out = tmp_path / "out" / "example.ipynb"
    first = reproduce.run_notebook(path, {"n": 4}, out).read_bytes()
    assert reproduce.run_notebook(path, {"n": 4}, out).read_bytes() == first
    cells = json.loads(first)["cells"]
    assert [cell["id"] for cell in cells] == ["defaults", "injected-parameters", "work"]
    assert "".join(cells[2]["outputs"][0]["text"]).startswith("4 True")
    assert [file.name for file in out.parent.iterdir()] == ["example.ipynb"]


def test_a_failing_notebook_names_its_cell_and_shows_why(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "n = 0", "parameters"), code_cell("divide-by-n", "1 / n"))
    out = paths.write_text(tmp_path / "out" / "example.ipynb", "the last good run")
    with pytest.raises(reproduce.NotebookError) as caught:
        reproduce.run_notebook(path, {}, out)
    message = str(caught.value)
    assert message.startswith("example.ipynb failed in cell 'divide-by-n': ZeroDivisionError")
    assert "1 / n" in message and "\x1b" not in message
    assert out.read_text() == "the last good run"
    assert out.with_suffix(".failed.ipynb").exists()


def test_a_notebook_that_ends_its_kernel_is_named(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "import os\nos._exit(3)", "parameters"))
    with pytest.raises(reproduce.NotebookError, match="example.ipynb failed outside a cell: DeadKernelError"):
        reproduce.run_notebook(path, {}, tmp_path / "example-out.ipynb")


def test_a_run_leaves_the_environment_as_it_was(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", "mine")
    before = dict(os.environ)
    show = "import os\nprint(os.environ['DAEDALUS_RESULTS_DIR'])"
    path = write_notebook(code_cell("defaults", show, "parameters"))
    executed = reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")
    assert reproduce.printed(executed).strip() == str(reproduce.BUILD / "results" / "smoke")
    assert dict(os.environ) == before


def test_code_and_parameters_change_a_fingerprint_and_prose_does_not(write_notebook):
    prose = dict(cell_type="markdown", id="title", metadata={}, source="# Before")
    path = write_notebook(prose, code_cell("defaults", "n = 1", "parameters"))
    before = reproduce.fingerprint(path, {}, "smoke")
    assert reproduce.fingerprint(path, {"n": 2}, "smoke") != before
    assert reproduce.fingerprint(path, {}, "paper") != before
    write_notebook(prose | {"source": "# After"}, code_cell("defaults", "n = 1", "parameters"))
    assert reproduce.fingerprint(path, {}, "smoke") == before
    write_notebook(prose, code_cell("defaults", "n = 2", "parameters"))
    assert reproduce.fingerprint(path, {}, "smoke") != before


def test_a_result_is_an_input_of_who_reads_it_not_of_who_wrote_it(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "data_dir", lambda: tmp_path / "data")
    monkeypatch.setattr(reproduce, "BUILD", tmp_path / "build")
    result = paths.write_text(tmp_path / "build" / "results" / "smoke" / "best.json", '{"value": 1}')
    sources = {"29_reader": "#| reads: results/best", "30_writer": "#| writes: results/best", "32_other": "read_result('best')"}
    made = {name: write_notebook(code_cell("defaults", code, "parameters"), name=name)
            for name, code in sources.items()}
    monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: list(made.values()))
    assert reproduce.writers() == {"best": "30_writer"}
    assert reproduce.inputs(made["29_reader"], "smoke") == [result]
    assert reproduce.inputs(made["29_reader"], "paper") == reproduce.inputs(made["29_reader"], "verify") == []
    assert [reproduce.inputs(made[name], "smoke") for name in ("30_writer", "32_other")] == [[], []]
    assert {name: reproduce.dependencies(path) for name, path in made.items()} == {
        "29_reader": ["30_writer"], "30_writer": [], "32_other": []}


def declaring(write_notebook, monkeypatch, **lines):
    """Notebooks with these lines in their `parameters` cells, as all that there are."""
    made = {name: write_notebook(code_cell("defaults", code, "parameters"), name=name) for name, code in lines.items()}
    monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: list(made.values()))
    return made


@pytest.mark.parametrize(("lines", "sentence"), [
    ({"a": "#| reads: results/best"}, "a.ipynb reads 'results/best', which is not there, and no notebook writes it"),
    ({"a": "#| reads: bids.csv"}, "a.ipynb reads 'bids.csv', which is not there, and no notebook writes it"),
    ({"a": "#| reads: results/two\n#| writes: results/one", "b": "#| reads: results/one\n#| writes: results/two"},
     "notebooks read one another's results: a, b, a"),
    ({"a": "#| writes: results/one", "b": "#| writes: results/one?"},
     "result 'one' is written by a and b: one of them may write it"),
], ids=["no writer", "no file", "circle", "two writers"])
def test_declarations_that_do_not_fit_together_are_refused(write_notebook, tmp_path, monkeypatch, lines, sentence):
    monkeypatch.setattr(reproduce, "data_dir", lambda: tmp_path)
    paths.write_text(tmp_path / "params.json", '{"smoke": {}}')
    made = declaring(write_notebook, monkeypatch, **lines)
    with pytest.raises(ValueError) as refused:
        reproduce.in_order(list(made.values()))
    assert str(refused.value) == sentence


def test_a_file_that_may_be_missing_needs_no_writer(write_notebook, tmp_path, monkeypatch):
    made = declaring(write_notebook, monkeypatch, a="#| reads: bids.csv? results/best?")
    reproduce.check_declared(list(made.values()))
    assert reproduce.inputs(made["a"], "smoke") == []


USES = {"reads results/theory": "read_result('theory')", "reads claims.json": "data_file('claims.json').read_text()",
        "reads designer/config.json": "open('{data}/designer/config.json').close()",
        "reads params.json": "subprocess.run([sys.executable, '-c', 'import daedalus.results; open(\"{data}/params.json\")'], check=True)",
        "writes results/example": "write_result('example', 1, dict(seed=0))",
        "writes figures/example": "save_figure(Figure(), 'example')"}
START = "import subprocess, sys\nfrom daedalus.paths import *\nfrom daedalus.results import *\nfrom matplotlib.figure import Figure\n"


def test_a_notebook_uses_what_it_declares(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "BUILD", tmp_path / "build")
    lines = "#| reads: results/theory claims.json? designer/\n#| reads: params.json\n#| writes: results/example figures/example\n"
    code = "\n".join(USES.values()).format(data=paths.data_dir()) + "\nread_result('example')   # its own"
    path = write_notebook(code_cell("defaults", lines + START, "parameters"), code_cell("use", code))
    assert reproduce.run_notebook(path, {}, tmp_path / "out.ipynb").exists()
    assert {file.name for file in reproduce.outputs(path, "smoke")} == {"example.json", "example.pdf", "example.png"}
    assert all(file.exists() for file in reproduce.outputs(path, "smoke"))


def test_what_a_notebook_does_not_declare_is_refused_even_where_it_goes_on(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "BUILD", tmp_path / "build")
    attempts = [f"try: {use}\nexcept (ValueError, subprocess.CalledProcessError): pass\nelse: raise SystemExit" for use in USES.values()]
    code = "\n".join(attempts).format(data=paths.data_dir())
    path = write_notebook(code_cell("defaults", f"#| reads: open_suite.json?\n{START}", "parameters"), code_cell("use", code))
    with pytest.raises(reproduce.NotebookError) as told:
        reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")
    assert str(told.value).splitlines() == [
        f"example.ipynb {kind} {name!r} and does not say so: name it in the line '#| {kind}:' of its parameters cell"
        for kind, name in sorted(tuple(use.split()) for use in USES)]
    assert not (tmp_path / "out.ipynb").exists()


def test_an_undeclared_read_fails_in_its_cell(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "n = 1", "parameters"),
                          code_cell("use", "from daedalus.results import read_result\nread_result('theory')"))
    with pytest.raises(reproduce.NotebookError, match="example.ipynb failed in cell 'use': ValueError: example.ipynb reads 'results/theory'"):
        reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")


def test_what_is_declared_and_not_used_is_told(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "#| reads: claims.json search/?\n#| writes: results/none", "parameters"))
    with pytest.raises(reproduce.NotebookError) as told:
        reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")
    assert str(told.value).splitlines() == ["example.ipynb says that it reads 'claims.json' and does not",
                                            "example.ipynb says that it writes 'results/none' and does not"]
    assert not (tmp_path / "out.ipynb").exists()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_declares_the_results_and_figures_that_its_code_names(path):
    code, said = results.notebook_code(path), paths.declared(path)
    writes = {name.removesuffix("?") for name in said["writes"]}
    kept = {f"results/{name}" for name in re.findall(r'\bwrite_result\("([\w-]+)"', code)}
    drawn = {f"figures/{name}" for name in re.findall(r'\b(?:save_figure\([\w.]+, |keep_figure\()"([\w-]+)"', code)}
    assert {name for name in writes if not name.startswith("paper/")} == kept | drawn
    read = {f"results/{name}" for name in re.findall(r'(?<!def )\bread_result\("([\w-]+)"', code)}
    assert read <= {name.removesuffix("?") for name in said["reads"]} | writes
    assert len(set(said["reads"] + said["writes"])) == len(said["reads"] + said["writes"])


def test_data_from_outside_is_an_input(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_DATA_DIR", str(tmp_path))
    bids = paths.write_text(tmp_path / "bids.csv", "bid\n")
    reader = write_notebook(code_cell("defaults", "#| reads: bids.csv", "parameters"))
    assert reproduce.inputs(reader, "smoke") == [bids]


@pytest.fixture
def project(write_notebook, tmp_path, monkeypatch):
    """A project of three notebooks: `31_reader` reads what `30_writer` writes, and `32_apart` stands alone.

    `30_writer` fails as long as a file `broken` exists. Returns a function that writes them, the first with a number.
    """
    monkeypatch.setattr(reproduce, "BUILD", tmp_path / "build")
    monkeypatch.setattr(reproduce, "DOIT_CONFIG", {"backend": "json", "dep_file": str(tmp_path / "doit.json")})
    paths.write_text(tmp_path / "data" / "params.json", '{"smoke": {}, "paper": {}}')
    monkeypatch.setattr(reproduce, "data_dir", lambda: tmp_path / "data")

    def write(number, **names):
        check = "import pathlib\nassert not pathlib.Path('broken').exists()"
        keep = f'from daedalus.results import write_result\nwrite_result("best", {number} // 2, {{"seed": 0}})'
        read = 'from daedalus.results import read_result\nprint("best:", read_result("best"))'
        sources = {"30_writer": ("#| writes: results/best\n", code_cell("check", check), code_cell("keep", keep)),
                   "31_reader": ("#| reads: results/best\n", code_cell("read", read)), "32_apart": ("", code_cell("show", "print(n)"))}
        made = [write_notebook(code_cell("defaults", f"{said}n = 1", "parameters"), *cells, name=names.get(name, name))
                for name, (said, *cells) in sources.items()]
        monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: made)
        return made

    return write


def states():
    return {line[9:].split()[0]: line[:9].strip() for line in reproduce.listing("smoke")}


def test_only_what_depends_on_a_change_runs_again(project, capfd):
    _, reader, _ = project(2)
    assert reproduce.reproduce("smoke") == 0
    assert "3 ran, 0 were current" in capfd.readouterr().out
    assert reproduce.printed(reproduce.built(reader, "smoke")) == "best: 1"
    assert reproduce.reproduce("smoke") == 0
    assert "0 ran, 3 were current" in capfd.readouterr().out

    project(3)   # other code, the same result
    assert reproduce.reproduce("smoke") == 0
    assert "1 ran, 2 were current" in capfd.readouterr().out

    project(8)   # another result
    assert states() == {"30_writer": "to run", "31_reader": "current", "32_apart": "current"}
    assert reproduce.reproduce("smoke") == 0
    assert "2 ran, 1 were current" in capfd.readouterr().out
    assert reproduce.printed(reproduce.built(reader, "smoke")) == "best: 4"
    assert set(states().values()) == {"current"}


def test_a_notebook_s_name_has_no_meaning(project, capfd):
    """Renumbered, the reader stands before the writer, and waits for it all the same."""
    names = {"30_writer": "95_writer", "31_reader": "05_first", "32_apart": "index2"}
    made = project(6, **names)
    assert reproduce.reproduce("smoke", jobs=2) == 0
    assert "3 ran, 0 were current" in capfd.readouterr().out
    assert reproduce.printed(reproduce.built(made[1], "smoke")) == "best: 3"
    assert reproduce.dependencies(made[1]) == ["95_writer"]
    assert reproduce.reproduce("smoke") == 0
    assert "0 ran, 3 were current" in capfd.readouterr().out
    assert [file.name for file in reproduce.inputs(made[1], "smoke")] == ["best.json"]


def test_a_run_resumes_though_doit_has_forgotten_what_it_noted(project, tmp_path, capfd):
    project(2)
    assert reproduce.reproduce("smoke") == 0
    (tmp_path / "doit.json").unlink()   # as after a power cut
    assert reproduce.reproduce("smoke") == 0
    assert "0 ran, 3 were current" in capfd.readouterr().out
    assert reproduce.reproduce("smoke", force=True) == 0
    assert "3 ran, 0 were current" in capfd.readouterr().out


def test_a_result_that_is_gone_is_made_again(project, capfd):
    project(2)
    assert reproduce.reproduce("smoke") == 0
    (reproduce.BUILD / "results" / "smoke" / "best.json").unlink()
    assert states() == {"30_writer": "to run", "31_reader": "to run", "32_apart": "current"}
    assert reproduce.reproduce("smoke") == 0
    assert "1 ran, 2 were current" in capfd.readouterr().out


def test_a_failure_stops_only_what_depends_on_it_and_a_rerun_resumes(project, tmp_path, capfd):
    _, _, apart = project(2)
    (tmp_path / "broken").touch()
    assert reproduce.reproduce("smoke") == 1
    told = capfd.readouterr().out
    assert "30_writer.ipynb failed in cell 'check': AssertionError" in told
    assert "1 ran, 0 were current, 0 skipped, 1 failed, 1 not run" in told
    assert "not run 31_reader: it reads what 30_writer writes" in told
    assert states() == {"30_writer": "to run", "31_reader": "to run", "32_apart": "current"}
    (tmp_path / "broken").unlink()
    made = reproduce.built(apart, "smoke").stat().st_mtime_ns
    assert reproduce.reproduce("smoke") == 0
    assert "2 ran, 1 were current, 0 skipped, 0 failed" in capfd.readouterr().out
    assert reproduce.built(apart, "smoke").stat().st_mtime_ns == made


def test_one_notebook_runs_alone(project, capfd):
    _, reader, _ = project(2)
    paths.write_text(reproduce.BUILD / "results" / "smoke" / "best.json", '{"value": 7}')
    assert reproduce.reproduce("smoke", only=["31_reader"]) == 0
    assert "1 ran, 0 were current" in capfd.readouterr().out
    assert reproduce.printed(reproduce.built(reader, "smoke")) == "best: 7"


def test_some_notebooks_run_and_no_other(project, capfd):
    writer, reader, apart = project(2)
    assert reproduce.reproduce("smoke", only=["32_apart", "30_writer"]) == 0
    assert "2 ran, 0 were current" in capfd.readouterr().out
    assert [reproduce.built(path, "smoke").exists() for path in (writer, reader, apart)] == [True, False, True]


def test_missing_public_data_is_a_skip_and_tried_again(write_notebook, project, monkeypatch, capfd):
    load = ("import daedalus.studies.screens as s\ns.data_folders = lambda: []\ns.find_spec = lambda name: None\n"
            "s.tsuchiura()")
    made = [write_notebook(code_cell("load", load, "parameters"), name="40_data"), project(2)[2]]
    monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: made)
    for current in (0, 1):
        assert reproduce.reproduce("smoke", keep=False) == 0
        told = capfd.readouterr().out
        assert f"{1 - current} ran, {current} were current, 1 skipped, 0 failed" in told
        assert "skipped 40_data: no Tsuchiura tenders here, and pooch is not installed" in told
    assert states() == {"40_data": "to run", "32_apart": "current"}


# Side by side


@pytest.fixture
def run_side_by_side(write_notebook, tmp_path, monkeypatch):
    """Runs notebooks, given as {name: code}, two at a time; those of `alone` by themselves. Returns the exit code.

    Each notebook first leaves a file with its name in the folders `there` and `came`. It takes the first away at its
    end; the second stays, so that whoever waits for a notebook cannot miss it.
    """
    monkeypatch.setattr(reproduce, "BUILD", tmp_path / "build")
    monkeypatch.setattr(reproduce, "DOIT_CONFIG", {"backend": "json", "dep_file": str(tmp_path / "doit.json")})
    monkeypatch.setattr(reproduce, "data_dir", lambda: tmp_path / "data")
    (tmp_path / "there").mkdir()
    (tmp_path / "came").mkdir()

    def run(sources, profile="smoke", **lists):
        paths.write_text(tmp_path / "data" / "params.json", json.dumps({"smoke": {}, "paper": {}} | lists))
        start = "import pathlib, time\nthere, came = pathlib.Path('there'), pathlib.Path('came')\n"
        arrive = "(there / '{0}').touch(); (came / '{0}').touch()"
        made = [write_notebook(code_cell("defaults", start + arrive.format(name), "parameters"),
                               code_cell("work", code), code_cell("leave", f"(there / '{name}').unlink()"), name=name)
                for name, code in sources.items()]
        monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: made)
        return reproduce.reproduce(profile, jobs=2)

    return run


MEET = """
for _ in range(2400):
    if (came / '{0}').exists(): break
    time.sleep(0.05)
assert (came / '{0}').exists()
"""


def test_two_notebooks_run_at_a_time(run_side_by_side, capfd):
    assert run_side_by_side({"30_a": MEET.format("31_b"), "31_b": MEET.format("30_a")}) == 0
    assert "2 ran, 0 were current" in capfd.readouterr().out


def test_a_notebook_that_measures_time_runs_alone(run_side_by_side, capfd):
    see = ("for _ in range(20):\n    assert [file.name for file in there.iterdir()] == ['32_timed']\n"
           "    time.sleep(0.05)")
    pair = {"30_a": MEET.format("31_b"), "31_b": MEET.format("30_a")}
    assert run_side_by_side({**pair, "32_timed": see, "33_c": "time.sleep(1)"}, "verify", alone=["32_timed"]) == 0
    assert "4 ran, 0 were current" in capfd.readouterr().out


def test_at_the_small_size_a_notebook_that_measures_time_may_have_a_neighbour(run_side_by_side, capfd):
    pair = {"30_a": MEET.format("31_timed"), "31_timed": MEET.format("30_a")}
    assert run_side_by_side(pair, alone=["31_timed"]) == 0
    assert "2 ran, 0 were current" in capfd.readouterr().out


def test_one_of_two_that_fails_names_its_cell_and_the_other_ends(run_side_by_side, capfd):
    assert run_side_by_side({"30_a": MEET.format("31_b") + "1 / 0", "31_b": MEET.format("30_a")}) == 1
    told = capfd.readouterr().out
    assert "30_a.ipynb failed in cell 'work': ZeroDivisionError" in told and "1 / 0" in told
    assert "1 ran, 0 were current, 0 skipped, 1 failed" in told


def test_how_long_each_took_is_told_and_kept(run_side_by_side, tmp_path, capfd):
    longer = "while not pathlib.Path('build/nbs/smoke/30_short.ipynb').exists(): time.sleep(0.05)\ntime.sleep(1)"
    assert run_side_by_side({"30_short": "1", "31_long": longer}) == 0
    told = re.search(r"^seconds: 31_long ([\d.]+), 30_short ([\d.]+); ([\d.]+) in all$", capfd.readouterr().out,
                     flags=re.MULTILINE)
    kept = json.loads(reproduce.seconds_file("smoke").read_text())
    assert [float(number) for number in told.groups()[:2]] == [kept["31_long"], kept["30_short"]]
    assert float(told[3]) == pytest.approx(sum(kept.values()), abs=0.2)
    assert kept["31_long"] > 1


def test_a_kernel_works_beside_its_notebook_and_nobody_else_moves(write_notebook, tmp_path, monkeypatch):
    """Notebooks run in threads of one process: if one changed its folder, the kernel of another could start there."""
    path = write_notebook(code_cell("defaults", "import os\nprint(os.getcwd())", "parameters"))
    here, visited = os.getcwd(), set()
    monkeypatch.setattr(os, "chdir", lambda folder: visited.add(str(folder)))
    told = reproduce.printed(reproduce.run_notebook(path, {}, tmp_path / "out" / "out.ipynb"))
    assert told == str(path.parent) != here and visited <= {here}


def test_a_kernel_has_one_core(write_notebook, tmp_path):
    names = list(reproduce.ONE_CORE)
    show = f"import os\nprint(*(os.environ[name] for name in {names}))"
    path = write_notebook(code_cell("defaults", show, "parameters"))
    told = reproduce.printed(reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")).split()
    assert "OMP_NUM_THREADS" in names and set(told) == {"1"}


def test_the_long_begin_first_and_the_timed_last(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "data_dir", lambda: tmp_path)
    lists = {"alone": ["32_timed"], "first": ["33_long", "31_long"]}
    paths.write_text(tmp_path / "params.json", json.dumps({"smoke": {}} | lists))
    sources = {"30_short": "1", "31_long": "#| writes: results/best", "31_reads": "#| reads: results/best",
               "32_timed": "#| writes: results/speed", "33_long": "1",
               "40_reads": "#| reads: results/speed\n#| writes: results/paper", "41_late": "#| reads: results/paper"}
    made = [write_notebook(code_cell("defaults", code, "parameters"), name=name) for name, code in sources.items()]
    monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: made)
    assert [path.stem for path in reproduce.in_order(made)] == [
        "33_long", "31_long", "30_short", "31_reads", "32_timed", "40_reads", "41_late"]
    assert [task["name"] for task in reproduce.tasks()] == [path.stem for path in reproduce.in_order(made)]


def test_every_notebook_with_a_measured_time_in_its_results_runs_alone():
    names = {path.stem for path in NOTEBOOKS}
    assert set(reproduce.alone()) | set(reproduce._params_file()["first"]) <= names
    code = {path.stem: results.notebook_code(path) for path in NOTEBOOKS}
    writes = set(reproduce.writers().values())
    timed = {name for name in writes if re.search("perf_counter|process_time|timeit", code[name])}
    assert timed == set(reproduce.alone())


def test_a_closed_scheduler_starts_nothing_and_waits_for_what_runs():
    scheduler, left = reproduce.Scheduler(), []

    def visit():
        with scheduler.slot("30_a"):
            inside.set()
            time.sleep(0.5)
            left.append("30_a")

    inside, visitor = threading.Event(), threading.Thread(target=visit)
    visitor.start()
    inside.wait()
    scheduler.close()
    assert left == ["30_a"]
    with pytest.raises(KeyboardInterrupt), scheduler.slot("31_b"):
        left.append("31_b")
    visitor.join()
    assert left == ["30_a"] and list(scheduler.seconds) == ["30_a"]


def test_work_side_by_side_keeps_its_order_and_an_error_closes_the_scheduler():
    scheduler, names = reproduce.Scheduler(), ["30_a", "31_b", "32_c"]

    def work(name):
        with scheduler.slot(name):
            time.sleep(0.3 if name == "30_a" else 0)
            if name == "31_b" and broken:
                raise ValueError("broken")
            return name.upper()

    broken = False
    assert reproduce.side_by_side(work, names, 2, scheduler) == ["30_A", "31_B", "32_C"]
    assert not scheduler.closed and set(scheduler.seconds) == set(names)
    broken = True
    with pytest.raises(ValueError, match="broken"):
        reproduce.side_by_side(work, names, 2, scheduler)
    assert scheduler.closed


@pytest.fixture
def copy(tmp_path, write_notebook):
    """A checkout with three notebooks; the second says when the first is done, and the last two wait for a `go`."""
    shutil.copytree(paths.PACKAGE, tmp_path / "daedalus", ignore=shutil.ignore_patterns("__pycache__"))
    paths.write_text(tmp_path / "data" / "params.json", '{"smoke": {}, "paper": {}}')
    shutil.copy(paths.data_dir() / "training.json", tmp_path / "data")
    # A checker of addresses, which no notebook has, that jsonschema takes where it is there: its grammars take 1.4 s to build.
    paths.write_text(tmp_path / "rfc3987_syntax.py", "raise ImportError('it is not there')")
    wait = ("import pathlib, time\ndef wait(path):\n    while not pathlib.Path(path).exists(): time.sleep(0.05)\n")
    tell = "wait('../build/nbs/smoke/30_a.sha')\npathlib.Path('started').touch()\n"
    for name, code in (("30_a", "1"), ("31_b", f"{wait}{tell}wait('go')"), ("32_c", f"{wait}wait('go')")):
        write_notebook(code_cell("defaults", code, "parameters"), name=name)
    (tmp_path / "nbs").mkdir()
    for path in tmp_path.glob("3*.ipynb"):
        path.rename(tmp_path / "nbs" / path.name)
    return tmp_path


def commanded(copy, jobs):
    """How the command is started on that checkout, with a folder of its own for temporary files."""
    (copy / "temporary").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(copy), "TMPDIR": str(copy / "temporary")}
    return ([sys.executable, "-c", "from daedalus.cli import main; main()", "reproduce", "--jobs", jobs],
            dict(cwd=copy, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))


def leftovers(copy):
    """What a run has left of work in progress."""
    return [*(copy / "temporary").glob("daedalus-*"), *copy.rglob("*.running.ipynb")]


@pytest.mark.parametrize("number", ENDS, ids=lambda number: number.name)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_an_interrupted_run_resumes(copy, jobs, number):
    command, places = commanded(copy, jobs)
    with subprocess.Popen(command, text=True, **places, **HEARS) as running:
        try:
            until(lambda: (copy / "nbs" / "started").exists() or running.poll() is not None)
            running.send_signal(number)
            told, errors = running.communicate(timeout=PATIENCE)
        finally:
            running.kill()
    assert running.returncode == 128 + number, told + errors
    assert leftovers(copy) == []
    assert "run the same command again to resume" in errors and "failed in cell" not in told
    built = copy / "build" / "nbs" / "smoke"
    assert sorted(file.name for file in built.iterdir()) == ["30_a.ipynb", "30_a.sha"]
    assert re.search(r"^seconds: 30_a [\d.]+; [\d.]+ in all$", told, flags=re.MULTILINE)
    made = (built / "30_a.ipynb").stat().st_mtime_ns
    (copy / "nbs" / "go").touch()
    again = subprocess.run(command, text=True, timeout=2 * PATIENCE, **places)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 ran, 1 were current" in again.stdout
    assert (built / "30_a.ipynb").stat().st_mtime_ns == made


def test_what_a_killed_run_left_is_removed_by_the_next(copy):
    command, places = commanded(copy, "1")
    with subprocess.Popen(command, text=True, **places) as running:
        try:
            until(lambda: (copy / "nbs" / "started").exists() or running.poll() is not None)
        finally:
            running.kill()
    assert len(leftovers(copy)) == 1
    (copy / "nbs" / "go").touch()
    again = subprocess.run(command, text=True, timeout=2 * PATIENCE, **places)
    assert again.returncode == 0, again.stdout + again.stderr
    assert leftovers(copy) == []


def test_outputs_are_kept_and_sources_are_not_touched(write_notebook, tmp_path):
    path = write_notebook(code_cell("defaults", "n = 1", "parameters"), code_cell("show", "print(n)"))
    executed = reproduce.run_notebook(path, {"n": 4}, tmp_path / "out.ipynb")
    sources = [(cell["id"], cell["source"]) for cell in json.loads(path.read_text())["cells"]]
    assert reproduce.keep_outputs(path, executed)
    assert not reproduce.keep_outputs(path, executed)
    kept = json.loads(path.read_text())["cells"]
    assert [(cell["id"], "".join(cell["source"])) for cell in kept] == sources
    assert kept[1]["outputs"][0]["text"] == ["4\n"]


def test_a_path_of_this_machine_is_not_kept(write_notebook, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path)
    path = write_notebook(code_cell("defaults", "import os\nprint(os.getcwd())", "parameters"))
    executed = reproduce.run_notebook(path, {}, tmp_path / "out.ipynb")
    with pytest.raises(reproduce.NotebookError, match="cell 'defaults' shows a path of this machine"):
        reproduce.keep_outputs(path, executed)


def test_the_readme_is_the_front_page(write_notebook, tmp_path):
    shown = code_cell("show", "#| echo: true\nprint(4)") | {
        "outputs": [dict(output_type="stream", name="stdout", text="4\n")]
    }
    path = write_notebook(
        dict(cell_type="markdown", id="title", metadata={}, source="# Title\n![plot](../paper/figures/plot.png)"),
        code_cell("defaults", "n = 1", "parameters"),
        code_cell("hidden", "n = 2", "hide"),
        shown,
    )
    readme = reproduce.make_readme(path, tmp_path / "README.md").read_text()
    assert "# Title\n![plot](paper/figures/plot.png)\n\n```python\nprint(4)\n```\n\n```text\n4\n```\n" in readme
    assert "n = " not in readme


# The command line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("inference --n-episodes 0", "--n-episodes must be 1 or more, not 0"),
        ("inference --n-episodes -3", "--n-episodes must be 1 or more, not -3"),
        ("inference --seed -1", "--seed must be 0 or more, not -1"),
        ("inference --output no_such_folder/out.json", "output 'no_such_folder/out.json' cannot be written"),
        ("inference --output .", "output '.' is a folder"),
        ("search --budget 0", "--budget must be 1 or more, not 0"),
        ("reproduce --profile huge", "profile 'huge' is unknown: use one of quick, smoke, paper"),
        ("reproduce --only 99_missing", "notebook '99_missing' is unknown"),
        ("reproduce --only 70_theory --only 99_missing", "notebook '99_missing' is unknown"),
        ("reproduce --show", "--show needs --only NAME"),
        ("reproduce --show --only 70_theory --only 71_properties", "--show needs --only NAME, once"),
        ("reproduce --jobs 0", "--jobs must be 1 or more, not 0"),
        ("verify --jobs 0", "--jobs must be 1 or more, not 0"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(f"daedalus: {sentence}") and done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_defect_of_ours_is_not_called_bad_input():
    with pytest.raises(ValueError, match="could not convert"):
        says_what_is_wrong(lambda: np.array(["x"]).astype(float))()


def test_a_missing_package_is_named():
    def command():
        import no_such_package  # noqa: F401

    with pytest.raises(typer.Exit) as done:
        says_what_is_wrong(command)()
    assert done.value.exit_code == 1


def test_reproducing_needs_a_checkout(tmp_path):
    with pytest.raises(ValueError, match="there is no folder nbs/"):
        reproduce.notebooks(tmp_path / "nbs")


def test_an_interrupt_says_that_a_rerun_resumes(monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "reproduce", interrupted)
    done = CliRunner().invoke(app, ["reproduce"])
    assert done.exit_code == 130
    assert "run the same command again to resume" in done.stderr


# The package


def test_the_import_is_light():
    heavy = ("torch", "transformers", "openenv", "gradio", "fastapi", "nbdev", "papermill")
    code = f"import sys, daedalus; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("found, wide", [
    (["X86_V3", "X86_V4", "AVX512_ICL"], ["X86_V4", "AVX512_ICL"]), (["AVX2", "AVX512F"], ["AVX512F"]), (["X86_V3"], []),
    (["NEON", "ASIMD"], []), (None, [])])
def test_notebooks_round_alike_on_processors_with_wide_registers_and_without(found, wide, monkeypatch):
    extensions = {} if found is None else {"found": found}
    monkeypatch.setattr(np, "show_config", lambda mode: {"SIMD Extensions": extensions})
    for name in ("NPY_DISABLE_CPU_FEATURES", "OPENBLAS_CORETYPE"):
        monkeypatch.delenv(name, raising=False)
    given = reproduce._environment(NOTEBOOKS[0], "smoke", NOTEBOOKS[0])
    assert daedalus.wide_registers() == wide
    assert given.get("NPY_DISABLE_CPU_FEATURES") == (" ".join(wide) or None)
    assert given.get("OPENBLAS_CORETYPE") == ("Haswell" if wide else None)


@pytest.mark.parametrize("chosen, allowed", [(None, ("DEFAULT", "AVX2", "NO AVX")), ("default", ("DEFAULT", "NO AVX"))])
def test_pytorch_computes_alike_on_wide_registers_unless_told_otherwise(chosen, allowed):
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("only processors of this family have AVX-512")
    environment = {name: value for name, value in os.environ.items() if name != "ATEN_CPU_CAPABILITY"}
    environment |= {"ATEN_CPU_CAPABILITY": chosen} if chosen else {}
    code = "import torch, daedalus; torch.ones(9).sum(); print(torch.backends.cpu.get_cpu_capability())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() in allowed


# The notebooks


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_form_of_a_notebook(path):
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    cells = notebook["cells"]
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    ids = [cell["id"] for cell in cells]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name)] == []
    assert [name for name in ids if re.fullmatch(r"[0-9a-f]{8}", name)] == [], "ids must be given, not drawn"
    reproduce.check_parameters(path, {})
    for cell in cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
    machine = "|".join(("tmp", "root", "work", "home", "Users"))
    assert re.findall(rf"/(?:{machine})/\S*", json.dumps(notebook)) == []


def test_every_parameter_of_a_profile_exists():
    for profile in reproduce.PROFILES:
        for path, params in zip(NOTEBOOKS, reproduce.profile_params(profile).values(), strict=True):
            reproduce.check_parameters(path, params)


# Continuous integration


@pytest.fixture
def workflow():
    yaml = pytest.importorskip("yaml", reason="PyYAML, which papermill brings, is not installed")
    return yaml.safe_load((reproduce.CHECKOUT / ".github" / "workflows" / "reproduce.yml").read_text(encoding="utf-8"))


def commands_of(job):
    return [step["run"] for step in job["steps"] if "run" in step]


def test_the_workflow_runs_the_two_commands(workflow):
    assert {name: commands_of(job)[0] for name, job in workflow["jobs"].items()} == {
        "test": "make test", "reproduce": "make reproduce"}
    targets = set(re.findall(r"^([a-z]+):", (reproduce.CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE))
    made = re.findall(r"make (\w+)", " ".join(part for job in workflow["jobs"].values() for part in commands_of(job)))
    assert set(made) <= targets
    assert set(workflow[True]) == {"push", "pull_request", "workflow_dispatch"}   # YAML 1.1 reads `on` as true


def test_the_workflow_caches_by_content_and_hands_over_the_paper(workflow):
    for name, job in workflow["jobs"].items():
        used = {step["uses"].partition("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
        python = {"test": "${{ matrix.python-version }}", "reproduce": "3.11"}[name]
        assert used["actions/setup-python"]["python-version"] == python and used["actions/setup-python"]["cache"] == "pip"
        for path in used["actions/setup-python"]["cache-dependency-path"].split():
            assert (reproduce.CHECKOUT / path).exists()
        assert "build" in used["actions/cache"]["path"].split()
        patterns = re.findall(r"'([^']+)'", used["actions/cache"]["key"])
        assert patterns and all(list(reproduce.CHECKOUT.glob(pattern)) for pattern in patterns)
        kept = used["actions/upload-artifact"]["path"].split()
        assert kept == {"test": ["build/verify/claims.csv"], "reproduce": ["paper", "data/results"]}[name]


def test_the_workflow_names_no_host():
    text = (reproduce.CHECKOUT / ".github" / "workflows" / "reproduce.yml").read_text(encoding="utf-8")
    assert "://" not in text and not re.search(r"\b[\w-]+\.(org|com|io|net)\b", text)


@pytest.mark.parametrize("newer", [None, "3.12.0", "3.13.0"])
def test_the_pinned_packages_install_on_every_python_allowed(newer):
    """Else pip looks for another solution until the user gives up."""
    from importlib.metadata import distributions

    settings = ConfigParser()
    settings.read(paths.CHECKOUT / "settings.ini")
    python = newer or settings["DEFAULT"]["min_python"] + ".0"
    pins = [line for line in (paths.CHECKOUT / "constraints.txt").read_text().splitlines() if line[:1].isalnum()]
    installed = {canonicalize_name(each.name): each.metadata.get("Requires-Python") for each in distributions()}
    wanted = {name: installed[name] for name in (canonicalize_name(line.split("==")[0]) for line in pins) if name in installed}
    assert len(wanted) > 0.9 * len(pins)
    assert {name: spec for name, spec in wanted.items() if not SpecifierSet(spec or "").contains(python)} == {}
