"""Intervals: what they cover, that their draws are those behind the committed numbers, and that there is one set of them."""

import ast
import json

import numpy as np
import pytest

from daedalus.env import suite
from daedalus.paths import CHECKOUT, data_folders
from daedalus.studies.screens import SUSPICIOUS, TSUCHIURA, auc_interval, tender_table, tsuchiura
from daedalus.studies.stats import (
    ON_DISTRIBUTION, ON_SUITE, PARTS, QUESTIONS, _strata, against, cluster_counts, counts, crossed_interval, crossed_variances, ends,
    exact_share, holm, interquartile_mean, interval, performance_profile, picks, probability_of_improvement, resampled_means,
    resampling, setting_variances, weighted_quantile)
from daedalus.pipeline.verify import committed_record

RNG = np.random.default_rng(4)
SAMPLE = RNG.random((3, 40))


# The committed intervals


def test_the_intervals_of_the_published_comparison():
    from daedalus.studies.evaluate import evaluate, interquartile_range, yardsticks

    found = committed_record("baselines")
    sizes = found["provenance"]["parameters"]
    table = evaluate({"random": yardsticks()["random"]}, "stages", sizes["checked"], sizes["seed"])
    sample, drawn = table["reward"].to_numpy(), resampling(table["at"], ON_SUITE, sizes["resamples"])
    quarter, three = (weighted_quantile(sample, level, drawn.weights) for level in (0.25, 0.75))
    for what, point, draws in (("mean", sample.mean(), drawn.means(sample)), ("IQR", interquartile_range(sample), three - quarter)):
        row, = (row for row in found["value"]["rows"] if (row["designer"], row["what"]) == ("random", what))
        assert (row["ours"], row["low"], row["high"]) == pytest.approx((point, *drawn.ends(draws)), rel=1e-12)


def test_the_intervals_of_ablations():
    from daedalus.training.variants import BASE, ablation_records, rewards_of

    found, records = committed_record("ablations"), ablation_records()
    sizes = found["provenance"]["parameters"]
    row = found["value"]["gains"][0]
    where = f"{row['suite']}, {row['observation']}"
    gain = rewards_of(records, row["variant"], where) - rewards_of(records, BASE, where)
    at = np.arange(gain.shape[1]) % len(suite(row["suite"]))
    told = crossed_interval(gain, at, ON_SUITE, sizes["resamples"], sizes["seed"])
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


# Two questions


WHO = np.repeat(np.arange(20), 15)


@pytest.mark.parametrize("populations, spread", [(20, 0.0), (20, 0.1), (6, 0.1)])
def test_the_draws_have_the_variance_that_theory_gives_them(populations, spread):
    """Of a suite: the variance within, by episodes. Of a distribution: that between the means, and the first once more."""
    rng, episodes = np.random.default_rng(populations), 30
    who = np.repeat(np.arange(populations), episodes)
    sample = rng.normal(0, spread, populations)[who] + rng.normal(0, 0.2, len(who))
    table = sample.reshape(populations, episodes)
    within = table.var(1, ddof=1).mean() / len(who)
    between = table.mean(1).var(ddof=1) / populations
    on_suite, on_distribution = (resampling(who, question, 20_000) for question in QUESTIONS)
    assert on_suite.means(sample).var() == pytest.approx(within, rel=0.05)
    assert on_distribution.means(sample).var() == pytest.approx(between + within * (episodes - 1) / episodes, rel=0.06)
    assert (on_suite.freedom, on_distribution.freedom) == (len(who) - populations, populations - 1)


def test_a_draw_of_a_suite_leaves_each_population_its_share():
    who = np.array(list("aaabbbbbcc"))
    weights = resampling(who, ON_SUITE, 50).weights
    for name, share in (("a", 0.3), ("b", 0.5), ("c", 0.2)):
        assert weights[:, who == name].sum(1) == pytest.approx(share)
    shares = resampling(who, ON_DISTRIBUTION, 50).weights[:, who == "a"].sum(1)
    assert {0.0} < set(shares.tolist()) and shares.max() == pytest.approx(1)


def test_populations_that_differ_widen_the_interval_on_their_distribution_alone():
    noise = np.random.default_rng(3).normal(0, 0.1, len(WHO))
    widths = {question: [np.ptp(drawn.ends(drawn.means(noise + apart * WHO))) for apart in (0.0, 0.05)]
              for question, drawn in ((question, resampling(WHO, question)) for question in QUESTIONS)}
    assert widths[ON_SUITE][1] == pytest.approx(widths[ON_SUITE][0])
    assert widths[ON_DISTRIBUTION][1] > 5 * widths[ON_DISTRIBUTION][0] > 5 * widths[ON_SUITE][0]


