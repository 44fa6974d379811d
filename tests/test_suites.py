"""The wider suites: files that are what their seeds give, evenly spread, briefs that can be obeyed, and one that stays sealed."""

import json
import re
from collections import Counter

import numpy as np
import pytest

import daedalus as dd
from daedalus.designers.search import best_of_briefs, score
from daedalus.env import (
    BRIEFED, EXPLOITERS, OPENED_BY, SEALED, DIMENSIONS, Point, apportion, check_unsealed, draw_briefs, draw_families, draw_sealed, sliced_hypercube, spread,
    suite)
from daedalus.market.bidders import HELD_OUT_RULES, KINDS, LEARNING_RULES, VARIED
from daedalus.paths import data_dir
from daedalus.pipeline.reproduce import notebooks
from daedalus.results import module_files, notebook_code, read_result
from daedalus.schema import BRIEF_KINDS, Brief, Mechanism, Objective

BRIEFS, PEOPLE = suite("briefs"), [people for _, people in suite("briefs")]


@pytest.fixture
def sealed(monkeypatch):
    """The sealed populations, as the paper's notebook sees them."""
    monkeypatch.setenv("DAEDALUS_NOTEBOOK", f"nbs/{OPENED_BY}.ipynb")
    return suite("sealed")


# What they hold

def test_the_files_are_what_their_seeds_give():
    assert BRIEFS == draw_briefs() and len(set(BRIEFS)) == len(BRIEFS) == len(BRIEF_KINDS) * BRIEFED >= 100
    assert suite("sealed") == draw_sealed() and len(set(draw_sealed())) == SEALED == 200
    assert not {*PEOPLE, *draw_families()} & {*draw_sealed()}


@pytest.mark.parametrize("name", ["briefs", "sealed"])
def test_the_files_say_every_parameter(name):
    rows = json.loads((data_dir() / f"{name}.json").read_text())
    people = [row.get("population", row) for row in rows]
    assert all({*VARIED, *KINDS} <= set(row) for row in people)


