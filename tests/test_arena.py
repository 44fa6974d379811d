"The arena: its numbers are the engine's, its picture says what it says, and its page works in a browser."
import base64
import contextlib
import io
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import threading
import uuid
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

import numpy as np
import pandas as pd
import pytest
from shared import PATIENCE, until

import daedalus as dd
from daedalus.serving import arena as arena_module
from daedalus.serving.arena import (
    EXAMPLES, NOBODY, SCORE_NAMES, SIDES, VISITORS, BriefError, Choice, arena_of, arena_page, episode_table, link_of,
    mount_arena, open_arena, own_head, populations, read_brief)
from daedalus.market.bidders import KINDS
from daedalus.market.engine import SCORES, advance, new_market
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY

CROWD = dd.Population.stage(4)
NAMES = ["random", "greedy"]
START = Choice("stage 3: 8 bidders, 1 unit", 0, "greedy", "random")
CONTEST = {"random": dd.DESIGNERS["random"], "greedy": dd.DESIGNERS["greedy"]}


def played(steps, designers=CONTEST, population=CROWD, seed=5, length=10, revealed=False):
    arena = open_arena(population, list(designers), seed, length, revealed)
    for _ in range(steps):
        arena = arena.step(designers)
    return arena


class Reader(HTMLParser):
    "The elements of a page; fails where a tag is left open."
    VOID = {"path", "br", "meta", "link", "input"}

    def __init__(self, text):
        super().__init__()
        self.open, self.found, self.text = [], [], {}
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append((tag, len(self.found) - 1))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, at in self.open:
            self.text[at] = self.text.get(at, "") + data

    def having(self, **wanted):
        "Attributes and text of the elements with these data attributes."
        wanted = {f"data-{name}": value for name, value in wanted.items()}
        return [(attributes, self.text.get(at, "")) for at, (_, attributes) in enumerate(self.found)
                if all(attributes.get(name) == value for name, value in wanted.items())]


# The state

def test_both_sides_are_what_play_and_evaluate_say():
    arena = played(10)
    table = dd.evaluate(CONTEST, [CROWD], episodes=1, seed=5).set_index("designer")
    for side in arena.sides:
        steps = dd.play(CONTEST[side.designer], CROWD, 5)
        for score in SCORES:
            assert [getattr(turn.outcome, score) for turn in side.turns[1:]] == steps[score].tolist()
        assert [turn.mechanism for turn in side.turns[1:]] == steps["mechanism"].tolist()
        assert side.mean_reward == pytest.approx(table.loc[side.designer, "reward"], abs=1e-12)


def test_both_sides_meet_the_same_luck():
    left, right = played(3).sides
    for one, other in zip(left.turns, right.turns):
        assert np.array_equal(one.session.value, other.session.value)


def test_an_arena_opens_with_the_warm_up():
    [turn] = open_arena(CROWD, ["anybody"], 5).sides[0].turns
    last = advance(new_market([CROWD], 5), DEFAULT_MECHANISM, 3)[0, -1]
    assert turn.mechanism == DEFAULT_MECHANISM and np.array_equal(turn.session.scores, last)


def test_a_step_leaves_the_arena_before_it_as_it_was():
    arena = played(2)
    before = arena._repr_html_()
    assert arena.step(CONTEST)._repr_html_() == arena.step(CONTEST)._repr_html_()
    assert arena._repr_html_() == before


def test_an_arena_ends_with_its_last_step():
    arena = played(2, length=2)
    assert arena.done and not played(1, length=2).done
    assert arena.step(CONTEST)._repr_html_() == arena._repr_html_()


@pytest.mark.parametrize("designers", [[], ["a", "b", "c"], "ab"])
def test_an_arena_has_one_or_two_sides(designers):
    with pytest.raises(ValueError, match="designers must be one or two names"):
        open_arena(CROWD, designers)


def test_a_designer_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="designer must be one of random, greedy, not 'somebody'"):
        open_arena(CROWD, ["somebody"]).step(CONTEST)


def failing(error):
    def designer(observation):
        raise error

    return designer


@pytest.mark.parametrize("designer, words", [
    (failing(TimeoutError("the model is <b>busy</b>\nfor now")), "bad gave no mechanism: the model is <b>busy</b>."),
    (failing(dd.MechanismError("reserve_price is missing")), "bad gave no mechanism: reserve_price is missing."),
    (failing(OSError("/secret/path")), "bad gave no mechanism: OSError."),
    (failing(ValueError()), "bad gave no mechanism: ValueError."),
    (lambda observation: "first_price", "bad gave no mechanism: a designer must return a Mechanism, not 'first_price'."),
])
def test_a_failing_designer_is_a_sentence_and_the_other_side_goes_on(designer, words):
    contest = {"bad": designer, "greedy": CONTEST["greedy"]}
    arena = played(2, contest)
    bad, good = arena.sides
    assert bad.trouble.startswith(words) and arena.trouble and not good.trouble
    assert len(bad.turns) == 1 and good.turns[2].outcome == played(2).sides[1].turns[2].outcome
    assert [text for attributes, text in Reader(arena._repr_html_()).having() if attributes.get("role") == "alert"] == [
        bad.trouble]
    healed = arena.step(CONTEST | {"bad": CONTEST["greedy"]})
    assert not healed.trouble and healed.sides[0].turns[1].outcome == good.turns[1].outcome