def test_what_was_met_once_is_drawn_with_others():
    """Ten populations with an episode each: drawn as one sample, and not as ten that cannot vary."""
    sample = np.random.default_rng(1).normal(0, 1, 10)
    drawn = resampling(np.arange(10), ON_SUITE, 20_000)
    assert drawn.means(sample).var() == pytest.approx(sample.var(ddof=1) / 10, rel=0.05)
    assert _strata([5, 5, 5, 7, 7, 9]).tolist() == [1, 1, 1, 0, 0, 0] or _strata([5, 5, 5, 7, 7, 9]).tolist() == [0, 0, 0, 1, 1, 1]


def test_nothing_is_said_of_what_was_seen_once():
    one, same = resampling([3], ON_SUITE, 10), resampling([3, 3, 3], ON_DISTRIBUTION, 10)
    assert np.isnan(one.ends(one.means([0.5]))).all()
    assert np.isnan(same.ends(same.means(np.arange(3.0)))).all() and np.isnan(same.p_value(1.0, same.means(np.arange(3.0))))
    with pytest.raises(ValueError, match="question must be one of suite, distribution, not 'populations'"):
        resampling(WHO, "populations")
    with pytest.raises(ValueError, match="resamples must be a whole number of at least 1, not 0"):
        resampling(WHO, ON_SUITE, 0)


def test_the_same_seed_draws_the_same_and_rows_are_drawn_together():
    rows = np.random.default_rng(0).random((2, len(WHO)))
    for question in QUESTIONS:
        a, b, c = resampling(WHO, question, 50, 1), resampling(WHO, question, 50, 1), resampling(WHO, question, 50, 2)
        assert (a.weights == b.weights).all() and (a.weights != c.weights).any()
        assert a.means(rows)[1] == pytest.approx(a.means(rows[1])) and np.ptp(a.means(rows[1] + 1) - a.means(rows[1])) < 1e-12


@pytest.mark.parametrize("populations, episodes", [(5, 40), (20, 2), (20, 15)])
def test_each_interval_covers_what_it_is_about(populations, episodes):
    """1500 studies with known truths: about 95 % hold theirs. Episodes drawn alone: too wide for one, too narrow for the other."""
    rng = np.random.default_rng(7)
    who = np.repeat(np.arange(populations), episodes)
    level = rng.normal(0, 0.1, (1500, populations))
    sample = level[:, who] + rng.normal(0, 0.15, (1500, len(who)))
    widths = {}
    for question, truth in ((ON_SUITE, level.mean(1)), (ON_DISTRIBUTION, 0)):
        drawn = resampling(who, question)
        low, high = drawn.ends(drawn.means(sample))
        assert 0.93 <= np.mean((low <= truth) & (truth <= high)) <= 0.985
        widths[question] = np.mean(high - low)
    low, high = ends(resampled_means(sample))
    assert np.mean((low <= 0) & (0 <= high)) < 0.92 and np.mean(high - low) > 1.1 * widths[ON_SUITE]


def test_p_values_are_even_where_nothing_differs():
    rng = np.random.default_rng(5)
    for question in QUESTIONS:
        drawn = resampling(WHO, question, 500)
        gains = rng.normal(0, 0.1, (400, 20))[:, WHO] + rng.normal(0, 0.05, (400, len(WHO)))
        if question == ON_SUITE: gains -= gains.reshape(400, 20, 15).mean((1, 2))[:, None] - rng.normal(0, 0.05, (400, 300)).mean(1)[:, None]
        values = np.array([drawn.p_value(gain.mean(), drawn.means(gain)) for gain in gains])
        assert 0.02 < np.mean(values < 0.05) < 0.085 and 0.4 < np.mean(values < 0.5) < 0.6


# As rliable defines them


def test_the_probability_of_improvement_by_hand():
    """Population a: of four pairs, 3 beats 1 and 2, 1.5 beats 1, and loses to 2. Population b: equal, one half."""
    x, y, who = np.array([3, 1.5, 0.2, 0.2]), np.array([1, 2, 0.2, 0.2]), list("aabb")
    assert probability_of_improvement(x, y, who) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert probability_of_improvement(y, x, who) == pytest.approx((1 / 4 + 1 / 2) / 2)
    weights = np.array([[0.25, 0.25, 0.25, 0.25], [0.5, 0.0, 0.25, 0.25], [0.0, 0.0, 0.5, 0.5]])
    assert probability_of_improvement(x, y, who, weights) == pytest.approx([0.625, 0.75, 0.5])


def test_it_is_the_mann_whitney_statistic_of_each_population():
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(8)
    x, y = rng.integers(0, 9, len(WHO)), rng.integers(1, 9, len(WHO))
    by_hand = [mannwhitneyu(x[WHO == p], y[WHO == p]).statistic / 15**2 for p in range(20)]
    assert probability_of_improvement(x, y, WHO) == pytest.approx(np.mean(by_hand))


