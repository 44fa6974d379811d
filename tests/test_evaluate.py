"""Evaluation: paired episodes, honest statistics, and the command line of the published script."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import daedalus as dd
from daedalus.studies.evaluate import (
    ENDS, adaptation, adaptation_plot, boxplot, improvement, inference, interquartile_range, lever_map, levers,
    paired, profiles, published, questions_of, recorded, share_of_gap, summary, training_table, worst_fifth, yardsticks)
from daedalus.market.engine import simulate
from daedalus.studies.style import COLOURS

COMMAND = [sys.executable, "-c", "from daedalus.cli import main; main()"]


def by_hand(**rewards):
    """A table as `evaluate` returns it, from the rewards of each designer."""
    return pd.DataFrame([{"designer": name.replace("_", " "), "episode": e, "at": e % 5, "reward": r}
                         for name, rs in rewards.items() for e, r in enumerate(rs)])


def test_one_row_for_each_designer_and_episode_on_the_same_luck():
    both = {"a": dd.FixedDesigner(dd.INFORMED_GREEDY), "b": lambda obs: dd.INFORMED_GREEDY}
    table = dd.evaluate(both, episodes=7, seed=3)
    assert len(table) == 14 and table["at"].tolist() == [0, 1, 2, 3, 4, 0, 1] * 2
    a, b = (table[table["designer"] == name]["reward"].to_numpy() for name in "ab")
    assert (a == b).all()
    alone = simulate(dd.INFORMED_GREEDY, dd.Population.stage(1), [(3, 6)])
    assert a[6] == pytest.approx(alone.reward.mean(), abs=1e-15)


def test_designers_do_not_see_a_hidden_horizon():
    lengths = set()

    def looks(observation):
        lengths.add(observation.episode_length)
        return dd.INFORMED_GREEDY

    tables = [dd.evaluate({"looks": looks}, episodes=5, steps=2, hidden_horizon=hidden) for hidden in (True, False)]
    assert lengths == {None, 2} and tables[0].equals(tables[1])


def test_mechanisms_by_population_are_played_where_they_belong():
    people = [dd.Population.stage(0), dd.Population.stage(4)]
    table = dd.evaluate({"knowing": [dd.DEFAULT_MECHANISM, dd.INFORMED_GREEDY]}, people, episodes=4)
    second = simulate(dd.INFORMED_GREEDY, people[1], [(0, 3)])
    assert table["reward"].iloc[3] == pytest.approx(second.reward.mean(), abs=1e-15)
    with pytest.raises(ValueError, match="'knowing' must have a mechanism for each of the 2 populations, not 1"):
        dd.evaluate({"knowing": [dd.DEFAULT_MECHANISM]}, people, episodes=4)


def test_statistics_of_a_known_table():
    table = by_hand(low=[0.1, 0.2, 0.3, 0.4], high=[0.2, 0.4, 0.6, 0.8])
    table["at"] = table["episode"] % 2
    short = summary(table)
    assert short.loc["low", "mean"] == pytest.approx(0.25)
    assert short.loc["high", "worst population"] == pytest.approx(0.4)
    assert short.loc["low", "low"] < 0.25 < short.loc["low", "high"]
    gain = paired(table, "low").loc["high"]
    assert gain["difference"] == pytest.approx(0.25) and gain["better in"] == 1 and gain["low"] >= 0.1
    assert interquartile_range(np.arange(5.0)) == 2 and worst_fifth(np.array([3.0, 1, 2, 5, 4])) == 1
    with pytest.raises(ValueError, match="reference must be one of low, high, not 'none'"):
        paired(table, "none")


def test_a_share_is_the_ratio_of_mean_differences():
    table = by_hand(low=[0.0, 0.2, 0.4], mine=[0.3, 0.5, 0.4], high=[0.4, 1.0, 1.0], other=[0.4, 1.0, 1.0])
    shares = share_of_gap(table, "low", "high")
    assert shares.loc["mine", "share"] == pytest.approx((0.4 - 0.2) / (0.8 - 0.2))
    assert shares.loc["other"].tolist() == pytest.approx([1] * 5)
    # Each episode's own share is 3/4, 3/8 or 0: a resample lies between the extremes, and so do the ends.
    assert 0 <= shares.loc["mine", "low"] < 1 / 3 < shares.loc["mine", "high"] <= 0.75


def test_the_interval_of_a_share_is_paired():
    """Luck that all three share cancels: a designer always half-way is at 1/2 in every resample."""
    luck = np.random.default_rng(0).normal(0, 0.3, 50)
    gap = np.random.default_rng(1).uniform(0.1, 0.2, 50)
    shares = share_of_gap(by_hand(low=luck, mine=luck + gap / 2, high=luck + gap), "low", "high")
    assert shares.loc["mine"].tolist() == pytest.approx([0.5] * 5)


def test_episodes_that_only_one_played_do_not_count():
    table = by_hand(low=[0.0, 0.0, 9.0], mine=[0.5, 0.5], high=[1.0, 1.0, 9.5])
    assert share_of_gap(table, "low", "high").loc["mine", "share"] == pytest.approx(0.5)
    assert paired(table, "low").loc["mine", "difference"] == pytest.approx(0.5)


def test_a_gap_that_is_none_is_refused():
    with pytest.raises(ValueError, match="'low' does not earn more than 'high'"):
        share_of_gap(by_hand(low=[0.1], high=[0.2]), "high", "low")
    with pytest.raises(ValueError, match="reference must be one of low, high, not 'none'"):
        share_of_gap(by_hand(low=[0.1], high=[0.2]), "low", "none")


def test_there_is_no_share_where_a_designer_has_met_no_gap():
    table = by_hand(low=[0.1, 0.2, 0.3], high=[0.5, 0.6, 0.3], mine=[0.2, 0.3, 0.4])
    some = table[(table["designer"] != "mine") | (table["episode"] == 2)]   # where low and high earn the same
    share = share_of_gap(some, "low", "high", 200).loc["mine", "share"]
    assert np.isnan(share)


def a_record(seed, **rewards):
    """A record of a training with two stages, which earn the same everywhere."""
    places = [f"{suite}, {seen}" for suite in ("stages", "open") for seen in ("signals", "published")]
    return {"seed": seed, "reports": {stage: {"rounds": 1000 * at, "invalid": 0.0, **{
        place: {"rewards": rewards[stage], "by step": [], "distinct": at + 1} for place in places}}
        for at, stage in enumerate(rewards)}}


def test_the_table_of_trainings_is_what_one_computes_by_hand():
    known = by_hand(informed_greedy=[0.1, 0.2, 0.3], best_fixed=[0.2, 0.2, 0.5], oracle=[0.5, 0.4, 0.6])
    known["designer"] = known["designer"].replace("informed greedy", "informed-greedy")
    records = [a_record(0, SFT=[0.1, 0.1, 0.1], GRPO=[0.4, 0.3, 0.5]),
               a_record(1, SFT=[0.1, 0.1, 0.1], GRPO=[0.5, 0.4, 0.6])]
    table = training_table(records, {"stages": known, "open": known}, 200)
    assert len(table) == 2 * 2 * 2 * 2
    row = table.query("seed == 0 and stage == 'GRPO' and suite == 'open' and observation == 'published'").iloc[0]
    assert (row["rounds"], row["distinct"]) == (1000, 2)
    reached = row[["R", "over informed-greedy", "over best fixed", "share of gap"]]
    assert reached.tolist() == pytest.approx([0.4, 0.2, 0.1, 0.5])
    assert (row["over best fixed low"], row["over best fixed high"]) == pytest.approx((0.0, 0.2))
    assert row["over best fixed low (distribution)"] < 0.01 and table.query("suite == 'stages'")["R low (distribution)"].isna().all()
    best = table.query("seed == 1 and stage == 'GRPO'")
    assert best["share of gap low"].tolist() == pytest.approx([1] * 4)


def test_a_recorded_stage_takes_the_place_of_a_designer():
    table = recorded(a_record(0, SFT=[0.1] * 7), "SFT", "stages", name="SFT only")
    assert table["at"].tolist() == [0, 1, 2, 3, 4, 0, 1] and set(table["designer"]) == {"SFT only"}
    assert table["population"].iloc[6] == str(dd.Population.stage(1))


def test_intervals_cover():
    """About 95 of 100 bootstrap intervals of a mean of 40 normal numbers hold the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        table = pd.DataFrame({"designer": "x", "episode": range(40), "at": 0, "reward": rng.normal(0.5, 0.1, 40)})
        row = summary(table, 300).loc["x"]
        held += row["low"] <= 0.5 <= row["high"]
    assert 86 <= held <= 100


