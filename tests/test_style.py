"""One look for all figures: the style file, the palette in colour and in greyscale, the files, the captions."""

import os
import re
import subprocess
import sys
from itertools import combinations

import matplotlib
import pytest
from matplotlib.figure import Figure

from daedalus.pipeline import paper, reproduce
from daedalus.studies import style
from daedalus.market.bidders import KINDS
from daedalus.designers.base import FixedDesigner
from daedalus.studies.evaluate import adaptation, adaptation_plot, yardsticks
from daedalus.paths import CHECKOUT
from daedalus.results import notebook_code, save_figure
from daedalus.schema import DEFAULT_MECHANISM

CODE = {path.stem: notebook_code(path) for path in reproduce.notebooks()}
DRAWING = {name: code for name, code in CODE.items() if "matplotlib.pyplot" in code}
TOLD_APART = 8  # difference of CIE lightness
TOGETHER = ("random", "informed-greedy", "best fixed", "contextual", "trained", "oracle")  # in one figure, as lines

matplotlib.use("Agg")


# The palette


@pytest.mark.parametrize("colour, light", [("black", 0), ("white", 100), ("#777777", 50.03), ("red", 53.24)])
def test_lightness_is_that_of_the_standard(colour, light):
    assert style.lightness(colour) == pytest.approx(light, abs=0.01)


def test_every_designer_has_a_colour_and_a_marker_of_its_own():
    assert set(style.COLOURS) == set(style.MARKERS)
    assert len({*style.COLOURS.values(), style.OTHER}) == len(style.COLOURS) + 1
    assert len(set(style.MARKERS.values())) == len(style.MARKERS)
    assert set(yardsticks()) | {"trained", "contextual"} <= set(style.COLOURS)


@pytest.mark.parametrize("one, other", list(combinations(TOGETHER, 2)))
def test_designers_that_stand_together_differ_in_greyscale(one, other):
    apart = abs(style.lightness(style.COLOURS[one]) - style.lightness(style.COLOURS[other]))
    assert apart >= TOLD_APART and style.MARKERS[one] != style.MARKERS[other]


def test_every_type_of_bidder_differs_in_greyscale_and_is_seen_on_white():
    assert list(style.BIDDER_COLOURS) == list(style.BIDDER_MARKERS) == list(KINDS)
    light = sorted(map(style.lightness, style.BIDDER_COLOURS.values()))
    assert all(b - a >= TOLD_APART for a, b in zip(light, light[1:]))
    luminance = ((light[-1] + 16) / 116) ** 3
    assert 1.05 / (luminance + 0.05) >= 3  # the contrast that web pages ask of graphics
    assert len(set(style.BIDDER_MARKERS.values())) == len(KINDS)


def test_the_colours_of_a_series_differ_in_greyscale():
    light = sorted(map(style.lightness, style.use_style()))
    assert len(light) >= 5 and all(b - a >= TOLD_APART for a, b in zip(light, light[1:]))


def test_what_reads_less_has_the_same_colour_and_another_line():
    full, limited = style.look("trained"), style.look("trained, published")
    assert full["color"] == limited["color"] == style.COLOURS["trained"] and full["marker"] == limited["marker"]
    assert full["linestyle"] != limited["linestyle"] and full["markerfacecolor"] != limited["markerfacecolor"]
    assert style.look("a stranger")["color"] == style.OTHER


def test_a_figure_of_designers_draws_them_with_their_look():
    who = dict.fromkeys(("oracle", "trained, published"), FixedDesigner(DEFAULT_MECHANISM))
    lines = adaptation_plot(adaptation(who, "stages", episodes=2, steps=2, resamples=20)).lines
    for line, name in zip(lines, ("oracle", "trained, published"), strict=True):
        wanted = style.look(name)
        assert (line.get_color(), line.get_marker()) == (wanted["color"], wanted["marker"])
        assert line.get_linestyle() == wanted["linestyle"]


# The notebooks


def test_notebooks_that_keep_figures_are_among_those_that_draw():
    keeping = {name for name, code in CODE.items() if re.search(r"\bsave_figure\(\w", code)} - {"01_results"}
    assert keeping <= set(DRAWING)
    assert len(keeping | {name for name, code in CODE.items() if "keep_figure(" in code}) >= 15