# The picture

@pytest.mark.parametrize("steps", [0, 1, 4])
def test_every_number_in_the_picture_is_the_engines(steps):
    arena = played(steps)
    page = Reader(arena._repr_html_())
    for side, where in zip(arena.sides, SIDES):
        last = side.turns[-1]
        expected = {score: getattr(last.outcome, score) for score in SCORES}
        expected |= {"mean": side.mean_reward, "price": last.session.price[~np.isnan(last.session.price)].mean()}
        for score, number in expected.items():
            [(attributes, text)] = [found for found in page.having(score=score, side=where) if "data-value" in found[0]]
            assert float(attributes["data-value"]) == pytest.approx(number, abs=1e-12, nan_ok=True)
            assert text == ("–" if math.isnan(number) else f"{number:.3f}")


def test_every_curve_has_a_point_for_each_step():
    arena = played(4)
    page = Reader(arena._repr_html_())
    for score in SCORE_NAMES:
        for side, where in zip(arena.sides, SIDES):
            [(attributes, _)] = [found for found in page.having(score=score, side=where) if "d" in found[0]]
            points = [tuple(map(float, point.split(","))) for point in attributes["d"][1:].split("L")]
            assert points == [(10 * at, pytest.approx(100 - 100 * getattr(turn.outcome, score), abs=0.006))
                              for at, turn in enumerate(side.turns)]


def test_changed_levers_are_marked():
    page = Reader(played(1)._repr_html_())
    for name in FIELDS:
        [(attributes, text)] = page.having(lever=name, side="right")
        changed = getattr(INFORMED_GREEDY, name) != getattr(DEFAULT_MECHANISM, name)
        assert (attributes.get("class") == "dd-changed") == changed == ("was" in text)
    assert page.having(lever="reserve_price", side="right")[0][1] == "0.18was 0.10"
    [(_, log)] = [found for found in page.having(step="1") if "class" not in found[0]][-1:]
    assert "reserve price 0.10 → 0.18" in log and "reveal reserve" not in log
    unchanged = Reader(played(2)._repr_html_())
    assert not any("was" in text for name in FIELDS for _, text in unchanged.having(lever=name, side="right"))


def test_who_is_who_is_told_when_asked_or_at_the_end():
    hidden, end = played(1, length=2), played(2, length=2)
    assert ">exploiter" not in hidden._repr_html_()
    assert ">exploiter" in hidden.reveal()._repr_html_() and ">exploiter" in end._repr_html_()
    assert ">exploiter" not in hidden.reveal().reveal(False)._repr_html_()


def test_names_are_text_and_not_markup():
    designers = {"<script>alert(1)</script>": CONTEST["greedy"]}
    page = Reader(played(1, designers)._repr_html_())
    assert not any(tag == "script" for tag, _ in page.found)


@pytest.mark.parametrize("population", [dd.Population(truthful=1), dd.Population(colluder=64, n_items=8),
                                        dd.Population(exploiter=3, second_unit=0.0, n_items=2), *dd.suite("open")[:4]])
def test_any_population_can_be_drawn(population):
    Reader(played(2, population=population, revealed=True)._repr_html_())


def test_a_market_without_a_sale_can_be_drawn():
    closed = {"closed": dd.FixedDesigner(DEFAULT_MECHANISM.replace(reserve_price=0.9))}
    arena = played(2, closed, dd.Population(truthful=2, value_high=0.5))
    assert "0 of 16 units sold" in arena._repr_html_()
    Reader(arena._repr_html_())


def test_populations_to_choose_from():
    assert list(populations().values()) == dd.suite("stages") + dd.suite("open")
    assert "stage 3: 8 bidders, 1 unit" in populations()


def test_everything_but_the_page_works_without_gradio():
    code = ("import sys; sys.modules['gradio'] = None; import daedalus as dd; from daedalus.serving.arena import open_arena\n"
            "arena = open_arena(dd.Population.stage(1), ['greedy']).step(dd.DESIGNERS)\n"
            "assert arena._repr_html_().count('<svg') == 6")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=PATIENCE)


def test_what_others_wrote_is_text_and_never_a_tag():
    """Names of designers, their errors, titles and links reach the page through templates that escape."""
    mean = "<img src=x onerror=alert(1)> & 'it'"
    arena = played(1, {mean: failing(ValueError(mean)), "greedy": CONTEST["greedy"]})
    pages = [arena._repr_html_(), arena_module._about({mean: mean}), arena_module.filled("title.html", title=mean, description=""),
             own_head('<meta charset="utf-8" />', mean, mean)]
    for page in pages:
        assert "<img" not in page and "&lt;img" in page
    style = arena_module.filled("arena.css", kinds=arena_module._kinds())
    assert f"<style>\n{style}</style>" in pages[0] and '"Segoe UI"' in style


def test_a_template_that_asks_for_what_is_not_there_fails():
    import jinja2

    with pytest.raises(jinja2.UndefinedError, match="'description' is undefined"):
        arena_module.filled("title.html", title="")


