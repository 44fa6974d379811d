"""Intervals: what they cover, that their draws are those behind the committed numbers, and that there is one set of them."""

import ast
import json

import numpy as np
import pytest

from daedalus.results import CHECKOUT, data_folders
from daedalus.studies.screens import SUSPICIOUS, TSUCHIURA, auc_interval, tender_table, tsuchiura
from daedalus.studies.stats import (
    against, cluster_counts, counts, crossed_interval, ends, exact_share, interval, picks, resampled_means)
from daedalus.pipeline.verify import committed_record

RNG = np.random.default_rng(4)
SAMPLE = RNG.random((3, 40))


# The committed intervals


def test_the_intervals_of_the_published_comparison():
    from daedalus.studies.evaluate import evaluate, interquartile_range, yardsticks

    found = committed_record("baselines")
    sizes = found["provenance"]["parameters"]
    table = evaluate({"random": yardsticks()["random"]}, "stages", sizes["checked"], sizes["seed"])
    for what, statistic in (("mean", np.mean), ("IQR", interquartile_range)):
        row, = (row for row in found["value"]["rows"] if (row["designer"], row["what"]) == ("random", what))
        ends_now = interval((table["reward"].to_numpy(),), statistic, sizes["resamples"])
        assert (row["low"], row["high"]) == ends_now


def test_the_intervals_of_ablations():
    from daedalus.training.variants import BASE, ablation_records, rewards_of

    found, records = committed_record("ablations"), ablation_records()
    sizes = found["provenance"]["parameters"]
    row = found["value"]["gains"][0]
    where = f"{row['suite']}, {row['observation']}"
    gain = rewards_of(records, row["variant"], where) - rewards_of(records, BASE, where)
    told = crossed_interval(gain, sizes["resamples"], sizes["seed"])
    assert tuple(round(number, 5) for number in told) == (row["difference"], row["low"], row["high"])


@pytest.mark.skipif(not any((folder / TSUCHIURA).is_file() for folder in data_folders()),
                    reason=f"no data folder holds {TSUCHIURA}: set DAEDALUS_DATA_DIR")
def test_the_intervals_of_screens():
    found = committed_record("screens")
    sizes = found["provenance"]["parameters"]
    tenders = tender_table(tsuchiura())
    single = counts(len(tenders), sizes["draws"], sizes["seed"])
    clustered = cluster_counts(10 * tenders["year"] + tenders["quarter"], sizes["draws"], sizes["seed"])
    score = SUSPICIOUS["variation"] * tenders["variation"].to_numpy(float)
    row = found["value"]["auc"]["all"]["variation"]
    assert auc_interval(score, tenders["cartel"], single) == (row["AUC"], row["low"], row["high"])
    assert auc_interval(score, tenders["cartel"], clustered)[1:] == (row["low (quarters)"], row["high (quarters)"])


# The draws


def test_the_draws_of_an_interval_are_its_picks():
    drawn = SAMPLE[0][picks(40, 500, 7)].mean(-1)
    assert interval((SAMPLE[0],), resamples=500, seed=7) == pytest.approx(tuple(ends(drawn)), rel=1e-12)
    low, high = interval((SAMPLE,), np.median, 500, 7)
    assert (low.shape, high.shape) == ((3,), (3,)) and (low < high).all()
    assert interval((SAMPLE[2],), np.median, 500, 7) == (low[2], high[2])


def test_samples_that_belong_together_are_drawn_together():
    low, high = interval((SAMPLE[0] + 1, SAMPLE[0]), lambda a, b, axis: (a - b).mean(axis))
    assert (low, high) == pytest.approx((1, 1), abs=1e-12)


def test_a_sample_of_one_is_its_own_interval():
    assert interval((np.array([0.25]),)) == (0.25, 0.25)


@pytest.mark.parametrize("wrong", [0, 2.5, True])
def test_resamples_are_a_whole_number(wrong):
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, not"):
        interval((SAMPLE[0],), resamples=wrong)


