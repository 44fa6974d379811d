"""What keeps the project in order: the checks that `make test` runs, types that a checker understands, one version."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from configparser import ConfigParser
from importlib.metadata import packages_distributions

import pytest

import daedalus
from daedalus.paths import CHECKOUT

yaml = pytest.importorskip("yaml", reason="PyYAML, which papermill brings, is not installed")

MODULES = sorted((CHECKOUT / "daedalus").rglob("*.py"))
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(CHECKOUT / "settings.ini", encoding="utf-8")
PINS = dict(line.split("==") for line in (CHECKOUT / "constraints.txt").read_text().splitlines() if "==" in line)


def canonical(name):
    """The name of a distribution as pip compares it, without version and extras."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[=<>!~]", name)[0]).lower()


def imported(source):
    """The packages that a piece of code imports, at its top or within a function."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.partition(".")[0]


def sources():
    """Every module, and every cell of code of every notebook, by the name of its file."""
    yield from ((path.name, path.read_text(encoding="utf-8")) for path in MODULES)
    for path in sorted((CHECKOUT / "nbs").glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                yield path.name, "".join(cell["source"])


def test_every_package_that_is_imported_is_declared_and_pinned():
    extras = [names for extra, names in SETTINGS["extras"].items() if extra not in SETTINGS.defaults()]
    known = {canonical(name) for line in [SETTINGS["DEFAULT"]["requirements"], *extras] for name in line.split()}
    brought_by = packages_distributions()
    pins = {canonical(name) for name in PINS}
    ours = {canonical(line.split("==")[0]) for name in ("constraints-unsloth.txt", "constraints-inspect.txt")
            for line in (CHECKOUT / name).read_text().splitlines() if "==" in line}
    for where, source in sources():
        for top in set(imported(source)) - sys.stdlib_module_names - {"daedalus"}:
            names = {canonical(name) for name in brought_by.get(top, [top])}
            assert names & known, f"{where} imports {top}, which settings.ini does not name"
            assert names & (pins | ours), f"constraints.txt has no version of {top}"


def test_what_the_core_imports_at_its_top_is_a_requirement_of_the_core():
    core = {canonical(name) for name in SETTINGS["DEFAULT"]["requirements"].split()}
    for path in MODULES:
        if path.stem in ("__init__", "schema", "noise", "runtime", "results", "style", "market", "bidders", "cli"):
            tops = {top for node in ast.parse(path.read_text(encoding="utf-8")).body
                    if isinstance(node, ast.Import | ast.ImportFrom) for top in imported(ast.unparse(node))}
            for top in tops - sys.stdlib_module_names - {"daedalus"}:
                assert {canonical(name) for name in packages_distributions().get(top, [top])} & core, (path.stem, top)


def annotations(tree):
    """Every annotation of a module."""
    for node in ast.walk(tree):
        for name in ("annotation", "returns"):
            if getattr(node, name, None) is not None:
                yield getattr(node, name)


def calls(annotation):
    """The calls in an annotation, but for the marks behind the type in `Annotated[...]`."""
    if isinstance(annotation, ast.Subscript) and getattr(annotation.value, "id", "") == "Annotated":
        return calls(annotation.slice.elts[0])
    found = [annotation] if isinstance(annotation, ast.Call) else []
    return found + [call for child in ast.iter_child_nodes(annotation) for call in calls(child)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_annotations_are_types(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert [ast.unparse(found) for found in annotations(tree) if calls(found)] == []


def test_make_test_checks_style_and_types_as_the_project_file_says():
    tools = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]
    recipe = re.search(r"^test:.*\n((?:\t.*\n)+)", (CHECKOUT / "Makefile").read_text(), flags=re.MULTILINE)[1]
    assert re.search(r"^\t\$\(BIN\)/ruff check(?: --quiet)?$", recipe, re.MULTILINE)
    assert re.search(r"^\t\$\(BIN\)/mypy$", recipe, re.MULTILINE)
    assert {"E", "F", "B", "UP", "NPY", "RUF"} <= set(tools["ruff"]["lint"]["select"])
    assert tools["mypy"]["files"] == ["daedalus"] and tools["mypy"]["check_untyped_defs"]
    assert not any("daedalus" in name for part in tools["mypy"]["overrides"] for name in part["module"])
    assert {"ruff", "mypy"} <= set(SETTINGS["extras"]["dev"].split()) and {"ruff", "mypy"} <= PINS.keys()


@pytest.mark.parametrize("path", [*MODULES, *sorted((CHECKOUT / "tests").glob("*.py"))], ids=lambda path: path.stem)
def test_no_fault_is_waved_through_without_its_name(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"#\s*type:\s*ignore(?!\[)|#\s*noqa(?!: [A-Z])|#\s*mypy:|#\s*ruff: noqa", text)


def test_every_python_that_is_supported_is_tested():
    workflow, = (CHECKOUT / ".github" / "workflows").glob("*.yml")
    job = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]["test"]
    tested = job["strategy"]["matrix"]["python-version"]
    assert tested[0] == SETTINGS["DEFAULT"]["min_python"] and {"3.11", "3.12", "3.13"} <= set(tested)
    setup, = (step for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert setup["with"]["python-version"] == "${{ matrix.python-version }}"


def test_the_quick_tests_load_nothing_large():
    """`pytest -m "not slow"` is over soon, and every file that it leaves out exists."""
    from conftest import SLOW

    assert all((CHECKOUT / "tests" / name).is_file() for name in SLOW)
    quick = [path for path in (CHECKOUT / "tests").glob("test_*.py") if path.name not in SLOW]
    large = re.compile(r"^(?:import|from) (?:torch|transformers|trl|gradio|fastapi)\b", flags=re.MULTILINE)
    assert [path.name for path in quick if large.search(path.read_text(encoding="utf-8"))] == []


def test_trl_is_the_version_whose_algorithm_is_written_out():
    assert f"trl=={PINS['trl']}" in SETTINGS["extras"]["train"].split()


def test_there_is_one_version():
    version = SETTINGS["DEFAULT"]["version"]
    assert daedalus.__version__ == version
    for name in ("CITATION.cff", "openenv.yaml", "space/openenv.yaml"):
        assert str(yaml.safe_load((CHECKOUT / name).read_text(encoding="utf-8"))["version"]) == version, name
    newest = re.search(r"^## \[(.+?)\]", (CHECKOUT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert newest[1] == version
    assert [path.name for path in MODULES if f'"{version}"' in path.read_text(encoding="utf-8")] == []


@pytest.mark.parametrize("path", ["Dockerfile", "Dockerfile.train", "nbs/79_operations.ipynb", "nbs/34_export.ipynb"])
def test_images_are_named_after_the_version(path):
    named = re.findall(r"\bdaedalus(?:-train)?:(\d[\w.]*)", (CHECKOUT / path).read_text(encoding="utf-8"))
    assert set(named) == {daedalus.__version__}


def test_a_copy_that_is_not_installed_knows_its_version(tmp_path):
    (tmp_path / "settings.ini").write_text("[DEFAULT]\nlib_name = daedalus\nversion = 9.8.7\n", encoding="utf-8")
    (tmp_path / "daedalus").symlink_to(CHECKOUT / "daedalus")
    told = "import sys; sys.path.insert(0, '.'); import importlib.util as u\n"
    told += "from pathlib import Path; p = Path('daedalus/__init__.py').absolute(); text = p.read_text().split('from .')[0]\n"
    told += "place = {'__file__': str(p), '__name__': 'daedalus'}; exec(text, place); print(place['__version__'])"
    done = subprocess.run([sys.executable, "-c", told], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "9.8.7", done.stderr
