"""Figures: every one drawn from results alone, byte for byte the committed one, by one command."""

import json
import re

import matplotlib
import pytest
from typer.testing import CliRunner

from daedalus.cli import app
from daedalus.pipeline import paper
from daedalus.pipeline.reproduce import notebooks
from daedalus.paths import committed_dir, declared
from daedalus.results import as_kept, notebook_code, read_result
from daedalus.studies import figures
from test_rooms import GRAPH

matplotlib.use("Agg")

WRITES = {path.stem: {name.removesuffix("?") for name in declared(path)["writes"]} for path in notebooks()}


@pytest.mark.parametrize("name", sorted(figures.FIGURES))
def test_a_figure_is_drawn_again_from_its_results_to_the_byte(name, tmp_path):
    assert dict(figures.redraw([name], tmp_path)) == {name: True}
    for ending in ("png", "pdf"):
        assert (tmp_path / f"{name}.{ending}").read_bytes() == (committed_dir("figures") / f"{name}.{ending}").read_bytes()


def test_every_figure_is_among_them():
    there = {path.stem for path in committed_dir("figures").iterdir()}
    assert there == set(paper.figures_written()) == set(figures.FIGURES)


@pytest.mark.parametrize("name", ["adaptation", "findings_rings", "red_team_found", "theory_reserve", "training_signals"])
def test_a_result_that_does_not_hold_what_is_shown_is_named_in_one_sentence(name):
    results = figures.FIGURES[name].results
    with pytest.raises(ValueError, match=f"^figure '{name}' shows .* of the result {results[0]}.*: make the result again with"):
        figures.draw(name, *[{} for _ in results])


def test_figures_are_drawn_by_code_that_plays_nothing():
    assert GRAPH["studies.figures"] <= {"paths", "results", "schema", "studies.evaluate", "studies.published", "studies.style"}


@pytest.mark.parametrize("name", figures.FIGURES)
def test_the_experiment_that_keeps_a_figure_writes_its_results_and_draws_it_nowhere_else(name):
    keeping = [path for path in notebooks() if f"figures/{name}" in WRITES[path.stem]]
    assert len(keeping) == 1 and {f"results/{result}" for result in figures.FIGURES[name].results} <= WRITES[keeping[0].stem]
    assert notebook_code(keeping[0]).count(f'keep_figure("{name}"') == 1


def test_what_an_experiment_hands_over_is_drawn_as_it_will_be_read(tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(tmp_path))
    value = read_result("flaws")
    value["levers"] = dict(reversed(value["levers"].items()))
    figures.keep_figure("flaws_levers", value)
    assert (tmp_path / "flaws_levers.pdf").read_bytes() == (committed_dir("figures") / "flaws_levers.pdf").read_bytes()
    value["levers"]["reserve_price"]["open"]["value"] *= 1.01
    figures.keep_figure("flaws_levers", value)
    assert (tmp_path / "flaws_levers.pdf").read_bytes() != (committed_dir("figures") / "flaws_levers.pdf").read_bytes()


def test_a_value_as_it_is_kept():
    import numpy as np

    value = {3: np.arange(2), "x": (np.float64(0.1) + 0.2, None)}
    assert as_kept(value) == {"3": [0, 1], "x": [0.1 + 0.2, None]} == json.loads(json.dumps(as_kept(value)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        as_kept([float("nan")])


# The command


def run(*arguments):
    return CliRunner().invoke(app, ["figures", *arguments])


def test_the_command_draws_what_is_asked_for(tmp_path):
    told = run("scaling", "flaws_draw", "--output", str(tmp_path / "drawn"))
    assert told.exit_code == 0 and told.output == f"2 figures in {tmp_path / 'drawn'}, 2 of them as committed, to the byte\n"
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [
        "flaws_draw.pdf", "flaws_draw.png", "scaling.pdf", "scaling.png"]


def test_the_command_says_which_figure_is_not_the_committed_one(tmp_path, monkeypatch):
    drawing = figures.FIGURES["flaws_draw"]
    monkeypatch.setitem(figures.FIGURES, "flaws_draw", drawing._replace(draw=figures.FIGURES["flaws_levers"].draw))
    told = run("flaws_draw", "--output", str(tmp_path)).output
    assert told == f"flaws_draw: not as committed\n1 figures in {tmp_path}, 0 of them as committed, to the byte\n"


def test_another_folder_of_results_is_drawn_from(tmp_path, monkeypatch):
    text = re.sub(r"\d\.\d+", "0.5", (committed_dir("results") / "transparency.json").read_text(encoding="utf-8"))
    (tmp_path / "transparency.json").write_text(text, encoding="utf-8")
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path))
    assert "transparency: not as committed" in run("transparency", "--output", str(tmp_path)).output


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["boxplots"], "there is no figure 'boxplots': did you mean 'boxplot'?"),
    (["scaling", "nothing_like_it_at_all"], "there is no figure 'nothing_like_it_at_all'"),
    (["--output", str(committed_dir("results"))], "is among the committed results"),
    (["--output", __file__], "is a file: name a folder"),
])
def test_the_command_refuses_in_one_sentence(arguments, sentence, tmp_path):
    told = run(*arguments)
    assert told.exit_code == 2 and sentence in " ".join(told.output.split()) and "Traceback" not in told.output