def apart(gap):
    """Twenty populations in ten episodes each; the second designer earns more in half of them, by twice the gap."""
    rng = np.random.default_rng(11)
    at = np.arange(200) % 20
    luck = rng.uniform(0.1, 0.9, 20)[at] + rng.normal(0, 0.02, 200)
    rows = {"a": luck, "b": luck + 2 * gap * (at % 2) + rng.normal(0, 0.002, 200), "c": luck + 0.2}
    return pd.concat([pd.DataFrame({"designer": name, "episode": range(200), "at": at, "reward": row})
                      for name, row in rows.items()], ignore_index=True)


def test_each_table_answers_both_questions():
    """What differs between populations is sure on the suite, and unsure on its distribution."""
    table = apart(0.01)
    for made in (summary(table, 400), paired(table, "a", 400), share_of_gap(table, "a", "c", 400), improvement(table, "a", 400)):
        row = made.loc["b"]
        (low, high), (least, most) = ([row[end] for end in ends] for ends in ENDS.values())
        assert least < low < high < most and most - least > 2 * (high - low)
    row = paired(table, "a", 400).loc["b"]
    assert row["p"] < 1e-6 < row["p (distribution)"] < 0.05


def test_the_stages_were_drawn_from_no_distribution():
    assert questions_of("stages") == ("suite",) and questions_of("open") == questions_of("families") == ("suite", "distribution")
    assert questions_of([dd.Population.stage(0), dd.Population.stage(4)]) == ("suite", "distribution")
    table = apart(0.01)
    for made in (summary(table, 50, ("suite",)), paired(table, "a", 50, ("suite",)), profiles(table, [0.5], 50, ("suite",))):
        assert {"low", "high"} < set(made) and not [name for name in made if "distribution" in name]