def test_no_page_of_the_arena_is_written_in_code():
    assert not re.search(r"</?(div|span|table|td|p|b|i|svg|path|style)\b", Path(arena_module.__file__).read_text(encoding="utf-8")
                         .replace(arena_module.LIVE, ""))


def test_the_pages_of_the_service_are_templates_and_escape_what_they_show():
    pages = pytest.importorskip("daedalus.serving.pages")
    assert not re.search(r"</?(div|table|td|th|p|h1|h2|figure|img|style)\b", Path(pages.__file__).read_text(encoding="utf-8"))
    call = {"description": "<b>", "responses": {"200": {"description": "x & y"}},
            "parameters": [{"name": "n", "schema": {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}}]}
    text = pages.description({"info": {"title": "T"}, "paths": {"/n": {"get": call}}})
    assert "<h3><code>GET /n</code></h3><p>&lt;b&gt;</p>" in text and "<li>200: x &amp; y</ul>" in text
    assert "<th><code>n</code><td>whole number from 1 or null<td></tr>" in text


def test_types_differ_in_shape_and_letter_and_not_only_in_colour():
    page = Reader(played(10, length=10)._repr_html_())
    style = next(text for at, text in page.text.items() if page.found[at][0] == "style")
    outlines = [style.split(f".dd-k{kind} {{ ")[1].split("--dd-shape: ")[1].split(";")[0] for kind in range(5)]
    assert len(set(outlines)) == 5
    assert len({kind[0] for kind in KINDS}) == 5
    for at, (tag, attributes) in enumerate(page.found):
        if tag == "b" and "dd-k" in attributes.get("class", ""):
            raise AssertionError(f"{page.text[at]} is coloured text")
    marks = [attributes for tag, attributes in page.found if tag == "i" and "style" in attributes
             and "dd-mark" in attributes.get("class", "")]
    assert len(marks) > 100 and all("dd-k" in attributes["class"] for attributes in marks)
    assert ">8<small>E</small>" in played(10, length=10)._repr_html_()


def test_headings_logs_and_meanings_are_there_for_everybody():
    page = Reader(played(1)._repr_html_())
    headings = [tag for tag, _ in page.found if tag in ("h1", "h2", "h3", "h4")]
    assert headings == ["h2"] * 5
    logs = [attributes for _, attributes in page.found if attributes.get("class") == "dd-log"]
    assert [log["aria-label"] for log in logs] == ["What random on the left changed", "What greedy on the right changed"]
    assert all(log["tabindex"] == "0" and log["role"] == "region" for log in logs)
    assert not [attributes for _, attributes in page.found if "title" in attributes]
    shown = "".join(page.text[at] for at, (tag, _) in enumerate(page.found) if tag in ("th", "figcaption"))
    for name in FIELDS:
        assert dd.schema.MechanismFields.model_fields[name].description in shown
    assert all(meaning in shown for _, _, meaning in SCORE_NAMES.values())


# A brief

LOW = "maximise welfare x revenue; reserve_price is at most 0.05"


def briefed(text, steps, designers=CONTEST):
    arena = open_arena(CROWD, list(designers), 5, brief=read_brief(text))
    for _ in range(steps):
        arena = arena.step(designers)
    return arena


def test_under_a_brief_everybody_obeys_it_and_is_rewarded_for_what_it_asks_for():
    brief, contest = dd.Brief.from_text(LOW), CONTEST | {"reads": dd.designer("contextual-brief")}
    table = dd.play(dd.designer("contextual-brief"), CROWD, 5, brief=brief)
    fixed = dd.play(INFORMED_GREEDY.replace(reserve_price=0.05), CROWD, 5, brief=brief)
    arena = briefed(LOW, 3, {name: contest[name] for name in ("greedy", "reads")})
    greedy, reads = arena.sides
    assert [turn.written for turn in greedy.turns[1:]] == [INFORMED_GREEDY] * 3
    assert all(turn.mechanism.reserve_price == 0.05 for turn in greedy.turns[1:])
    for side, expected in ((greedy, fixed), (reads, table)):
        assert [turn.mechanism for turn in side.turns[1:]] == expected["mechanism"][:3].tolist()
        assert [turn.outcome.reward for turn in side.turns[1:]] == expected["reward"][:3].tolist()
    page = arena._repr_html_()
    assert "Mended, because the brief says: reserve_price must be at most 0.05, not 0.18." in page and f"</b> {LOW}</p>" in page
    assert "mean over rounds of welfare x revenue" in page and "Mended" not in briefed(LOW, 0)._repr_html_()


def test_a_link_keeps_the_brief_and_what_was_mended():
    arena = briefed(LOW, 2)
    again = arena_of(link_of(arena), START, NAMES)
    assert again.brief == arena.brief and again._repr_html_() == arena._repr_html_()
    assert {row["brief"] for row in episode_table(arena).to_dict("records")} == {LOW}


def test_what_the_service_rewards_is_what_designers_are_told():
    seen = []
    arena = open_arena(CROWD, ["mine"], 0, objective=dd.Objective.from_text("revenue"))
    arena.step({"mine": lambda observation: seen.append(observation) or DEFAULT_MECHANISM})
    assert seen[0].brief == dd.Brief.from_text("maximise revenue")


