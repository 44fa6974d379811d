"""Names are the field's: none of ours that say the same in pictures, and none that means two things."""

import io
import json
import re
import tokenize

import pytest

from daedalus.pipeline.reproduce import notebooks

REFUSED = {"found", "told", "luck", "crowd", "crowds", "Crowd", "Manners", "manners", "Room", "Desk", "desk", "minds", "Minds", "hunt",
           "hunts", "Hunt", "processor", "processors", "LITTER", "EPISODE", "CHOICE_BLOCK"}   # each was a picture or had two meanings
KEPT = {"81_scaling": {"told"}}   # a parameter whose name is in committed results


def names(code):
    """Identifiers of a piece of Python, also within formatted strings."""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.NAME:
            yield token.string
        elif token.type == tokenize.STRING and token.string[:1] in "fF":
            yield from re.findall(r"[A-Za-z_]\w*", " ".join(re.findall(r"\{([^{}]*)\}", re.sub(r"(['\"])\w+\1", "", token.string[2:-1]))))


@pytest.mark.parametrize("code, seen", [("found = 1", True), ("x = 'found'", False), ("f'{told}'", True), ("f'told {x}'", False),
                                        ("x.luck", True), ("x = 1  # found", False), ("class Room: pass", True)])
def test_a_name_is_seen_and_a_word_is_not(code, seen):
    assert bool(REFUSED & set(names(code))) == seen


@pytest.mark.parametrize("path", notebooks(), ids=lambda path: path.stem)
def test_names_are_the_fields(path):
    code = ["".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    used = {name for source in code if not source.startswith(("%", "!")) for name in names(source + "\n")}
    assert not REFUSED & used - KEPT.get(path.stem, set())


def test_learners_of_a_game_have_runs_and_no_sessions():
    """A session is a market's round of lots or, in OpenEnv's protocol, a client's episode: not a third thing."""
    path = next(path for path in notebooks() if path.stem == "13_learners")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert not [cell["id"] for cell in cells if re.search("session", "".join(cell["source"]) + cell["id"], re.IGNORECASE)]