def test_profiles_and_middle_halves():
    sample = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 9.0])
    assert performance_profile(sample, [0.3, 0.65]).mean(-1).tolist() == [5 / 8, 2 / 8]
    even = np.full((1, 8), 1 / 8)
    assert interquartile_mean(sample) == pytest.approx(0.45) and interquartile_mean(sample, even) == pytest.approx([0.45])
    heavy = np.array([[0, 0, 0, 0, 0, 0, 0.5, 0.5]])
    assert interquartile_mean(sample, heavy) == pytest.approx([(0.7 + 9) / 2])
    assert weighted_quantile(sample, 0.25, even).tolist() == [0.2] and weighted_quantile(sample, 1.0, heavy).tolist() == [9.0]


NO_RLIABLE = "needs rliable, which is in no extra: it stands on arch below 8, which does not import beside pandas 3"


def scores_to_compare():
    """Scores of two designers, float [episodes, populations] each, with ties; and the population of each in a row."""
    rng = np.random.default_rng(5)
    level = rng.beta(2, 2, 20)
    x, y = (np.round(level + gain + rng.normal(0, 0.15, (15, 20)), 1) for gain in (0.03, 0.0))
    return x, y, np.tile(np.arange(20), 15)


def test_rliable_itself_says_the_same_of_two_designers():
    metrics = pytest.importorskip("rliable.metrics", reason=NO_RLIABLE)
    library = pytest.importorskip("rliable.library", reason=NO_RLIABLE)
    x, y, who = scores_to_compare()
    for one, other in ((x, y), (y, x), (x, x)):
        theirs = metrics.probability_of_improvement(one, other)
        assert probability_of_improvement(one.ravel(), other.ravel(), who) == pytest.approx(theirs, abs=1e-12)
    assert interquartile_mean(x.ravel()) == pytest.approx(metrics.aggregate_iqm(x), abs=1e-12)
    even = np.full((1, x.size), 1 / x.size)
    assert interquartile_mean(x.ravel(), even)[0] == pytest.approx(metrics.aggregate_iqm(x), abs=1e-12)
    thresholds = np.linspace(-0.05, 1.05, 12)   # between the scores
    theirs, _ = library.create_performance_profile({"x": x}, thresholds, reps=2)
    assert performance_profile(x.ravel(), thresholds).mean(-1) == pytest.approx(theirs["x"], abs=1e-12)


@pytest.mark.parametrize(("question", "tasks", "wider"), [(ON_SUITE, False, (0.97, 1.12)), (ON_DISTRIBUTION, True, (1.02, 1.2))])
def test_rliable_itself_has_nearly_the_same_intervals(question, tasks, wider, monkeypatch):
    """They draw n of n and take percentiles; ours draw n - 1 at the level of Student's t, and are a little wider."""
    metrics = pytest.importorskip("rliable.metrics", reason=NO_RLIABLE)
    library = pytest.importorskip("rliable.library", reason=NO_RLIABLE)
    x, _, who = scores_to_compare()
    monkeypatch.setattr(np.random, "choice", np.random.default_rng(0).choice)   # theirs draw from the common generator
    _, theirs = library.get_interval_estimates({"x": x}, lambda scores: np.array([metrics.aggregate_iqm(scores)]),
                                               task_bootstrap=tasks, reps=4000)
    drawn = resampling(who, question, 4000)
    ours = drawn.ends(interquartile_mean(x.ravel(), drawn.weights))
    assert wider[0] < np.ptp(ours) / np.ptp(theirs["x"]) < wider[1]
    assert ours.mean() == pytest.approx(theirs["x"].mean(), abs=0.1 * np.ptp(ours))


# Many verdicts


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.6]).tolist() == [1, 1, 1] and holm([0.2]).tolist() == [0.2]
    told = holm([0.01, np.nan, 0.02])
    assert told[[0, 2]].tolist() == pytest.approx([0.02, 0.02]) and np.isnan(told[1])


def test_holm_keeps_the_chance_of_one_wrong_verdict():
    """Thirty differences that are none, independent: one of them passes 5 % in four of five studies, and Holm's in 5 %."""
    values = np.random.default_rng(9).random((2000, 30))
    assert np.mean(values.min(1) < 0.05) > 0.75
    assert np.mean([holm(row).min() < 0.05 for row in values]) == pytest.approx(0.05, abs=0.015)


# Seeds and episodes


def test_an_interval_over_seeds_and_episodes():
    constant, where = np.full((3, 50), 0.25), np.arange(50) % 5
    assert crossed_interval(constant, where) == pytest.approx((0.25, 0.25, 0.25), abs=1e-12)
    apart = np.repeat([[0.0], [0.5], [1.0]], 50, axis=1)  # two are drawn: 0 twice and 1 twice have a chance of 1/9
    mean, low, high = crossed_interval(apart, where, resamples=20_000)
    assert (mean, low, high) == (0.5, pytest.approx(0.0, abs=1e-12), pytest.approx(1.0, abs=1e-12))


