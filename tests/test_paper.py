"""The paper: nothing in it is typed, nothing it reads is missing, and what is committed is what the sources give.

Prose may hold no digit, in any section: text outside of equations, labels, reference keys, raw text, comments and code.
Code between the words may hold digits only as whole numbers (how many decimals, which column) and with a unit of
length; a text in the code that holds a digit must name something in a result. Equations of the sections on results, the
abstract among them, may hold no decimal number. `numbers.typ`, which has no prose, may hold no decimal number but
lengths.
"""

import json
import re
from functools import cache
from pathlib import Path

import pytest

from daedalus.pipeline import paper
from daedalus.paths import CHECKOUT

pytest.importorskip("typst")

SOURCE = (paper.SOURCE / "paper.typ").read_text(encoding="utf-8")
NUMBERS = (paper.SOURCE / "numbers.typ").read_text(encoding="utf-8")
REFERENCES = (paper.SOURCE / "refs.bib").read_text(encoding="utf-8")
RESULT_SECTIONS = ("abstract", "results", "flaws", "ablations", "limits")

# Reading Typst


SKIPPED = re.compile(r"//[^\n]*|`+[^`]*`+|\\.|<[a-z][a-z0-9-]*>|@[\w-]+", re.DOTALL)  # no prose, wherever it stands
ESCAPE = re.compile(r"\\u\{\w+\}|\\\\d")  # a character by its number, or any digit in a pattern
STATEMENT = re.compile(r"(?:let|set|show|import)\b")
TOKEN = re.compile(r'//[^\n]*|"((?:[^"\\]|\\.)*)"|(\d[\d.]*)(%|[a-z]+)?|[A-Za-z_][\w-]*')
BRANCH = re.compile(r"(?:if|for|while)\b")


class Reader:
    """Splits Typst source into pieces: (kind, section, text), the kinds being prose, math, number and string."""

    def __init__(self, source):
        self.source, self.at, self.section, self.pieces = source, 0, "abstract", []

    def peek(self):
        return self.source[self.at : self.at + 1]

    def keep(self, kind, text):
        self.pieces.append((kind, self.section, text))

    def markup(self, end=""):
        """Read text up to `end`, or to the end of the source."""
        while self.peek() and self.peek() != end:
            skipped = SKIPPED.match(self.source, self.at)
            if skipped:
                line = self.source[self.source.rfind("\n", 0, self.at) + 1 : self.at]
                if line.startswith("= ") and skipped[0].startswith("<"):
                    self.section = skipped[0][1:-1]
                self.at = skipped.end()
            elif self.peek() == "$":
                self.math()
            elif self.peek() == "#":
                self.at += 1
                self.expression()
            elif self.peek() == "[":
                self.block("[")
            else:
                self.keep("prose", self.peek())
                self.at += 1

    def math(self):
        end = self.source.index("$", self.at + 1)
        self.keep("math", re.sub(r"#[\w.]+\([^$]*?\)", "", self.source[self.at + 1 : end]))
        self.at = end + 1

    def block(self, opening):
        """Read from an opening bracket to its partner."""
        self.at += 1
        closing = {"(": ")", "{": "}", "[": "]"}[opening]
        self.markup("]") if opening == "[" else self.code(closing)
        assert self.peek() == closing, f"{opening!r} has no end"
        self.at += 1

    def code(self, end):
        """Read code up to a character of `end` that no bracket holds."""
        while self.peek() and self.peek() not in end:
            token = TOKEN.match(self.source, self.at)
            if token:
                if token[1] is not None:
                    self.keep("string", token[1])
                if token[2] and not token[3]:
                    self.keep("number", token[2])
                self.at = token.end()
            elif self.peek() in "([{":
                self.block(self.peek())
            elif self.peek() == "$":
                self.math()
            elif self.peek() == "`":
                self.at = self.source.index("`", self.at + 1) + 1
            else:
                self.at += 1

    def expression(self):
        """Read what follows a number sign in a text."""
        if STATEMENT.match(self.source, self.at):
            before, setting = len(self.pieces), self.source.startswith(("set", "show"), self.at)
            self.code("\n")
            self.pieces[before:] = [piece for piece in self.pieces[before:] if not setting or piece[0] != "string"]
            return None
        if BRANCH.match(self.source, self.at):
            self.code("[{")
            self.block(self.peek())
            self.otherwise()
            return self.no_semicolon()
        name = re.compile(r"[A-Za-z_][\w-]*").match(self.source, self.at)
        if name:
            self.at = name.end()
        while suffix := re.compile(r"[(\[{]|\.[a-z][\w-]*").match(self.source, self.at):
            self.block(suffix[0]) if len(suffix[0]) == 1 else setattr(self, "at", suffix.end())
        return self.no_semicolon()

    def no_semicolon(self):
        """A semicolon ends an expression and is not printed: whoever means one writes a backslash before it."""
        near = self.source[max(0, self.at - 60) : self.at + 1]
        assert self.peek() != ";", f"write \\; for a semicolon after an expression: {near!r}"

    def otherwise(self):
        """Read the other branch of a condition, if there is one."""
        if other := re.compile(r"\s*else\s*").match(self.source, self.at):
            self.at = other.end()
            self.expression()


