"""The first hour: what somebody meets who has just found the project."""

import importlib.util
import json
import re
import subprocess
import sys
import types
from configparser import ConfigParser

import pytest
from typer.testing import CliRunner

from daedalus import paths
from daedalus.pipeline import reproduce
from daedalus.cli import app
from daedalus.paths import CHECKOUT, write_text

SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(CHECKOUT / "settings.ini", encoding="utf-8")
EXTRAS = {name: line.split() for name, line in SETTINGS["extras"].items() if name not in SETTINGS.defaults()}
MAKEFILE = (CHECKOUT / "Makefile").read_text(encoding="utf-8")
CELLS = {cell["id"]: "".join(cell["source"]) for cell in json.loads(
    (reproduce.NOTEBOOKS / "index.ipynb").read_text(encoding="utf-8"))["cells"]}
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


# The headline again


def test_quick_plays_the_headline_with_what_the_committed_one_was_made_with():
    quick, paper = (reproduce.profile_params(profile)["42_evaluate"] for profile in ("quick", "paper"))
    assert set(quick) == set(paper)
    fewer = {"many", "shown"}   # episodes of the tables, and of what is shown further down
    assert {name: quick[name] for name in quick if name not in fewer} == {
        name: paper[name] for name in paper if name not in fewer}
    assert quick["many"] >= 30, "the published figure shows 30 episodes"


def test_quick_runs_the_comparison_before_the_paper_and_nothing_else():
    assert [task["name"] for task in reproduce.tasks("quick")] == ["42_evaluate", "90_paper"]
    assert len(list(reproduce.tasks("smoke"))) == len(reproduce.notebooks())


def test_quick_writes_below_build_and_reads_what_it_wrote():
    made = {file for file, _ in reproduce.headline().values()}
    kept = {file for _, file in reproduce.headline().values()}
    assert all(file.is_relative_to(reproduce.BUILD) for file in made)
    assert all(file.is_file() and not file.is_relative_to(reproduce.BUILD) for file in kept)


@pytest.fixture
def two_files(tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path)

    def files(name, made, kept):
        return {"one": (write_text(tmp_path / "made" / name, made), write_text(tmp_path / "kept" / name, kept))}

    return files


@pytest.mark.parametrize("name, made, kept, same", [
    ("a.pdf", "1", "1", True), ("a.pdf", "1", "2", False),
    ("a.json", '{"value": 1, "provenance": 1}', '{"value": 1, "provenance": 2}', True),
    ("a.json", '{"value": 1}', '{"value": 2}', False)])
def test_what_was_made_is_compared_by_bytes_or_by_value(two_files, name, made, kept, same):
    (line, equal), = reproduce._compared(two_files(name, made, kept))
    assert equal is same
    assert f"made/{name}" in line and f"kept/{name}" in line and ("NOT the same" in line) is not same


def test_outputs_of_few_episodes_do_not_go_back_into_the_notebooks():
    with pytest.raises(ValueError, match="profile 'quick' plays fewer episodes"):
        reproduce.reproduce("quick", keep=True)


# The front page


def test_quick_is_the_first_command_of_the_front_page():
    assert re.findall(r"^make (\w+)", README, re.MULTILINE)[0] == "quick"
    assert re.search(r"^quick: .*## ", MAKEFILE, re.MULTILINE)


def test_the_light_set_up_has_what_the_full_one_has_less():
    light, full = (re.search(rf"^{target}: EXTRAS := (.*)$", MAKEFILE, re.MULTILINE)[1].split(",")
                   for target in (r"\.venv/\.plays", r"\$\(READY\)"))
    assert set(light) <= {*full, "designer"} and set(EXTRAS["designer"]) <= set(EXTRAS["train"]) & set(EXTRAS["serve"])
    assert set(light + full) <= set(EXTRAS)


def test_the_address_of_the_project_stands_in_one_place():
    address = SETTINGS["DEFAULT"]["repository"]
    assert paths.repository() == address and not address.endswith("/")
    assert f"git clone {address} " in README and f"git+{address}" in README
    wheel = f"{address}/releases/latest/download/daedalus_mechanisms-{SETTINGS['DEFAULT']['version']}-py3-none-any.whl"
    assert f'"{wheel}"' in CELLS["colab"], "write the address and the version of settings.ini into the cell `colab` of index too"


def test_an_installed_copy_knows_the_address_from_its_metadata(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    links = {"Project-URL": ["Homepage, https://a.b", "Repository, https://c.d/e"]}
    monkeypatch.setattr(paths, "metadata", lambda name: types.SimpleNamespace(get_all=links.get))
    assert paths.repository() == "https://c.d/e"
    assert 'project_urls={"Repository": meta["repository"]}' in (CHECKOUT / "setup.py").read_text(encoding="utf-8")


def test_the_front_page_names_where_results_go():
    for name in ("DAEDALUS_RESULTS_DIR", "DAEDALUS_FIGURES_DIR"):
        assert name in README and name in CliRunner().invoke(app, ["--help"]).output


# The first snippet, on the core alone

BLOCKED = '''
import importlib.metadata as meta, re, sys
from packaging.requirements import Requirement

def closure(names):
    "The distributions that these bring, in lower case."
    found, rest = set(), list(names)
    while rest:
        name = re.sub(r"[-_.]+", "-", rest.pop()).lower()
        if name in found: continue
        found.add(name)
        try: needs = map(Requirement, meta.requires(name) or ())
        except meta.PackageNotFoundError: continue
        rest += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return found

core = closure(CORE)
brought = {top: {re.sub(r"[-_.]+", "-", name).lower() for name in names} for top, names in meta.packages_distributions().items()}
blocked = {top for top, names in brought.items() if not names & core and top != "daedalus"} - set(sys.stdlib_module_names)

class Block:
    "Finds nothing that the core does not bring."
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked: raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [name for name in sys.modules if name.partition(".")[0] in blocked]: del sys.modules[name]
sys.meta_path.insert(0, Block())
assert {"torch", "transformers", "gradio", "optuna", "papermill"} <= blocked | missing
'''


def on_the_core_alone(code):
    """What code prints, and writes to standard error, where only the core requirements are installed."""
    extras = ("torch", "transformers", "gradio", "optuna", "papermill")
    missing = {name for name in extras if importlib.util.find_spec(name) is None}
    first = f"CORE, missing = {SETTINGS['DEFAULT']['requirements'].split()!r}, {missing!r}\n"
    return subprocess.run([sys.executable, "-c", first + BLOCKED + code], capture_output=True, text=True)


BLOCKS = re.findall(r"```(python|text)\n(.*?)```", README, re.DOTALL)


def test_the_first_snippet_runs_on_the_core_alone_and_prints_what_stands_below_it():
    (kind, code), (shown, printed) = BLOCKS[:2]
    assert (kind, shown) == ("python", "text")
    done = on_the_core_alone(code)
    assert (done.returncode, done.stdout) == (0, printed), done.stderr


def test_the_second_snippet_says_which_extra_it_needs():
    code, prose = next((code, README[:README.index(code)].splitlines()) for kind, code in BLOCKS if "LanguageDesigner" in code)
    done = on_the_core_alone(f"import daedalus as dd\nenv = dd.DaedalusEnv(dd.Population.stage(4), episode_length=10)\n{code}")
    said = done.stderr.splitlines()[-1].removeprefix("ModuleNotFoundError: ")
    assert said == f"a language model needs torch: {paths.install_hint('torch')}"
    told = next(line for line in reversed(prose) if "extra" in line)
    assert "`designer`" in told and f"`{said.partition(':')[0]}: pip install 'daedalus-mechanisms[designer]'`" in told
