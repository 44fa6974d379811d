"""Recomputing and tracing the committed numbers."""

import ast
import json
import re

import pytest
from typer.testing import CliRunner

from daedalus.pipeline import reproduce, verify
from daedalus.cli import app
from daedalus.paths import CHECKOUT, write_text
from daedalus.studies.screens import DataUnavailable
from daedalus.training.train import SHIPPED
from daedalus.pipeline.verify import Claim, claims, committed_record, holds, leaves, lookup, verdict

CLAIMS = {claim.id: claim for claim in claims()}


# The committed claims


def test_there_are_claims_about_every_part_of_the_paper():
    assert len(CLAIMS) >= 40
    results = {claim.result for claim in CLAIMS.values()}
    assert {"baselines", "evaluation", "training", "theory", "findings", "screens", "properties", "exploitability",
            "scaling", "speed", "training_speed", "serving"} <= results
    assert sum(claim.spot is not None for claim in CLAIMS.values()) >= 8


@pytest.mark.parametrize("claim", CLAIMS.values(), ids=lambda claim: claim.id)
def test_a_claim_has_a_place_and_no_value(claim):
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id)
    before, beside = verify._before(claim)
    holds(claim.tolerance, before, before, beside)
    assert all(isinstance(step, str | dict) or step in (0, -1) for step in claim.path)
    if isinstance(before, list):
        assert before and all(isinstance(number, float) for number in before)
    else:
        assert verify._is_number(before) or re.fullmatch("[0-9a-f]{16}", before)   # a number, or the hash of files
    if claim.spot:
        assert claim.spot[0] in verify.SPOTS
    source = committed_record(claim.result)["provenance"] if claim.result and "/" not in claim.result else None
    if source:
        assert verify.writers()[claim.result] == source["notebook"]
        assert verify._writing_cell(claim.result, source["notebook"])


def test_a_measured_time_has_a_bound_that_its_sentence_states():
    bounded = [claim for claim in CLAIMS.values() if isinstance(claim.tolerance, dict) and "above" in claim.tolerance]
    assert {claim.result for claim in bounded} == {"speed", "training_speed", "scaling"}
    for claim in bounded:
        bound = claim.tolerance["above"]
        assert f"more than {bound:g} x" in claim.sentence
        assert verify._before(claim)[0] > bound


def test_every_timing_has_a_bound_that_a_factor_of_a_hundred_breaks():
    for rule in verify._claims_file()["rest"]:
        slower, same, faster = (holds(rule["tolerance"], 2.0, now) for now in (0.02, 2.0, 200.0))
        assert same and not (slower and faster), rule
    for result in "speed", "training_speed", "serving", "scaling":
        assert not holds(verify.rest_tolerance(result, ("speed-up", 0, "median")), 1.8, 0.018), result
    assert verify.rest_tolerance("scaling", ("speed-up on paper", 3, "workers")) == "exact"
    assert verify.rest_tolerance("scaling", ("speed-up on paper", 3, "384 jobs as here")) == {"times": 4}
    assert verify.rest_tolerance("scaling", ("fronts", "stage 4", 0, "welfare")) == "exact"


def test_the_claims_follow_the_designer_that_ships(monkeypatch):
    assert SHIPPED not in (CHECKOUT / "data" / "claims.json").read_text()
    stages, of = committed_record("training")["value"]["stages"], {"stage": "SFT", "suite": "open", "observation": "signals"}
    row, = (row for row in stages if row["training"] == SHIPPED and of.items() <= row.items())
    assert lookup({"stages": stages}, CLAIMS["sft-open"].path)[1] == row["R"]
    monkeypatch.setattr(verify, "SHIPPED", "briefs-7")
    verify._claims_file.cache_clear()
    try:
        other = {claim.id: claim for claim in claims()}
    finally:
        verify._claims_file.cache_clear()
    assert other["trained-first-open"].result == "training/briefs-7"
    assert other["sft-open"].path[1] == {"training": "briefs-7", **of}


def test_the_spot_check_of_the_language_model_is_about_the_one_that_ships():
    assert {claim.result for claim in CLAIMS.values() if claim.spot and claim.spot[0] == "trained_rewards"} == {
        f"training/{SHIPPED}"}


