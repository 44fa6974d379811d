"""The plan of the package: rooms in one direction, without circles, and notebooks whose numbers follow them."""

import ast
import re
from collections import Counter
from graphlib import TopologicalSorter

import pytest

import daedalus as dd
from daedalus.pipeline.reproduce import notebooks
from daedalus.paths import PACKAGE
from daedalus.results import module_files, notebook_code

ROOMS = ("ground", "market", "env", "designers", "training", "studies", "serving", "pipeline", "cli")  # upwards
GROUND = ("_runtime", "paths", "results", "schema", "tables", "jobs", "seeds")
NUMBERS = {"ground": 0, "market": 1, "env": 1, "designers": 2, "training": 3, "studies": 4, "serving": 5, "pipeline": 6, "cli": 6}
ELSEWHERE = {"90_paper": "it closes the row",
             "58_endpoint": "the decade of its room is full, and that of servers is where a reader looks for one",
             "59_leaderboard": "the decade of its room is full, and it stands behind the client that it asks by",
             "63_chat_server": "the decade of its room is full, and so is that of servers; the command line needs it",
             "64_harnesses": "the decade of its room is full, and it asks by the client and by the server of chats",
             "95_advice": "the decade of its room is full"}
FIRST_EDITION = """BEHAVIOUR BEST_FIXED Behaviour Brief DEFAULT_MECHANISM DESIGNERS DaedalusEnv FixedDesigner INFORMED_GREEDY
LanguageDesigner MarketState Mechanism MechanismError Objective Observation Outcome Outcomes Population PopulationError
RandomDesigner best_fixed check_designer designer evaluate oracle paired play simulate suite summary yardsticks""".split()
MODULES = {name: path for name, path in module_files().items() if path.stem != "__init__"}


def room(module):
    """The room that a module is in."""
    return "ground" if module in GROUND else module.split(".")[0]


def imported(module):
    """The modules that a module imports, also inside its functions, and for its types."""
    package = ["daedalus", *module.split(".")[:-1]]
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[:len(package) - node.level + 1] if node.level else []
            inside = ".".join([*above, *filter(None, [node.module])])
            names = [inside, *(f"{inside}.{alias.name}" for alias in node.names)]
        else:
            continue
        found |= {name.removeprefix("daedalus.") for name in names if name.startswith("daedalus.")}
    return found & set(MODULES)


GRAPH = {module: imported(module) for module in MODULES}


def test_the_graph_sees_what_is_imported():
    assert {"market.bidders", "market.rewards", "_runtime", "schema"} <= GRAPH["market.engine"]
    assert {"designers.language", "designers.models"} <= GRAPH["training.policy"]  # on one line and on several
    assert "env" in GRAPH["designers.base"] and "market.noise" in GRAPH["market.engine"]
    assert "studies.evaluate" in GRAPH["cli"]                                      # inside a function


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_no_module_imports_from_a_room_above_it(module):
    assert room(module) in ROOMS
    above = ROOMS[ROOMS.index(room(module)) + 1:]
    assert not [other for other in GRAPH[module] if room(other) in above]


def test_no_circle_of_imports():
    assert len(list(TopologicalSorter(GRAPH).static_order())) == len(GRAPH)  # else a CycleError names one


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*/__init__.py")), ids=lambda path: path.parent.name)
def test_the_door_of_a_room_holds_no_code(path):
    assert path.parent.name in ROOMS
    assert not [node for node in ast.parse(path.read_text(encoding="utf-8")).body
                if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]


def test_a_notebook_has_a_number_of_its_own_in_the_decade_of_its_room():
    numbers = Counter(path.stem[:2] for path in notebooks() if path.stem != "index")
    assert set(numbers.values()) == {1} and all(number.isdigit() for number in numbers)
    for path in notebooks():
        if exported := re.search(r"#\| default_exp ([\w.]+)", notebook_code(path)):
            where = room(exported[1])
            assert path.stem[0] == str(NUMBERS[where]) or path.stem in ELSEWHERE, (path.stem, where)


@pytest.mark.parametrize("name", FIRST_EDITION)
def test_every_public_name_is_still_there(name):
    assert getattr(dd, name) is not None and name in dd.__all__
