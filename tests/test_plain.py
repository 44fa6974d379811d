"""The plain network: what it reads of a brief, what it may answer, and that it learns what its teacher plays."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the train extra")

from daedalus.designers.base import READINGS, check_designer, readings_table
from daedalus.designers.levers import GROUP, draw_brief, drawn_rows, lever_designer
from daedalus.env import observe, open_episodes
from daedalus.market.bidders import Population
from daedalus.paths import data_dir
from daedalus.results import short_hash
from daedalus.schema import FIELDS, LEVERS, AmountLever, Brief, Mechanism, Objective, mechanisms_to_array
from daedalus.training import plain
from daedalus.training.plain import (
    ANSWERS, BINS, HEADS, allowed_in, brief_table, fit_plain, labels_of, learn_plain, load_plain, plain_designer, plain_lesson,
    plain_record)


def test_every_lever_has_answers_that_are_near():
    rows = drawn_rows(200, np.random.default_rng(0))
    answered = np.stack([ANSWERS[name][label] for name, label in zip(FIELDS, labels_of(rows).T)], 1)
    for at, (name, lever) in enumerate(LEVERS.items()):
        near = lever.top / (BINS - 1) / 2 + 0.006 if isinstance(lever, AmountLever) else 0
        assert (np.abs(answered[:, at] - rows[:, at]) <= near).all(), name
        assert len(ANSWERS[name]) == (BINS if isinstance(lever, AmountLever) else len(lever.settings)) == len(HEADS[name])
    assert all(Mechanism.from_array(row) for row in answered)


def test_what_is_allowed_is_what_the_brief_allows():
    rng = np.random.default_rng(1)
    for _ in range(40):
        brief = draw_brief(rng)
        allowed = allowed_in(brief)
        for name, head in HEADS.items():
            rows = mechanisms_to_array([brief.mended(Mechanism())] * len(head))
            rows[:, FIELDS.index(name)] = ANSWERS[name]
            fits = [brief.allows(Mechanism.from_array(row)) for row in rows]
            assert allowed[head].tolist() == (fits if any(fits) else [True] * len(fits))


def test_a_brief_is_read_whole():
    published, sold = Brief(), Brief(objective=Objective.from_text("revenue^2"))
    cheap = Brief(at_most={"reserve_price": 0.09}, fixed={"auction_type": "vcg"})
    table = brief_table([published, sold, cheap, published])
    assert (table[0] == table[3]).all() and table[1][:5].tolist() == [-1, -1, -1, -1, 1] and (table[1][5:] == table[0][5:]).all()
    assert (table[2][:5] == table[0][:5]).all() and (table[2] != table[0]).sum() == 3   # two formats, and the most that a reserve may be
    assert 0.09 / LEVERS["reserve_price"].top in table[2]


def test_the_committed_network_obeys_and_answers_alike():
    assert plain_record()["hash"] == short_hash((data_dir() / "rivals" / "plain.npz").read_bytes())
    assert (data_dir() / "rivals" / "plain.npz").stat().st_size < 1_000_000
    player, rng = plain_designer(), np.random.default_rng(2)
    check_designer(player)
    briefs = [draw_brief(rng) for _ in range(30)]
    start = open_episodes([Population.varied(rng) for _ in briefs], [(1, at) for at in range(30)], brief=briefs)
    answers = player.on(start)
    assert all(brief.allows(answer) for brief, answer in zip(briefs, answers)) and len(set(answers)) > 10
    assert player.design_batch(observe(start)) == answers


def test_a_lesson_has_the_teachers_plans_in_the_walkers_states():
    teacher = lever_designer()
    inputs, plans = plain_lesson(teacher, teacher, GROUP, 5, 0, 0.0)
    assert inputs.shape[0] == plans.shape[0] == 10 * GROUP
    progress = inputs[:, READINGS.index("progress")]
    assert sorted(set(progress.round(6))) == [at / 10 for at in range(10)]

    class Walker:
        def on(self, episodes): return [Mechanism()] * len(episodes.mechanisms)

    others, _ = plain_lesson(teacher, Walker(), GROUP, 5, 0, 1.0)
    assert set(others[:, READINGS.index("progress")]) == {0.5}
    first = progress == 0
    seen = [at for at in range(len(READINGS)) if at != READINGS.index("progress")]
    assert np.array_equal(others[first][:, seen], inputs[first][:, seen]) and not np.array_equal(others[~first][:, seen], inputs[~first][:, seen])


def test_it_learns_what_is_played_and_same_lessons_are_same_bits():
    rng = np.random.default_rng(3)
    inputs = np.concatenate([rng.random((600, len(READINGS))), brief_table([Brief()] * 600)], 1)
    plans = mechanisms_to_array([Mechanism(reserve_price=0.18 if row[0] > 0.5 else 0.45, reveal_reserve=bool(row[1] > 0.5)) for row in inputs])
    designer = fit_plain(inputs, plans, 150, 1)
    again = fit_plain(inputs, plans, 150, 1)
    assert all((one == other).all() for one, other in zip(designer.weights, again.weights))
    played = mechanisms_to_array(designer._answered(inputs[:, :len(READINGS)], [Brief()] * 600))
    assert (labels_of(played) == labels_of(plans)).mean() > 0.97


def test_learning_goes_on_where_it_was_interrupted_and_a_broken_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "judged", lambda designer, seed: {"default": float(designer is teacher)})   # takes seconds
    teacher = lever_designer()
    whole = learn_plain(tmp_path / "a", tmp_path / "work", teacher, 1, GROUP, 10, 2)
    more = learn_plain(tmp_path / "b", tmp_path / "work", teacher, 2, GROUP, 10, 2)
    assert more["curve"][0] == whole["curve"][0] and len(more["curve"]) == 2
    kept = load_plain(tmp_path / "b" / "plain.npz")
    start = open_episodes(Population.stage(4), [(0, 0)])
    assert kept.on(start) and readings_table(start).shape[1] == len(kept.center)
    (tmp_path / "b" / "plain.npz").write_bytes(b"half")
    with pytest.raises(ValueError, match="holds no plain network: learn_plain learns it again"):
        load_plain(tmp_path / "b" / "plain.npz")