def test_every_rule_for_the_rest_leads_to_something():
    for rule in verify._claims_file()["rest"]:
        places = [keys for keys, _ in leaves(committed_record(rule["result"])["value"])]
        pairs = [list(zip(rule["path"], keys, strict=False)) for keys in places]
        assert any(all(step in ("*", key) for step, key in found) for found in pairs), rule


@pytest.mark.parametrize("name", ["theory-revenue", "theory-revenue-z", "screen-variation"])
def test_a_number_of_an_experiment_is_recomputed_alone(name):
    claim = CLAIMS[name]
    assert verify.spot(claim) == lookup(committed_record(claim.result)["value"], claim.path)[1]


def test_no_module_runs_text_as_code():
    for path in (CHECKOUT / "daedalus").rglob("*.py"):
        calls = [node.func.id for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not {"exec", "eval", "compile"} & set(calls), path


# Places and tolerances

VALUE = {"rows": [{"who": "random", "mean": 0.25}, {"who": "trained", "mean": 0.5}], "stages": {"SFT": 1, "GRPO": 2},
         "rewards": [0.1, 0.2, 0.3], "none": {}}


@pytest.mark.parametrize(
    ("path", "keys", "found"),
    [
        (["rows", {"who": "trained"}, "mean"], ("rows", 1, "mean"), 0.5),
        (["rows", 0, "mean"], ("rows", 0, "mean"), 0.25),
        (["stages", -1], ("stages", "GRPO"), 2),
        (["rewards", {"first": 2}], ("rewards", "first 2"), [0.1, 0.2]),
        ([], (), VALUE),
    ],
)
def test_a_place(path, keys, found):
    assert lookup(VALUE, path) == (keys, found)


@pytest.mark.parametrize("path", [["row"], ["rows", {"who": "nobody"}], ["rows", {"what": 1}], ["rewards", 3, "mean"]])
def test_no_such_place(path):
    with pytest.raises(ValueError, match="there is nothing, or more than one thing, at"):
        lookup(VALUE, path)


def test_leaves_are_all_values():
    assert dict(leaves(VALUE))[("rows", 1, "mean")] == 0.5
    assert len(list(leaves(VALUE))) == 4 + 2 + 3 + 1


@pytest.mark.parametrize(
    ("tolerance", "before", "now", "word"),
    [
        ("exact", 0.5, 0.5, "same"),
        ("exact", 0.5, 0.5000000000000001, "MISS"),
        ("exact", [0.1, 0.2], [0.1, 0.2], "same"),
        ("exact", [0.1, 0.2], [0.1, 0.3], "MISS"),
        (0.1, 0.5, 0.59, "within"),
        (0.1, 0.5, 0.61, "MISS"),
        (0.1, "first_price", "vcg", "MISS"),
        (0.1, True, False, "MISS"),
        ({"inside": ["low", "high"]}, 0.5, 0.55, "within"),
        ({"inside": ["low", "high"]}, 0.5, 0.65, "MISS"),
        ({"above": 20}, 60.0, 31.0, "within"),
        ({"above": 20}, 60.0, 200.0, "within"),
        ({"above": 20}, 60.0, 20.0, "MISS"),
        ({"above": 1}, 60.0, -60.0, "MISS"),
        ({"above": 1}, 60.0, None, "MISS"),
        ("exact", 0.5, None, "MISS"),
        ({"times": 4}, 1.0, 0.26, "within"),
        ({"times": 4}, -1.0, -3.9, "within"),
        ({"times": 4}, 1.0, 4.1, "MISS"),
        ({"times": 4}, 1.0, -1.0, "MISS"),
        ({"times": 4}, "CAPACITY_REACHED", "none", "MISS"),
    ],
)
def test_a_verdict(tolerance, before, now, word):
    assert verdict(tolerance, before, now, {"low": 0.4, "high": 0.6}) == word


@pytest.mark.parametrize("tolerance", ["about", {"near": 1}, {"times": 2, "above": 1}, {"above": 2, "inside": 1}, "any", None])
def test_an_unknown_tolerance(tolerance):
    with pytest.raises(ValueError, match="is unknown"):
        holds(tolerance, 1.0, 2.0)


def test_the_longest_rule_decides_about_the_rest(monkeypatch):
    rules = [{"result": "table", "path": path, "tolerance": bound} for path, bound in (([], 1), (["*", "time"], 2))]
    monkeypatch.setattr(verify, "_claims_file", lambda: {"rest": rules})
    assert verify.rest_tolerance("table", ("stages", "mean")) == 1
    assert verify.rest_tolerance("table", ("stages", "time", 0)) == 2
    assert verify.rest_tolerance("other", ("stages", "time")) == "exact"


def test_only_figures_of_notebooks_that_run_alone_may_differ():
    sources = [(reproduce.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8") for name in reproduce.alone()]
    drawn = {name for source in sources for name in re.findall(r'(?:save_figure\(figure, |keep_figure\()\\"(\w+)\\"', source)}
    assert set(verify._claims_file()["timed figures"]) <= drawn
    assert all((CHECKOUT / "paper" / "figures" / f"{name}.pdf").exists() for name in verify._claims_file()["timed figures"])


# A small project: one notebook, one result and two figures, of which one counts as timed


def notebook(path, *sources):
    cells = [dict(cell_type="code", id=f"cell-{at}", metadata={"tags": [] if at else ["parameters"]}, source=source,
                  outputs=[], execution_count=None) for at, source in enumerate(sources)]
    kernel = dict(display_name="python3", language="python", name="python3")
    content = dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)
    return write_text(path, json.dumps(content))


SAYS = "#| writes: results/table figures/plot? figures/clock?\n"
WORK = """from daedalus.paths import figures_dir, write_text
from daedalus.results import write_result
write_result("table", {"mean": n / 4, "rows": [1, n], "time": 0.1}, {"seed": seed, "n": n})
write_text(figures_dir() / "plot.svg", f"<svg>{n}</svg>")
write_text(figures_dir() / "clock.svg", f"<svg>{n}</svg>")"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose one result was made with n = 2; returns a function that changes the committed value."""
    path = notebook(tmp_path / "nbs" / "30_table.ipynb", f"{SAYS}seed = 0\nn = 1", WORK)
    for module in (reproduce, verify):
        monkeypatch.setattr(module, "BUILD", tmp_path / "build")
        monkeypatch.setattr(module, "NOTEBOOKS", tmp_path / "nbs")
        monkeypatch.setattr(module, "data_dir", lambda: tmp_path / "data")
    monkeypatch.setattr(reproduce, "CHECKOUT", tmp_path)
    committed_folders = {"results": tmp_path / "data" / "results", "figures": tmp_path / "paper" / "figures"}
    monkeypatch.setattr(reproduce, "committed_dir", committed_folders.get)
    monkeypatch.setattr(reproduce, "notebooks", lambda folder=None: [path])
    source = {"notebook": "30_table", "parameters": {"seed": 0, "n": 2}, "versions": {"python": "3"}}
    monkeypatch.setitem(verify.SPOTS, "quarter", lambda source: source["parameters"]["n"] / 4)
    told = {"claims": [{"id": "mean", "sentence": "the mean", "result": "table", "path": ["mean"], "spot": ["quarter", {}]}],
            "timed figures": ["clock"], "rest": [{"result": "table", "path": ["time"], "tolerance": 0.15}]}
    write_text(tmp_path / "data" / "claims.json", json.dumps(told))
    write_text(tmp_path / "data" / "params.json", '{"smoke": {}, "paper": {"30_table": {"n": 2}}}')
    write_text(tmp_path / "data" / "published.json", '{"numbers": {}}')
    for figure in ("plot", "clock"):
        write_text(tmp_path / "paper" / "figures" / f"{figure}.svg", "<svg>2</svg>")
    monkeypatch.setenv("DAEDALUS_RESULTS_DIR", str(tmp_path / "spots"))
    monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(tmp_path / "spots"))

    def commit(**changes):
        value = {"mean": 0.5, "rows": [1, 2], "time": 0.2} | changes
        write_text(tmp_path / "data" / "results" / "table.json", json.dumps({"value": value, "provenance": source}))

    commit()
    verify._claims_file.cache_clear()
    yield commit
    verify._claims_file.cache_clear()


def test_all_is_found_again_and_not_run_twice(project, tmp_path, capfd):
    assert verify.verify("paper") == 0
    told = capfd.readouterr().out
    again = "daedalus verify --only mean --profile paper"
    assert re.search(rf"the mean +0\.5000 +0\.5000 +same +[\d.]+ +{again}", told)
    assert "of 3 other values 2 are the same, 1 within their tolerance, 0 missed; 2 of 2 figures the same" in told
    assert "1 claims: 1 the same, 0 within" in told
    head, *lines = (tmp_path / "build" / "verify" / "claims.csv").read_text().splitlines()
    assert head == "id,claim,published,committed,recomputed,verdict,seconds,command,reason" and len(lines) == 1
    assert json.loads((tmp_path / "data" / "results" / "table.json").read_text())["value"]["time"] == 0.2
    made = reproduce.built(tmp_path / "30_table.ipynb", "verify").stat().st_mtime_ns
    assert verify.verify("paper", "30_table") == 0
    assert reproduce.built(tmp_path / "30_table.ipynb", "verify").stat().st_mtime_ns == made
    assert verify.verify("paper", "mean", force=True) == 0
    assert reproduce.built(tmp_path / "30_table.ipynb", "verify").stat().st_mtime_ns > made


def test_a_missed_claim_shows_both_numbers(project, capfd):
    project(mean=0.5000001)
    assert verify.verify("paper") == verify.verify("smoke") == verify.verify("smoke", "mean") == 1
    assert capfd.readouterr().out.count("MISS mean: committed 0.5000001, recomputed 0.5") == 3


def test_a_number_that_no_claim_names_is_missed_too(project, tmp_path, capfd):
    project(rows=[1, 3])
    assert verify.verify("paper") == 1
    told = capfd.readouterr().out
    assert "MISS table / rows / 1: committed 3, recomputed 2" in told and "0 missed; 1 other values or figures missed" in told


def test_a_figure_that_differs_is_missed_unless_it_shows_times(project, tmp_path, capfd):
    write_text(tmp_path / "paper" / "figures" / "clock.svg", "<svg>3</svg>")
    assert verify.verify("paper") == 0
    assert "1 of 2 figures the same, not clock.svg" in capfd.readouterr().out
    write_text(tmp_path / "paper" / "figures" / "plot.svg", "<svg>3</svg>")
    assert verify.verify("paper") == 1
    told = capfd.readouterr().out
    assert "MISS figure plot.svg: not the committed bytes" in told and "0 missed; 1 other values or figures missed" in told


def test_a_time_that_is_out_of_bounds_is_missed(project, capfd):
    project(time=0.9)
    assert verify.verify("paper") == 1
    assert "MISS table / time: committed 0.9, recomputed 0.1" in capfd.readouterr().out


def test_a_value_that_is_no_longer_produced_is_missed(project, capfd):
    project(more=[5])
    assert verify.verify("paper") == 1
    assert "MISS table / more / 0: committed 5, recomputed None" in capfd.readouterr().out


def test_a_notebook_that_fails_is_a_miss_and_one_without_data_is_skipped(project, tmp_path, capfd, monkeypatch):
    notebook(tmp_path / "nbs" / "30_table.ipynb", f"{SAYS}seed = 0\nn = 1", "1 / 0", WORK)
    assert verify.verify("paper") == 1
    told = capfd.readouterr().out
    assert "30_table: failed" in told and "failed in cell 'cell-1': ZeroDivisionError" in told
    raises = "from daedalus.studies.screens import DataUnavailable\nraise DataUnavailable('no tenders here')"
    notebook(tmp_path / "nbs" / "30_table.ipynb", f"{SAYS}seed = 0\nn = 1", raises, WORK)

    def no_data(source):
        raise DataUnavailable("no tenders here")

    monkeypatch.setitem(verify.SPOTS, "quarter", no_data)
    assert verify.verify("paper") == verify.verify("smoke") == 0
    told = capfd.readouterr().out
    assert told.count("skipped mean: no tenders here") == 2
    assert told.count("0 the same, 0 within their tolerance, 1 skipped") == 2


def test_a_notebook_that_writes_no_result_here_is_skipped(project, tmp_path, capfd):
    notebook(tmp_path / "nbs" / "30_table.ipynb", "#| writes: results/table?\nseed = 0\nn = 1", "1")
    assert verify.verify("paper") == 0
    assert "30_table: skipped, 30_table writes no table on this machine" in capfd.readouterr().out


def test_two_claims_with_one_id_are_refused(monkeypatch):
    row = {"id": "mean", "sentence": "the mean", "result": "table", "path": ["mean"]}
    monkeypatch.setattr(verify, "_claims_file", lambda: {"claims": [row, row]})
    with pytest.raises(ValueError, match="two claims have the id 'mean'"):
        claims()


# Where numbers come from


def test_a_claim_is_traced(project):
    told = "\n".join(verify.trace("mean"))
    for part in ("the mean", "committed:  0.5", "data/results/table.json, at mean", "nbs/30_table.ipynb, cell 'cell-1'",
                 "seed = 0, n = 2", "daedalus verify --profile paper --only 30_table", "daedalus verify --only mean"):
        assert part in told


@pytest.mark.parametrize("number", ["0.50", "0.5", ".5", "+0.500"])
def test_a_printed_number_is_traced(project, number):
    first, *rest = verify.trace(number)
    assert first == "data/results/table.json / mean = 0.5"
    assert "nbs/30_table.ipynb, cell 'cell-1'" in rest[0]


def test_a_published_number_is_traced_to_where_it_was_published():
    assert list(verify.trace("\u22120.579"))[-2:] == [
        "data/published.json / training reward after = -0.579",
        "    published:  mean composite training reward after 50 GRPO steps (6. Limitations)"]


def test_what_cannot_be_traced(project):
    with pytest.raises(ValueError, match="no committed result and no published number is printed as 0.77"):
        list(verify.trace("0.77"))
    with pytest.raises(ValueError, match="neither the id of a claim"):
        list(verify.trace("nothing"))


def test_every_claim_of_the_paper_is_traced():
    for claim in CLAIMS.values():
        told = list(verify.trace(claim.id))
        assert claim.result is None or any(line.startswith("made by:") for line in told)
        for path in re.findall(r"(?:data|nbs)/[\w/.-]+\.(?:json|ipynb)", "\n".join(told)):
            assert (CHECKOUT / path).exists()


# The command line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("verify --only nothing", "there is no claim 'nothing' to verify at profile smoke"),
        ("verify --only nothing --profile paper", "there is no claim 'nothing' to verify at profile paper"),
        ("verify --only 75_speed", "there is no claim '75_speed' to verify at profile smoke"),
        ("verify --only gap-open", "claim 'gap-open' has no spot check: it needs --profile paper"),
        ("verify --profile huge", "profile 'huge' is unknown: use one of smoke, paper"),
        ("trace nothing", "'nothing' is neither the id of a claim, see `daedalus verify --list`, nor a number"),
        ("trace -nothing", "'-nothing' is neither the id of a claim"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, sentence):
    done = CliRunner().invoke(app, arguments.split())
    assert done.exit_code == 2
    assert done.stderr.startswith(f"daedalus: {sentence}") and done.stderr.count("\n") == 1


def test_the_claims_are_listed():
    done = CliRunner().invoke(app, ["verify", "--list"])
    assert done.exit_code == 0
    assert [line.split()[0] for line in done.output.splitlines()] == list(CLAIMS)


@pytest.mark.parametrize("number", ["-0.579", "-.579", "\u22120.579"])
def test_a_number_below_zero_is_no_option(number):
    done = CliRunner().invoke(app, ["trace", number])
    assert done.exit_code == 0 and "training reward after = -0.579" in done.output


def test_to_verify_and_to_trace_are_commands_and_no_flags():
    for words in (["reproduce", "--verify"], ["reproduce", "--trace", "0.434"]):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 2 and "No such option" in done.stderr


def test_the_exit_code_of_a_miss(project):
    assert CliRunner().invoke(app, ["verify"]).exit_code == 0
    project(mean=0.6)
    assert CliRunner().invoke(app, ["verify"]).exit_code == 1


def test_a_claim_is_immutable():
    with pytest.raises(AttributeError):
        Claim("mean", "the mean", "table").result = "other"