def test_draws_keep_clusters_together():
    drawn = cluster_counts(np.array([7, 7, 3, 9]), 50, seed=1)
    assert drawn.shape == (50, 4) and (drawn[:, 0] == drawn[:, 1]).all()
    assert (drawn[:, [0, 2, 3]].sum(1) == 3).all()
    assert (drawn == cluster_counts(np.array([7, 7, 3, 9]), 50, seed=1)).all()


def test_means_over_draws_serve_all_rows_alike():
    means = resampled_means(SAMPLE, 300, 3)
    assert means.shape == (3, 300)
    assert means[1] == pytest.approx(counts(40, 300, 3) @ SAMPLE[1] / 40)
    assert np.ptp(resampled_means(SAMPLE + np.array([[0], [1], [2]]), 300, 3) - means, axis=1) == pytest.approx(0, abs=1e-9)


def test_ends_leave_out_what_is_no_number():
    draws = np.arange(101.0)
    assert ends(draws).tolist() == [2.5, 97.5]
    assert ends(np.append(draws, np.nan)).tolist() == [2.5, 97.5]
    assert ends(np.stack([draws, draws + 1], 1), axis=0).tolist() == [[2.5, 3.5], [97.5, 98.5]]


# Seeds and episodes


def test_an_interval_over_seeds_and_episodes():
    constant = np.full((3, 50), 0.25)
    assert crossed_interval(constant) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)
    apart = np.repeat([[0.0], [0.5], [1.0]], 50, axis=1)  # drawn means: 0 and 1 each with chance 1/27, above 2.5 %
    mean, low, high = crossed_interval(apart, 20_000)
    assert (mean, low, high) == (0.5, pytest.approx(0.0, abs=1e-12), pytest.approx(1.0, abs=1e-12))


def test_with_one_seed_the_interval_is_that_of_the_episodes():
    gains = np.random.default_rng(1).normal(0.1, 0.2, (1, 400))
    mean, low, high = crossed_interval(gains, 20_000)
    error = gains.std() / 20
    assert mean == pytest.approx(gains.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_the_crossed_interval_covers_at_least_both_parts():
    rng = np.random.default_rng(2)
    gains = rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.2, (1, 100)) + rng.normal(0, 0.1, (6, 100))
    _, low, high = crossed_interval(gains, 4000)
    by_seed, by_episode = gains.mean(1).std() / np.sqrt(6), gains.mean(0).std() / np.sqrt(100)
    width = np.hypot(by_seed, by_episode)
    assert 0.9 * 1.96 * width < (high - low) / 2 < 1.5 * 1.96 * width


# Shares and known means


def test_an_exact_share_covers_the_truth():
    share, low, high = exact_share(np.arange(20) < 3)
    assert (share, low, high) == (0.15, pytest.approx(0.0321, abs=1e-4), pytest.approx(0.3789, abs=1e-4))
    assert exact_share(np.zeros(10, bool))[1] == 0 and exact_share(np.arange(20) < 3, 0.99)[1] < low


def test_a_mean_is_judged_by_its_standard_error():
    told = against(0.5, np.array([0.4, 0.5, 0.6, 0.7]))
    assert told["simulated"] == pytest.approx(0.55) and told["z"] == pytest.approx(0.05 / told["standard error"])


# One set of them


def test_nothing_else_resamples():
    """No module and no notebook imports SciPy's bootstrap, or takes the middle 95 % by itself."""
    sources = {path.name: path.read_text(encoding="utf-8") for path in (CHECKOUT / "daedalus").glob("**/*.py")
               if path.name != "__init__.py"}
    for path in (CHECKOUT / "nbs").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        sources[path.name] = "\n".join("\n".join(line for line in part.splitlines() if not line.lstrip().startswith(("!", "%")))
                                       for part in code)
    for name in ("stats.py", "40_stats.ipynb"):
        del sources[name]
    for name, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.module == "scipy.stats":
                assert not {"bootstrap", "binomtest"} & {alias.name for alias in node.names}, name
            if isinstance(node, ast.Constant):
                assert node.value not in (0.975, 97.5), f"{name} takes the ends of an interval by itself"