def test_with_one_seed_the_interval_is_that_of_the_episodes():
    gains = np.random.default_rng(1).normal(0.1, 0.2, (1, 400))
    mean, low, high = crossed_interval(gains, np.zeros(400), resamples=20_000)
    error = gains.std() / 20
    assert mean == pytest.approx(gains.mean())
    assert low == pytest.approx(mean - 1.96 * error, abs=0.1 * error)
    assert high == pytest.approx(mean + 1.96 * error, abs=0.1 * error)


def test_the_crossed_interval_covers_at_least_both_parts():
    rng = np.random.default_rng(2)
    gains = rng.normal(0, 0.05, (6, 1)) + rng.normal(0, 0.2, (1, 100)) + rng.normal(0, 0.1, (6, 100))
    _, low, high = crossed_interval(gains, np.zeros(100), resamples=4000)
    by_seed, by_episode = gains.mean(1).std() / np.sqrt(6), gains.mean(0).std() / np.sqrt(100)
    width = np.hypot(by_seed, by_episode)
    assert 0.9 * 1.96 * width < (high - low) / 2 < 1.5 * 1.96 * width


def test_the_crossed_interval_draws_populations_where_that_is_asked():
    rng, where = np.random.default_rng(6), np.arange(200) % 20
    gains = rng.normal(0, 0.1, 20)[where] + rng.normal(0, 0.02, (3, 200))
    widths = [np.subtract(*crossed_interval(gains, where, question)[:0:-1]) for question in QUESTIONS]
    assert widths[1] > 10 * widths[0] and widths[1] == pytest.approx(2 * 2.09 * 0.1 / 20**0.5, rel=0.35)


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


# Where a difference comes from

SHAPES = dict(zip(PARTS, ((12, 1, 1), (1, 9, 1), (12, 9, 1), (12, 1, 3), (12, 9, 3))))
SIZES = dict(zip(PARTS, (0.3, 0.2, 0.15, 0.1, 0.25)))


def summed(rng):
    """States x mechanisms x futures whose parts have the standard deviations of SIZES."""
    return sum(SIZES[part] * rng.normal(size=shape) for part, shape in SHAPES.items())


def test_the_variances_of_the_parts_are_estimated_without_bias():
    rng = np.random.default_rng(1)
    studies = np.array([list(crossed_variances(summed(rng)).values()) for _ in range(1500)])[..., 0]
    error = studies.std(0) / len(studies) ** 0.5
    assert (abs(studies.mean(0) - np.square(list(SIZES.values()))) < 4 * error).all() and (error < 0.003).all()


def test_parts_that_are_not_there_have_no_variance():
    rng = np.random.default_rng(2)
    for part, shape in SHAPES.items():
        parts = {name: float(x[0]) for name, x in crossed_variances(np.zeros((12, 9, 3)) + rng.normal(size=shape)).items()}
        assert parts[part] > 0.2
        others = set(PARTS) - {part} if part in ("state", "mechanism") else set(PARTS[PARTS.index(part) + 1:])
        assert all(abs(parts[other]) < 1e-12 for other in others)


def test_a_draw_of_states_is_the_table_of_these_states():
    rng = np.random.default_rng(3)
    values, settings, rows = summed(rng), np.arange(9) % 2, rng.integers(12, size=(5, 12))
    weights = np.stack([np.bincount(row, minlength=12) for row in rows]) / 12
    drawn, levers = crossed_variances(values, weights), setting_variances(values, settings, weights)
    for at, row in enumerate(rows):
        assert {name: x[at] for name, x in drawn.items()} == pytest.approx(
            {name: x[0] for name, x in crossed_variances(values[row]).items()})
        assert sum(x[at] for x in levers) == pytest.approx(sum(x[0] for x in setting_variances(values[row], settings)))


def test_what_a_lever_makes_is_estimated_without_bias_and_without_what_else_mechanisms_differ_by():
    rng, settings = np.random.default_rng(4), ["low", "middle", "high"] * 3
    levels = np.array([{"low": 0, "middle": 1, "high": 2}[name] for name in settings])
    studies = []
    for _ in range(1500):
        lever = 0.2 * (np.array([-1.0, 0.0, 1.0]) + rng.normal(size=(12, 3)))[:, levels]
        studies.append([x[0] for x in setting_variances(lever[..., None] + summed(rng), settings)])
    error = np.std(studies, axis=0) / len(studies) ** 0.5
    assert (abs(np.mean(studies, axis=0) - 0.04 * 2 / 3) < 4 * error).all() and (error < 0.002).all()
