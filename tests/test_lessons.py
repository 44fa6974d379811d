"""Lessons for a designer that reads briefs: plans to imitate, and the best of the model's own replies."""

import shutil
import tempfile

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the train extra")

from daedalus.designers.base import informed_greedy
from daedalus.designers.language import LanguageDesigner, small_model, small_tokenizer
from daedalus.designers.levers import GROUP, LeverDesigner, lever_designer
from daedalus.designers.states import outlook
from daedalus.market.bidders import HELD_OUT_RULES
from daedalus.market.engine import ROUNDS, WARM_UP
from daedalus.schema import DEFAULT_MECHANISM, LEVERS, Brief, Mechanism
from daedalus.training import lessons
from daedalus.training.lessons import ImitationSettings, LessonSettings, TrialSettings, imitation_rows, reading_rows, trial_rows
from daedalus.training.train import profile, run_phases
from daedalus.training.sft import FineTuneSettings, design_pairs, fine_tune

ONE = ImitationSettings(populations=GROUP, published_share=0.2, silent_share=0.0)
EPISODES = GROUP * (WARM_UP + 10 * ROUNDS)


@pytest.fixture(scope="module")
def teacher():
    return lever_designer()


@pytest.fixture(scope="module")
def model():
    "A tiny model that knows the form of a reply."
    tokenizer = small_tokenizer()
    model = small_model(tokenizer, layers=1, width=32, heads=2)
    with tempfile.TemporaryDirectory() as folder:
        fine_tune(model, tokenizer, design_pairs(640, 0), FineTuneSettings(steps=60, batch_size=16, learning_rate=0.01), folder)
    return model, tokenizer


def test_a_walk_meets_no_held_out_rule_and_hides_what_was_never_published(teacher, monkeypatch):
    people, draw = set(), lessons.draw_population
    monkeypatch.setattr(lessons, "draw_population", lambda *given: people.add(person := draw(*given)) or person)
    states = list(lessons._walk(informed_greedy, teacher, ONE, 3))
    assert not {person.learning for person in people} & set(HELD_OUT_RULES)
    assert len({person.learning for person in people}) > 2
    hidden = [observation.signals is None for state in states for observation in state.visit.observations]
    assert np.mean(hidden) == 0.2 and len(hidden) == 10 * GROUP
    briefs = [observation.brief for state in states for observation in state.visit.observations]
    assert len(set(briefs)) > GROUP / 3 and any(brief != Brief() for brief in briefs)


def test_who_is_guided_plays_the_plan(teacher):
    states = list(lessons._walk(informed_greedy, teacher, ONE.replace(guided=1.0, detour=0.0, published_share=0.0), 3))
    for now, after in zip(states, states[1:]):
        assert list(after.visit.episodes.mechanisms) == now.plans


def test_plans_are_rows_and_every_brief_allows_its_reply(model, teacher):
    lesson = imitation_rows(*model, teacher, ONE.replace(guided=1.0), 7)
    assert lesson.rounds == EPISODES and len(lesson.rows) == 10 * GROUP
    for row in lesson.rows:
        text = row["prompt"][-1]["content"]
        brief = Brief.from_text(text.partition("\n")[0].removeprefix("brief: "))
        assert brief.allows(Mechanism.from_text(row["completion"][0]["content"], complete=True))
    assert lesson == imitation_rows(*model, teacher, ONE.replace(guided=1.0), 7)
    assert lesson.rows != imitation_rows(*model, teacher, ONE.replace(guided=1.0), 8).rows
    assert lesson.measures["distinct plans"] > 30


def played_last(row):
    text = row["prompt"][-1]["content"].partition("last_mechanism: ")[2].partition("\n")[0]
    return Mechanism.from_text(text) if text else None


def test_rows_that_copy_are_fewer_and_some_hide_what_was_played(model, teacher):
    asked = ONE.replace(guided=1.0, detour=0.0, published_share=0.0)

    def rows(**changes):
        return imitation_rows(*model, teacher, asked.replace(**changes), 7).rows

    def copies(row):
        return played_last(row) == Mechanism.from_text(row["completion"][0]["content"])

    every, fewer, none = rows(), rows(same_share=0.5), rows(same_share=0.0)
    count = sum(map(copies, every))
    assert count > 50 and none == [row for row in every if not copies(row)]
    assert [row for row in fewer if not copies(row)] == none and 0.3 * count < sum(map(copies, fewer)) < 0.7 * count
    hidden = rows(unseen_share=0.4)
    assert 0.3 < np.mean([played_last(row) is None for row in hidden]) < 0.5
    assert [row["completion"] for row in hidden] == [row["completion"] for row in every]
    assert rows(late_share=0.0) == every[:lessons.EARLY * GROUP]


def test_replies_that_are_held_obey_where_the_model_would_not(model, teacher):
    def obeyed(constrained):
        walked = list(lessons._walk(LanguageDesigner(*model, constrained=constrained), teacher, ONE.replace(detour=0.0), 3))
        return np.mean([brief.allows(mechanism) for state in walked[1:10] for brief, mechanism in zip(
            state.visit.episodes.briefs, state.visit.episodes.mechanisms)])

    assert obeyed(True) == 1 > obeyed(False)


def test_some_groups_are_told_neither_their_brief_nor_the_horizon(teacher):
    settings = LessonSettings(populations=8 * GROUP, silent_share=0.5, hidden_share=0.5)
    seen = [state.visit.observations[0] for state in lessons._walk(informed_greedy, teacher, settings, 1)]
    kinds = {(observation.brief is None, observation.episode_length is None) for observation in seen}
    assert len(kinds) == 4
    hidden = next(observation for observation in seen if observation.episode_length is None)
    assert "round_number: 0\n" in hidden.prompt()


