"""Evaluation: paired episodes, honest statistics, and the command line of the published script."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

import daedalus as dd
from daedalus.evaluate import boxplot, inference, interquartile_range, paired, published, summary, worst_fifth, yardsticks
from daedalus.market import simulate

COMMAND = [sys.executable, "-c", "from daedalus.cli import main; main()"]


def test_one_row_for_each_designer_and_episode_on_the_same_luck():
    table = dd.evaluate({"a": dd.FixedDesigner(dd.INFORMED_GREEDY), "b": lambda obs: dd.INFORMED_GREEDY}, episodes=7, seed=3)
    assert len(table) == 14 and table["at"].tolist() == [0, 1, 2, 3, 4, 0, 1] * 2
    a, b = (table[table["designer"] == name]["reward"].to_numpy() for name in "ab")
    assert (a == b).all()
    alone = simulate(dd.INFORMED_GREEDY, dd.Population.stage(1), [(3, 6)])
    assert a[6] == pytest.approx(alone.reward.mean(), abs=1e-15)


def test_mechanisms_by_population_are_played_where_they_belong():
    people = [dd.Population.stage(0), dd.Population.stage(4)]
    table = dd.evaluate({"knowing": [dd.DEFAULT_MECHANISM, dd.INFORMED_GREEDY]}, people, episodes=4)
    second = simulate(dd.INFORMED_GREEDY, people[1], [(0, 3)])
    assert table["reward"].iloc[3] == pytest.approx(second.reward.mean(), abs=1e-15)
    with pytest.raises(ValueError, match="'knowing' must have a mechanism for each of the 2 populations, not 1"):
        dd.evaluate({"knowing": [dd.DEFAULT_MECHANISM]}, people, episodes=4)


def test_statistics_of_a_known_table():
    rewards = {"low": [0.1, 0.2, 0.3, 0.4], "high": [0.2, 0.4, 0.6, 0.8]}
    table = pd.DataFrame([{"designer": name, "episode": e, "at": e % 2, "reward": r} for name, rs in rewards.items() for e, r in enumerate(rs)])
    short = summary(table)
    assert short.loc["low", "mean"] == pytest.approx(0.25) and short.loc["high", "worst population"] == pytest.approx(0.4)
    assert short.loc["low", "low"] < 0.25 < short.loc["low", "high"]
    gain = paired(table, "low").loc["high"]
    assert gain["difference"] == pytest.approx(0.25) and gain["better in"] == 1 and gain["low"] >= 0.1
    assert interquartile_range(np.arange(5.0)) == 2 and worst_fifth(np.array([3.0, 1, 2, 5, 4])) == 1
    with pytest.raises(ValueError, match="reference must be one of high, low, not 'none'"):
        paired(table, "none")


def test_intervals_cover():
    """About 95 of 100 bootstrap intervals of a mean of 40 normal numbers hold the true mean."""
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        table = pd.DataFrame({"designer": "x", "episode": range(40), "at": 0, "reward": rng.normal(0.5, 0.1, 40)})
        row = summary(table, 300).loc["x"]
        held += row["low"] <= 0.5 <= row["high"]
    assert 86 <= held <= 100


@pytest.mark.parametrize("name", ["random", "informed-greedy"])
def test_published_baselines_are_reproduced(name):
    numbers = published()["numbers"]
    table = dd.evaluate({name: yardsticks()[name]}, episodes=1500, seed=0)
    assert table["reward"].mean() == pytest.approx(numbers[f"{name} mean"]["value"], abs=0.02)
    assert interquartile_range(table["reward"].to_numpy()) == pytest.approx(numbers[f"{name} IQR"]["value"], abs=0.06)


def test_the_figure_shows_every_designer_and_the_published_values():
    import matplotlib.container

    matplotlib.use("Agg")
    axes = boxplot(dd.evaluate(yardsticks(), episodes=10))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["random", "informed-greedy", "best fixed", "oracle"]
    assert sum(isinstance(drawn, matplotlib.container.ErrorbarContainer) for drawn in axes.containers) == 2
    assert axes.get_legend() is not None


def test_inference_writes_what_it_says(tmp_path, capsys):
    record = inference(10, True, output=tmp_path / "r.json", seed=4)
    assert json.loads((tmp_path / "r.json").read_text()) == record
    assert {name: len(rewards) for name, rewards in record["rewards"].items()} == dict.fromkeys(yardsticks(), 10)
    assert "informed-greedy answers in its place" in capsys.readouterr().out
    assert inference(10, True, output=tmp_path / "again.json", seed=4) == record


def test_one_shot_shows_prompt_and_mechanism(tmp_path, capsys):
    inference(output=tmp_path / "r.json")
    out = capsys.readouterr().out
    assert "round_number: 0 / 10" in out and dd.Mechanism.from_text(out.split("JSON only.")[1]) == dd.INFORMED_GREEDY


@pytest.mark.parametrize("options, says", [
    (["--n-episodes", "0"], "--n-episodes must be 1 or more, not 0"),
    (["--suite", "nowhere"], "suite must be one of stages, open, not 'nowhere'"),
    (["--repo-id", "some/model"], "repo_id 'some/model' cannot be loaded"),
    (["--output", "missing/folder/r.json"], "cannot be written"),
])
def test_bad_input_ends_in_one_sentence_and_code_2(options, says, tmp_path):
    done = subprocess.run([*COMMAND, "inference", *options], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and not list(tmp_path.iterdir())