@pytest.mark.parametrize("name", DRAWING)
def test_a_notebook_that_draws_uses_the_style_and_no_other(name):
    code = DRAWING[name]
    called = len(re.findall(r"^ *(?:[\w, *]+ = )?use_style\(\);?$", code, re.MULTILINE))
    assert called == 1 or (called == 0 and "keep_figure(" in code)   # which calls it
    if name == "41_style":
        return
    assert not re.search(r"style\.use|rcdefaults|rcParams|set_theme|set_style|set_palette|set_context", code)
    if name != "55_arena":  # a page, with colours of its own for what is no figure
        assert not re.search(r"#[0-9a-fA-F]{6}\b", code), "a colour of its own"


# The files


def _drawn(steps):
    figure = Figure(figsize=(3, 2))
    axes = figure.subplots()
    axes.plot(range(steps), range(steps), **style.look("trained"), label="trained")
    axes.bar([1, 2], [1, 2], hatch="//", alpha=0.5)
    axes.legend()
    return figure


def test_two_saves_give_the_same_pdf_and_png(tmp_path, monkeypatch):
    style.use_style()
    for folder in "ab":
        monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(tmp_path / folder))
        assert save_figure(_drawn(5), "one") == tmp_path / folder / "one.png"
    for ending, start in ((".pdf", b"%PDF-"), (".png", b"\x89PNG")):
        first, second = ((tmp_path / folder / f"one{ending}").read_bytes() for folder in "ab")
        assert first == second and first.startswith(start)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["one.pdf", "one.png"]
    pdf = (tmp_path / "a" / "one.pdf").read_bytes()
    assert b"CreationDate" not in pdf and b"Producer" not in pdf and b"/Subtype /TrueType" not in pdf
    save_figure(_drawn(6), "one")
    assert (tmp_path / "b" / "one.pdf").read_bytes() != first


def test_figures_are_committed_as_pdf_and_png_and_no_notebook_has_stopped_writing_them():
    there = [path.relative_to(paper.SOURCE / "figures") for path in (paper.SOURCE / "figures").iterdir()]
    of_kind = {kind: {path.stem for path in there if path.suffix == kind} for kind in (".pdf", ".png")}
    assert of_kind[".pdf"] == of_kind[".png"] and len(there) == 2 * len(of_kind[".pdf"])
    assert of_kind[".pdf"] <= set(paper.figures_written())


def test_the_style_file_is_packed():
    assert '"*.mplstyle"' in (CHECKOUT / "setup.py").read_text(encoding="utf-8")
    assert (CHECKOUT / "data" / "daedalus.mplstyle").is_file()


# The captions

CAPTION = re.compile(r'#figure\(plot\("(\w+)".*?caption: \[(.*?)\],\n\) <', re.DOTALL)
CAPTIONS = CAPTION.findall((paper.SOURCE / "paper.typ").read_text(encoding="utf-8"))
COUNTED = re.compile(r"#[\w.]+[^#]{0,40}?\b(?:episodes|rounds|rings|mechanisms)\b")  # what is read, and of what


def test_every_figure_has_a_caption():
    assert sorted(name for name, _ in CAPTIONS) == paper.figures_read()


@pytest.mark.parametrize("name, caption", CAPTIONS)
def test_a_caption_says_how_many_which_seed_and_what_the_interval_is(name, caption):
    assert COUNTED.search(caption), "how many?"
    assert re.search(r"[sS]eed #sizes\(\"\w+\"\)\.seed", caption), "which seed?"
    assert re.search(r"intervals?\b|quartile", caption), "what is the interval?"


# In words


def test_a_figure_is_told_in_its_own_words():
    figure = _drawn(5)
    figure.axes[0].set(title="all", xlabel="step", ylabel="mean\nreward")
    assert style.describe(figure) == "Figure. all: mean reward against step (trained)"
    assert style.describe(Figure()) == "Figure. "


def test_a_figure_in_a_notebook_carries_its_description_and_is_the_same_picture():
    code = """
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance()
import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from daedalus.studies import style
figure = plt.figure()
figure.subplots().set(xlabel="step", ylabel="reward")
plain = shell.display_formatter.format(figure)
style.use_style(); style.use_style(); plt.rcdefaults()
told = shell.display_formatter.format(figure)
assert plain[1] == {} and plain[0]["image/png"] == told[0]["image/png"]
print(told[1]["image/png"]["alt"])
"""
    environment = {**os.environ, "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "Figure. reward against step\n", done.stderr
