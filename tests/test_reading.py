"""Notebooks as reading: each says what it promises and shows, and where to go from there."""

import ast
import json
import re

import pytest

from daedalus.pipeline import reproduce
from daedalus.results import notebook_code, read_result

NOTEBOOKS = {path.stem: path for path in reproduce.notebooks()}
TABLE = re.compile(r"^\|.*\|\n\|(?:\s*:?-+:?\s*\|)+\n(?:\|.*\|(?:\n|$))+", re.MULTILINE)


def texts(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_begins_with_a_title_a_promise_and_what_it_shows(name):
    cells = texts(NOTEBOOKS[name])
    kind, first = cells[0]
    assert kind == "markdown" and re.match(r"# \S", first), "no title"
    quotes = re.findall(r"(?:^>.*\n?)+", first, re.MULTILINE)
    assert len(quotes) == 1 and len(quotes[0].split()) >= 8, "no promise of one paragraph"
    if name == "index":  # its table is that of the notebooks, at the end
        first = next(text for kind, text in cells if kind == "markdown" and "\n|---" in text)
    table = TABLE.search(first)
    assert table and len(table[0].splitlines()) >= 3, "no table of what it exports or shows"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_ends_with_what_to_read_next(name):
    kind, last = texts(NOTEBOOKS[name])[-1]
    assert kind == "markdown", "the last cell is no text"
    named = set(re.findall(r"\b\d\d_\w+\b|\bindex\b", last))
    assert named - {name}, "no other notebook is named at the end"
    assert named <= set(NOTEBOOKS), "a notebook that is not there"


def test_links_between_notebooks_lead_somewhere():
    links = [(name, link) for name, path in NOTEBOOKS.items() for kind, text in texts(path) if kind == "markdown"
             for link in re.findall(r"\]\((?:\.\./nbs/)?([\w]+)\.ipynb\)", text)]
    assert len(links) > 100
    assert [pair for pair in links if pair[1] not in NOTEBOOKS] == []


def test_what_the_front_page_says_of_the_rivals_is_so():
    text = " ".join(text for _, text in texts(NOTEBOOKS["index"]))
    suites = read_result("evaluation")
    mean = {(suite, name): row["mean"] for suite in suites for name, row in suites[suite]["summary"].items()}
    against = {suite: suites[suite]["against contextual"]["trained"] for suite in suites}
    assert "it is a little ahead on `stages`; on `open` the two are not told apart" in text
    assert -0.02 < against["stages"]["low"] and against["stages"]["high"] < 0 and against["open"]["p (Holm)"] > 0.05
    assert "Given the published observation only, the trained designer is behind it on both suites" in text
    assert all(mean[suite, "trained, published"] < mean[suite, "contextual, published"] - 0.01 for suite in suites)
    assert "A share above 1 is no mistake" in text and suites["open"]["share of gap"]["trained"]["share"] > 1


# As pages

EXPERIMENTS = [name for name in NOTEBOOKS if re.match(r"[78]\d_", name) and re.search(r"(save|keep)_figure\(", notebook_code(NOTEBOOKS[name]))]
IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)]+)\)")
LINK = re.compile(r"```.*?```|\[[^\]]*\]\([^)]*\)|`[^`\n]*[^`\w\n][^`\n]*`", re.DOTALL)   # or code that is more than a name


@pytest.mark.parametrize("name", ["12_bidders", "42_evaluate", *EXPERIMENTS])
def test_what_came_out_stands_before_the_code(name):
    (_, _), (kind, text) = texts(NOTEBOOKS[name])[:2]
    assert kind == "markdown"
    shown = [file for _, file in IMAGE.findall(text)]
    own = set(re.findall(r'\b(?:save_figure\([\w.]+, |keep_figure\()"(\w+)"', notebook_code(NOTEBOOKS[name])))
    assert shown and {file.removeprefix("../paper/figures/").removesuffix(".png") for file in shown} <= own
    said = IMAGE.sub("", text).strip()
    assert said.endswith(".") and not re.search(r"\d", said), "a number that nobody computed"


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_every_image_is_there_and_is_told_in_words(name):
    for kind, text in texts(NOTEBOOKS[name]):
        for words, file in IMAGE.findall(text) if kind == "markdown" else ():
            assert len(words.split()) >= 4 and (NOTEBOOKS[name].parent / file).is_file()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_name_of_another_notebook_is_a_link_to_it(name):
    plain = " ".join(LINK.sub("", text) for kind, text in texts(NOTEBOOKS[name]) if kind == "markdown")
    assert set(re.findall(r"\b\d\d_[a-z_]+\b", plain)) & set(NOTEBOOKS) <= {name}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_code_fits_the_page(name):
    long = [line for kind, text in texts(NOTEBOOKS[name]) if kind == "code" for line in text.splitlines() if len(line) > 128]
    assert long == []