@pytest.mark.parametrize("text, words", [
    ("maximise profit", "brief: an objective is a product such as 'welfare x revenue^2', each of welfare, .*, not 'profit'"),
    ("maximise revenue^4", "brief: revenue must be a number from 0 to 3, not 4.0"),
    ("maximise revenue; reserve_price is at most 7", "brief: reserve_price must be a number from 0 to 0.9, not 7"),
    ("maximise revenue; reserve_price is low", "brief: reserve_price must be a number from 0 to 0.9, not low"),
    ("maximise revenue; auction_type is vcg; reserve_price is 0.1",
     'brief: auction_type must be one of "first_price", "second_price", "vcg", not vcg'),
    ('maximise revenue; auction_type is "dutch"', "brief: auction_type must be one of .*, not 'dutch'"),
    ("maximise revenue; reveal_reserve is True", "brief: reveal_reserve must be one of false, true, not True"),
    ("maximise revenue; fee is 1", "brief: 'fee' is not a lever; the levers are auction_type, .*"),
    ("maximise revenue; reserve_price is at most 0.1; reserve_price is at least 0.2",
     "brief: no mechanism obeys it: reserve_price must be at most 0.10, not 0.20"),
    ('maximise revenue; words: "as we like it"', "brief: words must be left out, .*"),
    ("revenue", "brief: a brief is a text such as .*, not 'revenue'"),
    ("m" * 1001, "brief: it must have at most 1000 characters, not 1001"),
])
def test_what_is_no_brief_is_a_sentence_with_the_value_and_what_is_allowed(text, words):
    with pytest.raises(BriefError) as refused:
        arena_of(urlencode({"brief": text}), START, NAMES)
    assert all(part in str(refused.value) for part in words.split(".*")) and str(refused.value).startswith(words.split(".*")[0])


@pytest.mark.parametrize("text", [None, "", "  ", *EXAMPLES.values()])
def test_an_example_is_canonical_and_nothing_is_no_brief(text):
    brief = read_brief(text)
    assert brief is None if not (text or "").strip() else brief.text() == text


# A place to come back to

@pytest.mark.parametrize("steps, designers, revealed", [
    (0, ["random"], False), (3, ["random", "greedy"], True), (10, ["greedy", "random"], False)])
def test_a_link_leads_back_to_the_same_bits_without_asking_a_designer(steps, designers, revealed):
    arena = played(steps, {name: CONTEST[name] for name in designers}, revealed=revealed)
    again = arena_of(link_of(arena), START, NAMES)
    assert again._repr_html_() == arena._repr_html_()
    assert link_of(again) == link_of(arena) and len(link_of(arena)) < 1500


def test_a_link_keeps_sides_of_different_lengths_and_any_amount():
    contest = {"bad": failing(TimeoutError("busy")),
               "odd": dd.FixedDesigner(DEFAULT_MECHANISM.replace(reserve_price=0.1 + 0.2, shill_penalty=1e-7))}
    arena = played(2, contest)
    again = arena_of(link_of(arena), START, list(contest))
    assert [len(side.turns) for side in again.sides] == [1, 3]
    assert again.sides[1].turns[2][:2] == arena.sides[1].turns[2][:2]


def test_a_link_by_hand_says_only_what_it_wants():
    arena = arena_of("seed=7&utm_source=mail", START, NAMES)
    assert (arena.seed, arena.population) == (7, dd.Population.stage(3))
    assert [side.designer for side in arena.sides] == ["greedy", "random"]


@pytest.mark.parametrize("link, words", [
    ("seed=1.5", "seed must be a whole number from 0 to 4294967295, not 1.5"),
    ("seed=-1", "seed must be a whole number from 0 to 4294967295, not -1"),
    ("seed=4294967296", "seed must be a whole number from 0 to 4294967295, not 4294967296"),
    ("seed=nan", "seed must be a whole number from 0 to 4294967295, not nan"),
    ("seed=1e999", "seed must be a whole number from 0 to 4294967295, not 1e999"),
    ("seed=two", "seed must be a whole number from 0 to 4294967295, not two"),
    ("population=nobody", "population must be one of stage 0: "),
    ("left=nobody", "left must be one of random, greedy, not 'nobody'"),
    ("right=me", "right must be one of random, greedy, nobody, not 'me'"),
    ("left_rules=1_2", "left_rules, step 1: a mechanism is an array of shape"),
    ("left_rules=x", "left_rules, step 1: could not convert"),
    ("right_rules=" + "1_7_0_0_1_1_0_1.2_0.6_1.9_2", "right_rules, step 1: reserve_price must be a number from 0 to 0.9"),
    ("right_rules=" + "~".join(["1_0.1_0_0_1_1_0_1.2_0.6_1.9_2"] * 11), "right_rules must have at most 10 steps, not 11"),
])
def test_a_link_to_nowhere_is_a_sentence(link, words):
    with pytest.raises(ValueError) as refused:
        arena_of(link, START, NAMES)
    assert str(refused.value).startswith(words) and "\n" not in str(refused.value)


def test_a_population_without_a_name_has_no_link():
    with pytest.raises(ValueError, match="population must be one of populations"):
        link_of(played(0, population=dd.Population(truthful=1)))