def bins(values, top):
    """How many values lie in each tenth of the range from 0; they are whole thousandths, rounded down."""
    return np.bincount([round(1000 * value) * 10 // round(1000 * top) for value in values], minlength=10).tolist()


@pytest.mark.parametrize("people", [PEOPLE, draw_sealed()], ids=["briefs", "sealed"])
def test_each_trait_is_spread_evenly(people):
    equal = [len(people) // 10] * 10
    for trait, top in (("second_unit", 1), ("value_low", 0.5), ("return_rate", 0.4)):
        assert bins([getattr(p, trait) for p in people], top) == equal, trait
    sizes = Counter(p.bidders for p in people)
    assert set(sizes) == set(range(3, 17)) and max(sizes.values()) - min(sizes.values()) <= 2
    assert Counter(p.n_items for p in people) == dict.fromkeys((1, 2, 3, 4), len(people) // 4)
    shares = {trait: np.mean([getattr(p, trait) != usual for p in people])
              for trait, usual in (("value_shape", 1), ("interdependence", 0), ("strong", 0))}
    assert shares == pytest.approx({"value_shape": 0.6, "interdependence": 0.5, "strong": 0.5}, abs=0.011)
    if people != PEOPLE:
        for kind in KINDS: assert np.mean([getattr(p, kind) / p.bidders for p in people]) == pytest.approx(0.2, abs=0.03)
    else: assert all(p.exploiter >= EXPLOITERS or p.exploiter + p.colluder == p.bidders for p in people)


def test_every_rule_of_learning_is_met_as_often():
    assert Counter(p.learning for p in draw_sealed()) == dict.fromkeys(LEARNING_RULES, SEALED // len(LEARNING_RULES))
    met = [rule for rule in LEARNING_RULES if rule not in HELD_OUT_RULES]
    for kind in range(len(BRIEF_KINDS)):
        same = PEOPLE[kind * BRIEFED:(kind + 1) * BRIEFED]
        assert Counter(p.learning for p in same) == dict.fromkeys(met, BRIEFED // len(met))


def rules_of(brief):
    """How many kinds of rules a brief combines."""
    named = brief.fixed.keys() | brief.at_most.keys() | brief.at_least.keys()
    return len({"fines" if "penalty" in name else "privacy" if name.startswith("reveal") else name for name in named})


def test_briefs_are_of_ten_kinds_and_a_third_of_the_rules_are_two():
    for kind, (wanted, rule) in enumerate(BRIEF_KINDS):
        same = [brief for brief, _ in BRIEFS[kind * BRIEFED:(kind + 1) * BRIEFED]]
        assert {brief.objective for brief in same} == {wanted}
        assert {rules_of(brief) > 0 for brief in same} == {rule is not None}
        assert sum(rules_of(brief) == 2 for brief in same) in ((3, 4) if rule else (0,))


def test_every_brief_can_be_obeyed():
    rng = np.random.default_rng(0)
    assert all(brief.allows(brief.mended(Mechanism.random(rng))) for brief, _ in BRIEFS)
    assert all(Brief.from_text(brief.text()) == brief for brief, _ in BRIEFS)


# Points

def test_a_point_is_a_generator_of_its_own_numbers():
    point = Point(np.array([0.5, 0.25, 0.999, 0.0, 0.5, 0.1, 0.2]))
    assert point.random() == 0.5 and point.uniform(1, 3) == 1.5 and point.integers(1, 5) == 4 and point.choice("ab") == "a"
    assert [Point(np.array([u])).choice("abc", p=(0.5, 0.25, 0.25)) for u in (0, 0.49, 0.5, 0.74, 0.75, 0.99)] == [*"aabbcc"]
    assert point.integers(2) == 1 and point.random(2).tolist() == [0.1, 0.2]
    with pytest.raises(StopIteration):
        point.random()
    shares = Point(np.array([0.5, 0.5])).dirichlet(np.ones(2))
    assert shares.tolist() == [0.5, 0.5] and Point(np.zeros(0)).multinomial(5, shares).tolist() == apportion(shares, 5)


def test_each_slice_and_all_slices_are_latin_hypercubes():
    points = sliced_hypercube(5, 7, 3, np.random.default_rng(0))
    assert (np.sort(np.floor(7 * points), axis=1) == np.arange(7)[:, None]).all()
    assert (np.sort(np.floor(35 * points.reshape(35, 3)), axis=0) == np.arange(35)[:, None]).all()


def test_what_is_spread_is_the_wide_distribution():
    """Spread or drawn at random, the same traits with the same means."""
    spread_out = spread(np.random.default_rng(3).random((400, DIMENSIONS)), [rule for rule in LEARNING_RULES if rule not in HELD_OUT_RULES])
    drawn = [dd.Population.varied(at) for at in range(1500)]
    for trait in ("bidders", "n_items", "value_low", "value_high", "value_shape", "interdependence", "strength", "colluder"):
        one, two = ([float(getattr(p, trait)) for p in people] for people in (spread_out, drawn))
        error = np.hypot(np.std(one) / 20, np.std(two) / 1500**0.5)
        assert abs(np.mean(one) - np.mean(two)) < 4 * error, trait


# The seal

def test_designers_do_not_play_what_is_sealed(monkeypatch):
    people = suite("sealed")
    for attempt in (lambda: dd.evaluate({"greedy": dd.INFORMED_GREEDY}, suite="sealed", episodes=1),
                    lambda: dd.evaluate({"greedy": dd.INFORMED_GREEDY}, suite=[dd.Population.stage(0), people[7]], episodes=2),
                    lambda: dd.evaluate({"greedy": dd.INFORMED_GREEDY}, suite=[(Brief(), people[7])], episodes=1),
                    lambda: dd.play(dd.INFORMED_GREEDY, people[0].replace(), 0),
                    lambda: check_unsealed(draw_sealed()[5])):
        with pytest.raises(ValueError, match=r"^suite 'sealed' is played by designers in nbs/90_paper.ipynb alone: take another") as no:
            attempt()
        assert "\n" not in str(no.value)
    for other in ("90_paper_copy", "87_suites", ""):
        monkeypatch.setenv("DAEDALUS_NOTEBOOK", other and f"nbs/{other}.ipynb")
        with pytest.raises(ValueError, match="^suite 'sealed' is played"):
            check_unsealed(people)
    check_unsealed([dd.Population.stage(0), people[0].replace(practice=3)])


def test_the_paper_s_notebook_opens_it(sealed):
    table = dd.evaluate({"greedy": dd.INFORMED_GREEDY}, suite=sealed[:1], episodes=1, steps=1)
    assert len(table) == 1 and 0 <= table["reward"][0] <= 1


def test_only_the_paper_s_notebook_asks_for_it():
    code = {path.stem: notebook_code(path) for path in notebooks()} | {name: path.read_text() for name, path in module_files().items()}
    ask = {name for name, text in code.items() if "suite(\"sealed\")" in text or "suite('sealed')" in text or "suite=\"sealed\"" in text}
    assert ask <= {OPENED_BY}
    draw = {name for name, text in code.items() if "draw_sealed()" in text or "_sealed()" in text or "sealed.json" in text}
    assert draw <= {"17_env", "env", "87_suites", OPENED_BY}
    assert not re.search(r"\b(?:evaluate|play|levers|adaptation)\(|DESIGNERS", code["87_suites"]), "no designer plays there"


# What is known of them

def test_the_oracle_is_at_least_the_best_fixed_mechanism_where_both_were_chosen():
    known = read_result("suites")
    for name, marks in known["yardsticks"].items():
        looked, judged = np.array(marks["looked"]), np.array(marks["judged"])
        assert looked.shape == judged.shape == (len(suite(name)), 2) and (looked[:, 1] >= looked[:, 0]).all()
        assert known["gaps"][name]["gap"][0] == pytest.approx(np.diff(judged).mean())
    assert known["gaps"]["briefs"]["gap"][0] >= 0.06 and known["gaps"]["families"]["gap"][0] >= 0.05
    assert all(known["gaps"][name]["gap"][1] > 0 for name in ("briefs", "families", "sealed"))


def test_a_rule_of_thumb_closes_less_than_half_of_the_gap():
    closed = read_result("suites")["trees"]
    wider = [row for row in closed if row["suite"] in ("briefs", "families")]
    assert {(row["suite"], row["depth"]) for row in wider} == {(name, depth) for name in ("briefs", "families") for depth in (2, 3)}
    assert all(row["share"] < 0.5 and row["grown on"] == "training draws" for row in wider)
    assert not [row for row in closed if row["suite"] == "sealed"]


def test_yardsticks_of_the_wider_suites_obey_their_briefs():
    players = dd.yardsticks("briefs")
    for name in ("best fixed", "oracle"):
        assert all(brief.allows(m) for (brief, _), m in zip(BRIEFS, players[name], strict=True))
    assert players["best fixed"] == best_of_briefs() and players["oracle"] == dd.oracle("briefs")
    same = {brief: m for (brief, _), m in zip(BRIEFS, best_of_briefs())}
    assert all(same[brief] == m for (brief, _), m in zip(BRIEFS, best_of_briefs()))
    assert len(dd.oracle("families")) == 36 and len(dd.oracle("sealed")) == SEALED
    assert isinstance(dd.best_fixed("families"), Mechanism) and isinstance(dd.best_fixed("sealed"), Mechanism)
    for ask, name, sentence in ((dd.best_fixed, "briefs", "suite must be one without briefs, not 'briefs'"),
                                (best_of_briefs, "families", "suite must be one with briefs, such as 'briefs', not 'families'")):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            ask(name)


def test_the_gap_is_there_on_other_episodes_too():
    """Five pairs and five families, on episodes of another seed: the yardsticks keep their order on average."""
    people = suite("families")[::7]
    known = np.mean([score([m], [p], 8, seed=77).mean() for m, p in zip(dd.oracle("families")[::7], people)])
    assert known > score([dd.best_fixed("families")], people, 8, seed=77).mean()
    cases = BRIEFS[::10]
    earned = [[score([m], [people], 8, seed=77, brief=brief).mean() for m in pair]
              for (brief, people), *pair in zip(cases, best_of_briefs()[::10], dd.oracle("briefs")[::10])]
    fixed, best = np.mean(earned, 0)
    assert best > fixed + 0.02


def test_designers_play_briefs_by_name():
    table = dd.evaluate({"greedy": dd.INFORMED_GREEDY, "obeys": lambda seen: seen.brief.mended(dd.INFORMED_GREEDY)},
                        suite="briefs", episodes=35, steps=1)
    assert table["brief"].to_list()[:35] == [brief.text() for brief, _ in BRIEFS[:35]]
    rewards = table.pivot(index="episode", columns="designer", values="reward")
    broken = [not brief.allows(dd.INFORMED_GREEDY) for brief, _ in BRIEFS[:35]]
    assert (rewards["greedy"][broken] == 0).all() and (rewards["obeys"][broken] > 0).mean() > 0.5
    assert Objective() in {brief.objective for brief, _ in BRIEFS}