def read(source):
    reader = Reader(source)
    reader.markup()
    return reader.pieces


@cache
def known():
    """Every text that the results hold, as a name or as a value."""
    def texts(value):
        if isinstance(value, dict):
            return {text for key, part in value.items() for text in (key, *texts(part))}
        if isinstance(value, list):
            return {text for part in value for text in texts(part)}
        return {value} if isinstance(value, str) else set()

    files = [*(CHECKOUT / "data" / "results").glob("*.json"), CHECKOUT / "data" / "published.json"]
    return {text for file in files for text in texts(json.loads(file.read_text(encoding="utf-8")))}


def is_known(text):
    """Whether a text in the code names something in a result."""
    return text in known() or any(name.startswith(text) for name in known() if len(text) > 3)


def typed(source):
    """What was typed that ought to be read: (section, text) of each offence."""
    pieces, found = read(source), []
    words = {}
    for kind, section, text in pieces:
        if kind == "prose":
            words[section] = words.get(section, "") + text
        elif kind == "number" and "." in text:
            found.append((section, text))
        elif kind == "string" and re.search(r"\d", ESCAPE.sub("", text)) and not is_known(text):
            found.append((section, text))
        elif kind == "math" and section in RESULT_SECTIONS and re.search(r"\d[.,]\d", text):
            found.append((section, text))
    near = re.compile(r".{0,30}\d+.{0,10}")
    return found + [(section, place) for section, text in words.items() for place in near.findall(text)]


# Nothing is typed


def test_no_number_is_typed_in_the_paper():
    assert typed(SOURCE) == []


def test_numbers_typ_holds_no_result():
    assert [text for kind, _, text in read(NUMBERS) if kind == "number" and "." in text] == []


@pytest.mark.parametrize("sentence", [
    "It earns 0.66.", "It earns $0.66$ more.", "It earns #num(0.66).", '#text("0.66") is earned.',
    "See @fig and 3 others.",
    "#figure(plot(\"a\"), caption: [Mean of 30 episodes.])", "#if has(\"a\") [\nIt earns 0.66.\n]", "- 12 of them",
    "#let gained = [+0.1]\nso it is", "_0.66_", "*0.66*", "#by-sign(x, \"66 % more\", \"less\") and 7",
])
def test_a_typed_number_is_found(sentence):
    assert typed(f"= Results <results>\n\n{sentence}\n")


@pytest.mark.parametrize("sentence", [
    "It earns #num(row.at(\"CVaR 20 %\"), digits: 2) (@table-1).", "In @name2020key and `42_evaluate`.",
    "#v(0.3em) and",
    "#figure(plot(\"a\", width: 72%), caption: [All.])", "with $u_0 = 1$ there", "// 30 episodes\nA sentence.",
    "#let close(x) = x.at(0)\nA sentence.", "#if has(\"a\") [yes] else [no], or so.",
])
def test_what_may_hold_digits(sentence):
    assert typed(f"= Results <results>\n\n{sentence}\n") == []


def test_decimals_are_allowed_in_the_equations_of_the_model_alone():
    assert typed("= The market <market>\n\n$x = 0.5$\n") == []
    assert typed("= The market <market>\n\n$x = 0.5$\n\n= Results <results>\n\n$x = 0.5$\n") != []


# References


def test_every_reference_is_in_the_list_and_every_entry_is_cited():
    entries = re.findall(r"^@\w+\{([\w-]+),", REFERENCES, re.MULTILINE)
    assert len(set(entries)) == len(entries) > 25
    labels = set(re.findall(r"<([a-z][a-z0-9-]*)>", SOURCE))
    cited = set(re.findall(r"(?<!\w)@([\w-]+)", re.sub(r"//[^\n]*", "", SOURCE))) - labels
    assert cited == set(entries)


def _entries():
    """The fields of each reference, as they are typed."""
    parts = re.split(r"^@", REFERENCES, flags=re.MULTILINE)[1:]
    field = re.compile(r"(\w+) = \{(.*?)\},? ?(?=\w+ = |\n)")
    return {re.match(r"\w+\{([\w-]+),", part)[1]: dict(field.findall(part)) for part in parts}