def test_the_table_is_the_episode():
    arena = played(2)
    table = pd.read_csv(io.StringIO(episode_table(arena).to_csv(index=False)))
    assert table[["side", "step"]].values.tolist() == [[side, step] for side in SIDES for step in range(3)]
    for row in table.to_dict("records"):
        turn = arena.sides[SIDES.index(row["side"])].turns[row["step"]]
        assert all(row[score] == getattr(turn.outcome, score) for score in SCORES)
        assert all(row[name] == getattr(turn.mechanism, name) for name in FIELDS)


# The page

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def test_a_page_needs_a_designer():
    pytest.importorskip("gradio", reason="gradio is not installed")
    with pytest.raises(ValueError, match="designers must hold at least one designer"):
        arena_page({})


def gradios_page():
    "The page's frame as Gradio sends it."
    import gradio

    return (Path(gradio.__file__).parent / "templates" / "frontend" / "index.html").read_text(encoding="utf-8")


def test_the_page_names_the_project_to_those_who_share_it():
    pytest.importorskip("gradio", reason="gradio is not installed")
    page = own_head(gradios_page().replace("{{ config.get('root', '') | toorjson }}", '"http://inside:7860"'), "An <arena>")
    head = page[:page.index("<body")]
    assert head.count('property="og:title"') == 1 and 'content="An &lt;arena&gt;"' in head
    assert head.count('property="og:description"') == head.count('name="description"') == head.count("<title>") == 1
    assert "twitter" not in head and "Click to try" not in head and 'lang="en"' in head
    assert "manifest" not in head and "inside" not in head


def test_code_and_paper_are_where_the_package_says():
    home = dd.paths.repository()
    assert arena_module.project_links() == {"the code": home, "the paper": f"{home}/blob/main/paper/paper.pdf"}
    assert (dd.results.CHECKOUT / "paper" / "paper.pdf").exists()


@contextlib.contextmanager
def serving(app):
    "An application on a port of its own."
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


def behind(prefix, app):
    "A proxy that answers below a prefix and takes it away before it passes a request on."
    async def proxy(scope, receive, send):
        if scope["type"] != "lifespan" and not scope["path"].startswith(prefix + "/"):
            scope = scope | {"path": "/nothing/here"}
        elif scope["type"] != "lifespan":
            scope = scope | {"path": scope["path"].removeprefix(prefix),
                             "raw_path": scope["raw_path"].removeprefix(prefix.encode())}
        await app(scope, receive, send)

    return proxy


@pytest.fixture(scope="module")
def app():
    "The page alone, in a hurry."
    for package in ("gradio", "fastapi", "uvicorn", "torch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import fastapi

    designers = {"trained": dd.LanguageDesigner.load(), "failing": failing(TimeoutError("it is busy")),
                 "greedy": CONTEST["greedy"], "slow": slow, "random": Dear()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena_module, "BEAT", 0.2)
        patch.setattr(arena_module, "VISITORS", FEW)
        return mount_arena(fastapi.FastAPI(), designers, links={"the figures": "plots/"})


class Dear(dd.RandomDesigner):
    "A designer that says what it costs."
    def cost(self):
        return "a second"


FEW = 8   # visitors that are remembered here
RELEASE = threading.Event()


def slow(observation):
    "A designer that thinks until it is told to answer."
    assert RELEASE.wait(2 * PATIENCE)
    return INFORMED_GREEDY


@pytest.fixture(scope="module")
def address(app):
    "The page, served at /, below a prefix that the server does not know, and below one that it was told."
    async def anywhere(scope, receive, send):
        path = scope.get("path", "")
        if path.startswith("/told/"):
            scope = scope | {"root_path": "/told"}
        await (behind("/tool", app) if path.startswith("/tool/") else app)(scope, receive, send)

    with serving(anywhere) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    "Chromium without a window."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visit(browser, address, step=0, seed=0, **options):
    "A page of a visitor of its own, with what it complained about and what it asked other hosts for."
    page, faults = browser.new_context(**options).new_page(), []
    page.set_default_timeout(1000 * PATIENCE)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address.partition("?")[0], "data:", "blob:"))
            else faults.append(request.url))
    page.goto(address)
    reached(page, step, seed)
    left = dict(parse_qsl(address.partition("?")[2])).get("left", "trained")
    page.wait_for_function(f"document.querySelector('#arena .dd-name').innerText === {left!r}")
    return page, faults


def reached(page, step, seed=0):
    page.wait_for_selector(f'#arena .daedalus[data-step="{step}"][data-seed="{seed}"]')


def message(page):
    "The sentence that is read out."
    return page.inner_text("#message [role=status][aria-live=polite]")


def choose(page, control, name):
    page.click(f"#{control} input")
    options = page.get_attribute(f"#{control} input", "aria-controls")
    page.locator(f'#{options} [role=option][aria-label="{name}"]').click()
    page.wait_for_function("([control, name]) => document.querySelector(`#${control} input`).value === name", arg=[control, name])


STROKES = """paths => paths.map(path => ({side: path.dataset.side, score: path.dataset.score,
    points: path.getAttribute("d").split("L").length, length: path.getTotalLength(),
    stroke: getComputedStyle(path).stroke, width: path.getBoundingClientRect().width}))"""
