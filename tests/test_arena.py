"The arena: its numbers are the engine's, its picture says what it says, and its page works in a browser."
import math
import shutil
import socket
import subprocess
import sys
import threading
from html.parser import HTMLParser

import numpy as np
import pytest

import daedalus as dd
from daedalus import arena as arena_module
from daedalus.arena import SCORE_NAMES, SIDES, arena_page, mount_arena, open_arena, populations
from daedalus.market import SCORES, advance, new_market
from daedalus.schema import DEFAULT_MECHANISM, FIELDS, INFORMED_GREEDY

CROWD = dd.Population.stage(4)
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
    (lambda observation: "first_price", "bad gave no mechanism: a designer must answer with a Mechanism, not str."),
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
    code = ("import sys; sys.modules['gradio'] = None; import daedalus as dd; from daedalus.arena import open_arena\n"
            "arena = open_arena(dd.Population.stage(1), ['greedy']).step(dd.DESIGNERS)\n"
            "assert arena._repr_html_().count('<svg') == 6")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# The page

CHROMIUM = shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


def test_a_page_needs_a_designer():
    pytest.importorskip("gradio", reason="gradio is not installed")
    with pytest.raises(ValueError, match="designers must hold at least one designer"):
        arena_page({})


@pytest.fixture(scope="module")
def address():
    "The page alone, served on a port of its own, in a hurry."
    for package in ("gradio", "fastapi", "uvicorn", "torch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import fastapi
    import uvicorn

    designers = {"trained": dd.LanguageDesigner.load(), "failing": failing(TimeoutError("it is busy")),
                 "greedy": CONTEST["greedy"], "random": CONTEST["random"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arena_module, "BEAT", 0.2)
        app = mount_arena(fastapi.FastAPI(), designers)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def browser():
    "Chromium without a window."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visit(browser, address, **options):
    "A page of a visitor of its own, with what it complained about and what it asked other hosts for."
    page, faults = browser.new_context(**options).new_page(), []
    page.set_default_timeout(30_000)
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith((address, "data:", "blob:"))
            else faults.append(request.url))
    page.goto(address)
    reached(page, 0)
    return page, faults


def reached(page, step, seed=0):
    page.wait_for_selector(f'#arena .daedalus[data-step="{step}"][data-seed="{seed}"]')


def choose(page, control, name):
    page.click(f"#{control} input")
    page.get_by_role("option", name=name).click()
    page.wait_for_selector("[role=option]", state="detached")


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
    page.wait_for_selector("#step:disabled")
    assert page.locator("#pause").is_disabled() and page.locator("#reset").is_enabled()

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
    page.wait_for_selector("#pause:disabled")
    assert page.locator("#arena .dd-who").count() == 0
    page.check("#reveal input")
    page.wait_for_selector("#arena .dd-who")
    page.fill("#seed input", "7")
    reached(page, 0, seed=7)
    page.click("#step")
    reached(page, 1, seed=7)
    rules = DEFAULT_MECHANISM.replace(reserve_price=0.5)
    check_numbers(page, {"left": dd.play(dd.FixedDesigner(rules), dd.Population.stage(3), 7).head(1)})
    assert faults == []