# Shown working

SHARE, SCREEN = 0.7, 40   # of the exported cells of a notebook that are shown in use right below; lines of a cell
EMPTY = {"bool", "callable", "dir", "hasattr", "help", "id", "isinstance", "issubclass", "print", "repr", "str", "type", "vars"}
SHOWS = {"print", "display", "show", "save_figure", "keep_figure"}
LONG = {"34_export#card-body": "one text, the card of a model, that is read as a whole"}


def tree_of(text):
    """The code of a cell, without the lines that are none of Python's."""
    return ast.parse("\n".join("" if line[:1] in "%!" else line for line in text.splitlines()))


def named_in(tree):
    """The names that a cell makes some use of: to ask whether a function is callable, or for its name, is none."""
    inside = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def is_use(node):
        around = inside[node]
        if isinstance(around, ast.Call) and node in around.args:
            return getattr(around.func, "id", None) not in EMPTY
        return not isinstance(around, ast.Expr) and not (isinstance(around, ast.Attribute) and around.attr.startswith("__"))

    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and is_use(node)}


def shows(tree):
    """Whether a cell shows or asserts something: its last value, a print, a figure."""
    called = (getattr(node.func, "id", None) or getattr(node.func, "attr", None)
              for node in ast.walk(tree) if isinstance(node, ast.Call))
    return (isinstance(tree.body[-1], ast.Expr) or not SHOWS.isdisjoint(called)
            or any(isinstance(node, ast.Assert) for node in ast.walk(tree))) if tree.body else False


def shown_below(code):
    """By the first name that an exported cell of `code` defines, whether a cell before the next exported one shows it."""
    shown, names = {}, set()
    for text in code:
        tree = tree_of(text)
        if text.startswith("#| export"):
            defined = [node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))]
            names = set(defined)
            shown |= dict.fromkeys(defined[:1], False)
            first = defined[0] if defined else None
        elif names and shows(tree) and names & named_in(tree):
            shown[first] = True
    return shown


def code_of(name):
    return [text for kind, text in texts(NOTEBOOKS[name]) if kind == "code"]


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if any("#| export" in text for text in code_of(name))])
def test_what_a_notebook_exports_is_shown_in_use_right_below(name):
    """Of the exported cells that define a function or a class, at least SHARE are followed, before the next exported
    cell, by a cell that uses one of these by its name and shows something: a value, a print, a figure or an assertion.
    """
    shown = shown_below(code_of(name))
    never = [first for first, one in shown.items() if not one]
    assert len(never) <= (1 - SHARE) * len(shown) + 1e-9, f"not shown: {', '.join(never)}"


@pytest.mark.parametrize("below, shown", [
    ("f(2)", True), ("assert f(2) == 4", True), ("print(f(2))", True), ("x = f(2)", False), ("callable(f)", False), ("f", False),
    ("print(f)", False), ("f.__name__", False), ("g(2)", False), ("list(map(f, (1, 2)))", True), ("", False)])
def test_only_a_real_use_counts_as_shown(below, shown):
    assert shown_below(["#| export\ndef f(x):\n    return 2 * x", below]) == {"f": shown}


def test_an_exported_cell_fits_a_screen():
    tall = {f"{name}#{cell['id']}" for name, path in NOTEBOOKS.items()
            for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]
            if "".join(cell["source"]).startswith("#| export") and len("".join(cell["source"]).splitlines()) > SCREEN}
    assert tall == set(LONG), "split these into functions that fit a screen, and strike those that do"
    assert all(len(reason.split()) >= 3 for reason in LONG.values())