def test_what_earns_more_how_often():
    table = by_hand(x=[0.3, 0.9, 0.2, 0.5], y=[0.1, 0.4, 0.2, 0.5])
    table["at"] = table["episode"] // 2
    row = improvement(table, "y", 50).loc["x"]
    assert row["chance"] == pytest.approx((3 / 4 + 1 / 2) / 2)   # .3 beats .1, not .4; .9 beats both; then .2 and .5, even
    with pytest.raises(ValueError, match="reference must be one of x, y, not 'z'"):
        improvement(table, "z")
    lines = profiles(table, [0.25, 0.45], 50).set_index(["designer", "R"])["share"]
    assert lines.tolist() == [0.75, 0.5, 0.5, 0.25]


def test_the_command_line_says_what_its_intervals_are_about(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for suite, about in (("stages", "low and high: 95 % on this suite, its populations given"),
                         ("open", "with (distribution): 95 % on the distribution that its populations were drawn from")):
        record = inference(6, True, model="greedy", suite=suite)
        assert about in capsys.readouterr().out and record["intervals"].endswith(about)
        assert ("low (distribution)" in record["summary"]["random"]) == (suite == "open")
    inference(1, True, model="greedy")   # nothing can be said of a suite from one episode
    record = json.loads((tmp_path / "inference_results.json").read_text())
    assert record["summary"]["random"]["low"] is None and record["summary"]["random"]["mean"] > 0


@pytest.mark.parametrize("name", ["random", "informed-greedy"])
def test_published_baselines_are_reproduced(name):
    numbers = published()["numbers"]
    table = dd.evaluate({name: yardsticks()[name]}, episodes=1500, seed=0)
    assert table["reward"].mean() == pytest.approx(numbers[f"{name} mean"]["value"], abs=0.02)
    assert interquartile_range(table["reward"].to_numpy()) == pytest.approx(numbers[f"{name} IQR"]["value"], abs=0.06)


def test_levers_are_means_and_shares():
    rules = dd.DEFAULT_MECHANISM, dd.INFORMED_GREEDY

    def alternating(observation):
        return rules[observation.round_number % 2]

    table = levers(alternating, "stages", episodes=5, steps=4)
    assert table.index[4] == f"4: {dd.Population.stage(4)}" and (table["distinct"] == 2).all()
    row = table.iloc[0]
    assert row["reserve_price"] == pytest.approx(0.14) and row["collusion_penalty"] == pytest.approx(0.95)
    assert row["reveal_winner_identity"] == 0.5 and row["reveal_clearing_price"] == 1
    assert (row["coalition_policy: allow"], row["coalition_policy: penalize_suspected"]) == (0.5, 0.5)
    assert row["auction_type: second_price"] == 1
    axes = lever_map(table)
    assert [label.get_text() for label in axes.get_yticklabels()] == list(table.index)


def test_adaptation_is_the_mean_of_each_step():
    designers = {"informed-greedy": dd.FixedDesigner(dd.INFORMED_GREEDY)}
    people = [dd.Population.stage(1)]
    table = adaptation(designers, people, episodes=6, seed=2, steps=3, resamples=100)
    rewards = simulate(dd.INFORMED_GREEDY, people[0], [(2, e) for e in range(6)], 3).reward
    assert table["step"].tolist() == [1, 2, 3] and table["mean"].tolist() == pytest.approx(rewards.mean(0).tolist())
    assert (table["low"] < table["mean"]).all() and (table["mean"] < table["high"]).all()
    axes = adaptation_plot(table)
    assert axes.get_legend() is not None and axes.lines[0].get_color() == COLOURS["informed-greedy"]


def test_the_figure_shows_every_designer_and_the_published_values():
    import matplotlib.container

    matplotlib.use("Agg")
    axes = boxplot(dd.evaluate(yardsticks(), episodes=10))
    names = [label.get_text().replace("-\n", "-").replace("\n", " ") for label in axes.get_xticklabels()]
    assert names == list(yardsticks())
    assert sum(isinstance(drawn, matplotlib.container.ErrorbarContainer) for drawn in axes.containers) == 2
    assert axes.get_legend() is not None


def test_inference_writes_what_it_says(tmp_path, capsys):
    record = inference(10, True, output=tmp_path / "r.json", seed=4)
    assert json.loads((tmp_path / "r.json").read_text()) == record
    played = {name: len(rewards) for name, rewards in record["rewards"].items()}
    assert played == dict.fromkeys([*yardsticks(), "trained"], 10)
    assert record["replies"] == 101 and record["invalid replies"] == 0
    assert "invalid replies: 0 of 101" in capsys.readouterr().out
    again = inference(10, True, output=tmp_path / "again.json", seed=4)
    assert again == record


def test_without_baseline_only_the_trained_designer_plays(tmp_path):
    record = inference(2, output=tmp_path / "r.json", constrained=False)
    assert list(record["rewards"]) == ["trained"] and record["paired"] == {} and record["constrained"] is False
    assert record["replies"] == 21 and 0 <= record["invalid replies"] <= 21


def test_inference_reports_partial_replies_and_refuses_them_on_demand(tmp_path, monkeypatch, capsys):
    from daedalus.designers.language import LanguageDesigner

    load = LanguageDesigner.load.__func__

    def terse(cls, *args, **options):
        """The designer that comes along, with one lever in each reply."""
        designer = load(cls, *args, **options)
        designer.tokenizer.batch_decode = lambda rows, **_: ['{"reserve_price":0.2}'] * len(rows)
        return designer

    monkeypatch.setattr(LanguageDesigner, "load", classmethod(terse))
    found = {complete: inference(output=tmp_path / "r.json", constrained=False, complete=complete) for complete in (False, True)}
    assert [(r["complete"], r["invalid replies"], r["partial replies"]) for r in found.values()] == [(False, 0, 1), (True, 1, 0)]
    assert found[False]["mechanism"]["reserve_price"] == 0.2 and found[True]["mechanism"] is None
    said = capsys.readouterr().out
    assert "invalid replies: 0 of 1, partial: 1;" in said and "must name all 11 fields and lacks auction_type" in said


@pytest.mark.parametrize("options, says", [
    (["--n-episodes", "0"], "--n-episodes must be 1 or more, not 0"),
    (["--suite", "nowhere"], "suite must be one of stages, open, families, briefs, sealed, not 'nowhere'"),
    (["--repo-id", "some/model"], "model 'some/model' is no folder here and cannot be downloaded"),
    (["--repo-id", "no such model"], "model 'no such model' is neither a folder here nor a hub id"),
    (["--output", "missing/folder/r.json"], "cannot be written"),
])
def test_bad_input_ends_in_one_sentence_and_code_2(options, says, tmp_path):
    done = subprocess.run([*COMMAND, "inference", *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())


def test_an_evaluation_is_the_same_to_the_bit_on_any_number_of_threads():
    designers = {"random": dd.RandomDesigner(3), "best": dd.FixedDesigner(dd.INFORMED_GREEDY), "oracle": dd.oracle("stages")}
    one, three = (dd.evaluate(designers, "stages", 80, 5, steps=2, threads=threads) for threads in (1, 3))
    pd.testing.assert_frame_equal(one, three, check_exact=True)
    with pytest.raises(ValueError, match="threads must be a whole number of at least 1"):
        dd.evaluate(designers, episodes=2, threads=0)


def test_designers_are_compared_by_the_objective_that_is_given():
    wanted = dd.Objective(welfare=0, fairness=0, participation=0, stability=0, revenue=1)
    players = {"default": dd.DEFAULT_MECHANISM}
    sold = dd.evaluate(players, "stages", 5, steps=2, objective=wanted)
    published = dd.evaluate(players, "stages", 5, steps=2)
    assert (sold.drop(columns="reward") == published.drop(columns="reward")).all(axis=None)
    held = [simulate(dd.DEFAULT_MECHANISM, dd.Population.stage(at), [(0, at)], 2).revenue_share.mean() for at in range(5)]
    assert sold["reward"].to_list() == pytest.approx(held, abs=1e-12)