TOO_WIDE = """root => [...root.querySelectorAll("*")].filter(e => e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.className)"""


def check_curves(page, points):
    curves = page.eval_on_selector_all("#arena .dd-curve", STROKES)
    assert {(curve["score"], curve["side"]) for curve in curves} == {(s, w) for s in SCORE_NAMES for w in SIDES}
    for curve in curves:
        assert curve["points"] == points and curve["length"] > 0 and curve["width"] > 8 * (points - 1)
        assert curve["stroke"].startswith("rgb")


def check_numbers(page, tables):
    for where, table in tables.items():
        for score in SCORE_NAMES:
            number = page.locator(f'#arena b[data-score="{score}"][data-side="{where}"]')
            assert float(number.get_attribute("data-value")) == table[score].iloc[-1]
            assert number.inner_text() == f"{table[score].iloc[-1]:.3f}"
        mean = page.locator(f'#arena b[data-score="mean"][data-side="{where}"]').get_attribute("data-value")
        assert float(mean) == pytest.approx(table["reward"].mean(), abs=1e-12)


def test_ten_steps_of_the_trained_designer_in_a_browser(address, browser):
    page, faults = visit(browser, address, viewport={"width": 1280, "height": 900})
    other, other_faults = visit(browser, address, viewport={"width": 390, "height": 800}, color_scheme="dark")
    page.click("#auto")
    reached(page, 10)
    check_curves(page, 11)
    population = dd.Population.stage(3)
    check_numbers(page, {"left": dd.play(dd.LanguageDesigner.load(), population, 0),
                         "right": dd.play(CONTEST["random"], population, 0)})
    page.wait_for_function("document.querySelector('#auto').innerText === 'Auto'")
    assert page.inner_text("#message p").startswith("Step 10 of 10: R ") and "Reset starts it again" in message(page)

    reached(other, 0)
    for step in (1, 2):
        other.click("#step")
        reached(other, step)
    check_curves(other, 3)
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    assert other.eval_on_selector("#arena", TOO_WIDE) == []
    assert faults == other_faults == []


def test_levers_reveal_failure_and_reset_in_a_browser(address, browser):
    page, faults = visit(browser, address)
    choose(page, "left", "manual")
    choose(page, "right", "failing")
    page.fill("#lever-reserve_price input[type=number]", "0.5")
    page.press("#lever-reserve_price input[type=number]", "Tab")
    page.click("#auto")
    page.wait_for_selector("#arena [role=alert]")
    assert page.inner_text("#arena [role=alert]").startswith("failing gave no mechanism: it is busy.")
    assert page.get_attribute('[data-lever="reserve_price"][data-side="left"]', "data-value") == "0.5"
    page.wait_for_function("document.querySelector('#auto').innerText === 'Auto'")
    assert page.locator("#arena .dd-who").count() == 0
    page.check("#reveal input")
    page.wait_for_selector("#arena .dd-who")
    page.fill("#seed input", "7")
    page.press("#seed input", "Tab")
    reached(page, 0, seed=7)
    page.click("#step")
    reached(page, 1, seed=7)
    rules = DEFAULT_MECHANISM.replace(reserve_price=0.5)
    check_numbers(page, {"left": dd.play(dd.FixedDesigner(rules), dd.Population.stage(3), 7).head(1)})
    assert faults == []


def test_only_another_choice_begins_another_episode(address, browser):
    page, faults = visit(browser, address + "?left=greedy")
    page.click("#step")
    reached(page, 1)
    asked = []
    page.on("request", lambda request: asked.append(request.url) if "queue/join" in request.url else None)
    for control in ("population", "left", "right"):
        page.click(f"#{control} input")
        page.wait_for_selector("[role=option]")
        page.click("h1")
    choose(page, "left", "greedy")   # as it was
    page.focus("#population input")
    for _ in range(12):
        page.keyboard.press("Tab")
    page.click("#seed input")
    page.press("#seed input", "Enter")
    page.wait_for_timeout(300)
    assert asked == [] and page.get_attribute("#arena .daedalus", "data-step") == "1"
    page.click("#step")
    reached(page, 2)
    page.fill("#seed input", "1.5")
    page.press("#seed input", "Tab")
    refusal = "seed must be a whole number from 0 to 4294967295, not 1.5."
    page.wait_for_function(f"document.querySelector('#message p').innerText === {refusal!r}")
    assert page.get_attribute("#arena .daedalus", "data-step") == "2"
    choose(page, "right", NOBODY)   # refused as long as the seed is wrong
    page.fill("#seed input", "")
    begun = page.locator('#arena .daedalus[data-step="0"]')
    # Enter again, as anybody would, where the page was too busy to take in what was typed before it.
    until(lambda: (page.press("#seed input", "Enter"), page.wait_for_timeout(300), begun.count())[-1])
    assert page.locator("#arena .dd-name.dd-right").count() == 0
    assert faults == []