def test_replies_meet_the_same_futures_and_what_breaks_a_brief_earns_nothing(teacher):
    state = list(lessons._walk(informed_greedy, teacher, ONE, 3))[4]
    then, settings = LeverDesigner(teacher.critic, teacher.pool, 0), TrialSettings(futures=2, horizon=3)
    rows = [[plan, plan, None, DEFAULT_MECHANISM] for plan in state.plans]
    values = lessons._tried(state, rows, then, settings, 5)
    assert np.array_equal(values[:, 0], values[:, 1]) and (values[:, 2] == -1).all()
    expected = outlook(state.visit.episodes, [row[:1] for row in rows], 5, 3, 2, then, behaviour=state.behaviour)["reward"]
    assert np.array_equal(values[:, 0], expected.mean(2)[:, 0])
    forbidden = [not brief.allows(DEFAULT_MECHANISM) for brief in state.visit.episodes.briefs]
    held = lessons._tried(state, rows, then, settings.replace(horizon=1), 5)[:, 3]
    assert any(forbidden) and (held[forbidden] == 0).all() and (held[~np.array(forbidden)] > 0).mean() > 0.8


def test_the_best_of_the_replies_is_kept(model, teacher, monkeypatch):
    settings, seen = TrialSettings(populations=GROUP, replies=3, futures=1, horizon=1), []

    def liking_the_longest_reserve(state, mechanisms, *others):
        seen.append(mechanisms)
        return np.array([[each.reserve_price + 0.01 if each else -1.0 for each in row] for row in mechanisms])

    monkeypatch.setattr(lessons, "_tried", liking_the_longest_reserve)
    lesson = trial_rows(*model, teacher, settings, 1)
    kept = [Mechanism.from_text(row["completion"][0]["content"]).reserve_price for row in lesson.rows]
    best = [max(each.reserve_price for each in row if each) for rows in seen for row in rows if any(row)]
    assert np.allclose(kept, best, atol=0.0051) and len({len(row) for rows in seen for row in rows}) == 1
    assert lesson.measures["kept beyond the mean"] > 0


def test_a_trial_counts_its_rounds_and_is_a_function_of_its_seed(model, teacher):
    settings = TrialSettings(populations=GROUP, replies=2, futures=2, horizon=3)
    lesson = trial_rows(*model, teacher, settings, 1)
    steps = sum(min(3, 10 - step) for step in range(10))
    assert lesson.rounds == EPISODES + GROUP * steps * 2 * 2 * ROUNDS
    assert lesson == trial_rows(*model, teacher, settings, 1)


def test_settings_out_of_range_are_one_sentence():
    with pytest.raises(ValueError, match="populations.*50"):
        LessonSettings(populations=20)
    with pytest.raises(ValueError, match="replies"):
        TrialSettings(replies=1)


def test_a_reading_lesson_depends_on_the_prompt_and_obeys_it():
    settings = LessonSettings(populations=GROUP, published_share=0.0, silent_share=0.0)
    lesson = reading_rows(settings, 3)
    assert lesson == reading_rows(settings, 3) and lesson.rounds == EPISODES and len(lesson.rows) == 10 * GROUP
    replies = [Mechanism.from_text(row["completion"][0]["content"], complete=True) for row in lesson.rows]
    for row, reply in zip(lesson.rows, replies):
        assert Brief.from_text(row["prompt"][-1]["content"].partition("\n")[0].removeprefix("brief: ")).allows(reply)
    assert {reply.auction_type for reply in replies} == set(LEVERS["auction_type"].settings)
    fines = np.array([reply.collusion_penalty for reply in replies])
    read = [[float(row["prompt"][-1]["content"].split(f"\n{name}: ")[1].split("\n")[0])
             for name in ("bidders", "units", "price", "dispersion", "gap", "silence", "returns")] for row in lesson.rows]
    assert len(set(fines)) > 40 and max(abs(np.corrcoef(fines, column)[0, 1]) for column in np.transpose(read)) > 0.1


def test_reading_lessons_show_as_many_prompts_without_a_brief_as_was_asked():
    lesson = reading_rows(ONE.replace(silent_share=0.3), 3)
    silent = [not row["prompt"][-1]["content"].startswith("brief: ") for row in lesson.rows]
    asked = reading_rows(ONE, 3).rows
    assert np.mean(silent) == 0.3 and all(row["prompt"][-1]["content"].startswith("brief: ") for row in asked)


def test_a_training_with_lessons_resumes_where_it_was(tmp_path):
    smoke = profile("smoke-briefs")
    first = list(run_phases(smoke, tmp_path, 0))
    assert [record["kind"] for _, record in first] == ["sft", "imitation", "trial", "grpo"]
    assert first[1][1]["rounds"] > EPISODES and first[2][1]["rounds"] > EPISODES   # the teacher's count once
    shutil.rmtree(first[2][0])
    again = list(run_phases(smoke, tmp_path, 0))
    for (folder, record), (_, before) in zip(again, first):
        weights = [name for name in record["files"] if name.endswith(".safetensors")]
        assert [record["files"][name] for name in weights] == [before["files"][name] for name in weights], folder
    assert (tmp_path / "levers-1-1-50-20-0" / "designer.npz").exists()