def test_every_reference_can_be_found():
    for key, entry in _entries().items():
        assert entry["author"] and entry["title"] and re.fullmatch(r"\d{4}", entry["year"]), key
        assert entry["year"] in key and len({"journal", "booktitle", "publisher", "url"} & set(entry)) >= 1, key
        assert "journal" not in entry or {"volume", "pages"} <= set(entry), key


def _plain_name(author):
    return re.sub(r"\\.|[{}]", "", author.split(",")[0])


@pytest.mark.parametrize("source", sorted({row["source"] for row in paper.committed_value("findings")["rows"]}))
def test_every_source_of_the_findings_is_a_reference(source):
    if source == "this project's rule":
        return
    for work in source.split(";"):
        named, year = re.match(r"\s*(.+?) (\d{4})", work).groups()
        names = [re.sub(r"[^\x00-\x7f]", "o", name) for name in re.split(r", | and ", named.removesuffix(" et al."))]
        authors = [[_plain_name(author) for author in entry["author"].split(" and ")]
                   for entry in _entries().values() if entry["year"] == year]
        whole = not named.endswith(" et al.")
        assert [who for who in authors if (who == names if whole else who[0] == names[0] and len(who) > 2)], work


# What is read is written


def test_every_figure_is_there_and_saved_by_a_notebook():
    written = paper.figures_written()
    assert len(paper.figures_read()) >= 8
    assert [name for name in paper.figures_read() if name not in written] == []
    conditional = {"red_team_tails", "transparency"}
    for name in set(paper.figures_read()) - conditional:
        assert (paper.SOURCE / "figures" / f"{name}.pdf").is_file(), name


def test_every_result_is_listed_and_written_by_a_notebook():
    there, written = paper.paper_facts()["results"], paper.results_written()
    assert set(paper.results_read()) <= set(paper.RESULTS)
    assert set(paper.NEEDED) <= set(paper.results_read())
    for name in there:
        record = json.loads((CHECKOUT / "data" / "results" / f"{name}.json").read_text(encoding="utf-8"))
        assert written.get(name) == record["provenance"]["notebook"], name


def test_a_missing_result_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(paper, "data_dir", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="the paper needs result 'baselines'"):
        paper.paper_facts()


# What is committed


def test_the_committed_pdf_is_what_the_sources_give():
    fresh = paper.compile_paper()
    assert fresh[:5] == b"%PDF-" and fresh == paper.compile_paper()
    advice = "run `daedalus reproduce --profile paper --only 90_paper`"
    assert fresh == (paper.SOURCE / "paper.pdf").read_bytes(), advice


def test_the_paper_is_a_paper():
    assert 8 <= len(paper.page_images(20)) <= 14


def test_the_committed_tables_are_what_the_results_give(tmp_path):
    fresh = {file.name: file.read_bytes() for file in paper.write_tables(tmp_path)}
    committed_value = {file.name: file.read_bytes() for file in (paper.SOURCE / "tables").iterdir()}
    assert fresh == committed_value
    assert {"baselines.csv", "designers.tex", "training_stages.csv", "findings.csv", "flaws.csv"} <= set(fresh)
    assert all(b"\\toprule" in text for name, text in fresh.items() if name.endswith(".tex"))


def test_a_smoke_run_leaves_the_committed_paper_alone(monkeypatch, tmp_path):
    monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(tmp_path / "figures"))
    assert paper.paper_dir() == tmp_path / "figures" / "paper"
    monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(Path(paper.SOURCE) / "figures"))
    assert paper.paper_dir() == paper.SOURCE


@pytest.mark.parametrize("result, words", [("evaluation", "trained"), ("flaws", "rank")])
def test_the_paper_follows_its_results(result, words, tmp_path, monkeypatch):
    """Another value in a result gives another paper."""
    import shutil

    for part in ("paper", "data"):
        shutil.copytree(CHECKOUT / part, tmp_path / part)
    monkeypatch.setattr(paper, "CHECKOUT", tmp_path)
    monkeypatch.setattr(paper, "SOURCE", tmp_path / "paper")
    before = paper.compile_paper()
    path = tmp_path / "data" / "results" / f"{result}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    changed = record["value"]["open"]["summary"][words] if result == "evaluation" else record["value"][words]["open"]
    changed["mean" if result == "evaluation" else "value"] = -0.123
    path.write_text(json.dumps(record), encoding="utf-8")
    assert paper.compile_paper() != before