def test_a_step_shows_at_once_that_it_is_under_way_and_the_keyboard_keeps_its_place(address, browser):
    page, faults = visit(browser, address + "?left=greedy&right=slow", viewport={"width": 390, "height": 800})
    RELEASE.clear()
    page.focus("#step")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#message p').innerText.startsWith('The designers write')")   # while they do
    RELEASE.set()
    reached(page, 1)
    assert message(page).startswith("Step 1 of 10: R ")
    page.focus("#auto")
    for label in ("Pause", "Auto"):
        page.keyboard.press("Enter")
        page.wait_for_function(f"document.querySelector('#auto').innerText === '{label}'")
        assert page.evaluate("document.activeElement.id") == "auto"
    page.keyboard.press("Enter")
    reached(page, 10)
    assert page.evaluate("document.activeElement.id") == "auto"
    walk = []
    for _ in range(12):
        page.keyboard.press("Tab")
        walk.append(page.evaluate("document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"))
    wanted = ["Reset", "What greedy on the left changed", "What slow on the right changed", "Link to this step", "JSON",
              "CSV", "the figures"]
    assert [name for name in walk if name in wanted] == wanted
    top = page.eval_on_selector(".dd-log", "log => { log.focus(); return [log.scrollTop, log.scrollHeight > log.clientHeight] }")
    page.keyboard.press("PageDown")
    page.wait_for_function("document.querySelector('.dd-log').scrollTop > 0")
    assert top == [0, True] and faults == []


@pytest.mark.parametrize("prefix", ["", "tool/", "told/"])
def test_a_link_and_the_files_of_an_episode_in_a_browser_also_below_a_prefix(address, browser, prefix):
    page, faults = visit(browser, address + prefix + "?left=greedy&seed=7", seed=7)
    page.click("#step")
    reached(page, 1, seed=7)
    page.check("#reveal input")
    page.wait_for_selector("#arena .dd-who")
    links = page.eval_on_selector_all("a[href]", "links => Object.fromEntries(links.map(a => [a.innerText, a.href]))")
    assert all(to.startswith((address + prefix, "data:")) for to in links.values())
    assert links["the figures"] == address + prefix + "plots/"
    steps = json.loads(base64.b64decode(links["JSON"].partition(",")[2]))
    expected = dd.play(CONTEST["greedy"], dd.Population.stage(3), 7)["reward"][0]
    assert [row["reward"] for row in steps if (row["side"], row["step"]) == ("left", 1)] == [expected]
    assert len(pd.read_csv(io.BytesIO(base64.b64decode(links["CSV"].partition(",")[2])))) == len(steps) == 4
    before = page.inner_html("#arena")
    other, other_faults = visit(browser, links["Link to this step"], step=1, seed=7)
    assert other.inner_html("#arena").split("daedalus", 1)[1] == before.split("daedalus", 1)[1]
    assert other.input_value("#seed input") == "7" and other.is_checked("#reveal input")
    assert other.input_value("#left input") == "greedy"
    other.click("#step")
    reached(other, 2, seed=7)
    assert faults == other_faults == []


def test_a_link_to_nowhere_opens_the_page_with_a_sentence(address, browser):
    page, faults = visit(browser, address + "?seed=1.5")
    page.wait_for_function("document.querySelector('#message p').innerText.includes('not 1.5')")
    assert message(page) == "seed must be a whole number from 0 to 4294967295, not 1.5." and faults == []


def test_a_brief_is_written_picked_and_refused_in_a_browser(address, browser):
    page, faults = visit(browser, address + "?left=greedy", viewport={"width": 390, "height": 800})
    page.click("#step")
    reached(page, 1)
    page.get_by_role("button", name="sales at a low reserve").click()
    reached(page, 0)
    assert page.input_value("#brief input, #brief textarea") == LOW and page.inner_text(".dd-brief") == f"brief {LOW}"
    page.click("#step")
    reached(page, 1)
    expected = dd.play(INFORMED_GREEDY.replace(reserve_price=0.05), dd.Population.stage(3), 0, brief=dd.Brief.from_text(LOW))
    check_numbers(page, {"left": expected.head(1)})
    assert page.inner_text("#cost p").startswith("A reply costs: random a second")
    page.fill("#brief input, #brief textarea", "maximise revenue; reserve_price is at most 7")
    page.press("#brief input, #brief textarea", "Enter")
    page.wait_for_selector("#fault [role=alert]")
    refusal = "brief: reserve_price must be a number from 0 to 0.9, not 7."
    page.wait_for_function(f"document.querySelector('#fault p').innerText === {refusal!r}")
    box, below = (page.locator(part).bounding_box() for part in ("#brief", "#fault"))
    assert below["y"] >= box["y"] + box["height"] and page.get_attribute("#arena .daedalus", "data-step") == "1"
    page.click("#step")   # plays nothing as long as the brief is wrong
    page.wait_for_function("document.querySelector('#message p').innerText.startsWith('The brief is refused')")
    page.fill("#brief input, #brief textarea", "maximise revenue")
    page.press("#brief input, #brief textarea", "Enter")
    reached(page, 0)
    page.wait_for_function("document.querySelector('#fault p').innerText === ''")
    choose(page, "left", "manual")
    page.fill("#brief input, #brief textarea", "maximise revenue; reserve_price is at least 0.20")
    page.press("#brief input, #brief textarea", "Enter")
    page.wait_for_function("document.querySelector('.dd-brief').innerText.includes('0.20')")
    page.click("#step")
    refusal = "the rules that manual plays: reserve_price must be at least 0.20, not 0.10, says the brief."
    page.wait_for_function(f"document.querySelector('#message p').innerText === {refusal!r}")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and faults == []


@pytest.mark.parametrize("query", ["left={}", "brief={}", "brief=maximise revenue; reserve_price is {}", "population={}"])
def test_a_link_cannot_bring_a_tag(address, browser, query):
    page = browser.new_page()
    page.goto(address + "?" + quote(query.format("<img src=x onerror=window.ours=1>"), safe="="))
    page.wait_for_selector("#arena .daedalus")
    page.wait_for_function("(document.querySelector('#message p').innerText + document.querySelector('#fault p').innerText)"
                           ".includes('not ')")
    page.wait_for_timeout(300)
    assert page.locator("#message img, #fault img").count() == 0 and page.evaluate("window.ours") is None


CONTRASTS = """() => {
  const pen = Object.assign(document.createElement("canvas"), {width: 1, height: 1}).getContext("2d");
  const rgba = colour => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], under) => [r, g, b].map((c, i) => a * c + (1 - a) * under[i]);
  const path = element => element ? [...path(element.parentElement), element] : [];
  const light = colour => colour.map(c => c / 255).map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const texts = [...document.querySelectorAll("input:not([type=checkbox]):not([type=range])")].map(e => [e, e.value]);
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) texts.push([walker.currentNode.parentElement, walker.currentNode.data]);
  return texts.filter(([element, text]) => text.trim() && element.getBoundingClientRect().width > 2
      && element.checkVisibility({opacityProperty: true, visibilityProperty: true})).map(([element, text]) => {
    let paper = [255, 255, 255], opacity = 1;
    for (const parent of path(element)) {
      const style = getComputedStyle(parent);
      paper = over(rgba(style.backgroundColor), paper); opacity *= style.opacity;
    }
    const [r, g, b, a] = rgba(getComputedStyle(element).color);
    const [more, less] = [light(over([r, g, b, a * opacity], paper)), light(paper)].sort((x, y) => y - x);
    return [(more + .05) / (less + .05), text.trim().slice(0, 40)];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast_in_the_light_and_in_the_dark(address, browser, scheme):
    rules, wish = "1_0.18_0_0_1_1_0_1.2_0.6_1.9_2", quote("maximise revenue; reserve_price is at most 0.10")
    link = f"{address}?left=manual&reveal=1&left_rules={rules}&brief={wish}"
    page, faults = visit(browser, link, step=1, color_scheme=scheme)
    page.fill("#brief input, #brief textarea", "maximise profit")
    page.press("#brief input, #brief textarea", "Enter")
    page.wait_for_function("document.querySelector('#fault p').innerText.includes('profit')")
    page.wait_for_selector("#levers")
    page.wait_for_function("document.getAnimations().every(each => "
                           "each.playState === 'finished' || each.effect.getTiming().iterations === Infinity)")   # colours fade in
    found = page.evaluate(CONTRASTS)
    assert len(found) > 300 and {"truthful", "exploiter", "was no", "Step", "who wins and what winners pay", "brief",
                                "Mended, because the brief says: reserve_"} <= {
        text for _, text in found}
    assert [text for ratio, text in found if ratio < 4.5] == []
    headings = page.eval_on_selector_all("h1, h2, h3, h4, h5, h6", "all => all.map(h => +h.tagName[1])")
    assert headings[0] == 1 and all(after <= before + 1 for before, after in zip(headings, headings[1:]))
    assert page.evaluate("[document.documentElement.lang, document.title]") == ["en", "DAEDALUS arena"]
    assert faults == []


def test_abandoned_visitors_cost_a_bounded_amount_of_memory(app, address):
    import gradio
    import requests

    config = requests.get(address + "config", timeout=PATIENCE).json()
    parts = {part["id"]: part["props"] for part in config["components"]}
    [step] = [event for event in config["dependencies"] if event["inputs"] and any(
        what == "click" and parts[target].get("elem_id") == "step" for target, what in event["targets"])]
    asked = {"fn_index": step["id"], "data": [parts[part].get("value") for part in step["inputs"]]}
    asked["data"] = ["greedy" if value == "trained" else value for value in asked["data"]]
    for visitor in range(3 * FEW):
        session = {"session_hash": uuid.uuid4().hex}
        requests.post(address + "gradio_api/queue/join", json=asked | session, timeout=PATIENCE).raise_for_status()
        if visitor % 2:   # the others do not even wait for the answer
            answer = requests.get(address + "gradio_api/queue/data", params=session, timeout=PATIENCE).text
            assert '"success":true' in answer and "Step 1 of 10" in answer
    [inside] = [route.app for route in app.routes if isinstance(getattr(route, "app", None), gradio.routes.App)]
    kept = inside.state_holder.session_data
    size = max(len(json.dumps(session.config_values, default=str)) for session in kept.values())
    assert len(kept) <= FEW and len(inside.get_blocks()._queue.pending_messages_per_session) <= FEW
    assert not any(session.state_data for session in kept.values())
    assert size * VISITORS < 40e6   # of the 4 GB that are declared
