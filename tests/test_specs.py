"""Designers by name: what a text stands for, what is refused, and that all who take names take the same ones."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

import daedalus as dd
from daedalus.cli import app
from daedalus.designers.base import FixedDesigner, check_designer
from daedalus.env import SUITES
from daedalus.designers.models import PRETRAINED
from daedalus.designers.rivals import RIVALS, rival
from daedalus.designers.search import best_fixed, oracle
from daedalus.designers.specs import NAMED, Oracle, designer, model_spec

STAGES = dd.suite("stages")


@pytest.fixture
def asked(monkeypatch):
    """What language models were loaded, and with which options."""
    from daedalus.designers.language import LanguageDesigner

    calls = []
    monkeypatch.setattr(LanguageDesigner, "load", lambda *spec, **options: calls.append((*map(str, spec), options)) or "model")
    return calls


# What a text stands for

def test_a_name_is_what_is_known_by_it():
    for name, known in dd.DESIGNERS.items():
        assert designer(name) is known
    assert designer("informed-greedy") is dd.DESIGNERS["greedy"]
    assert designer("best-fixed") == designer("best fixed") == FixedDesigner(best_fixed("stages"))
    assert designer("best-fixed-open") == FixedDesigner(best_fixed("open"))
    assert set(RIVALS) < set(NAMED)
    start = dd.play(rival("contextual"), STAGES, 0, 2)
    assert dd.play(designer("contextual"), STAGES, 0, 2).equals(start)


def test_a_name_that_was_registered_is_one(monkeypatch):
    monkeypatch.setitem(dd.DESIGNERS, "mine", mine := FixedDesigner(dd.Mechanism(reserve_price=0.3)))
    assert dd.designer("mine") is mine


def test_what_is_a_designer_stands_for_itself():
    def mine(observation):
        return dd.DEFAULT_MECHANISM

    assert designer(mine) is mine and designer(dd.INFORMED_GREEDY) == dd.DESIGNERS["greedy"]


def test_texts_that_name_language_models(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("copy").mkdir()
    Path("greedy").mkdir()
    for spec in ("trained", "hf/owner/model", "copy", Path("copy"), "./greedy"):
        assert designer(spec, complete=True) == "model"
    options = {"complete": True}
    assert asked == [(options,), ("owner/model", options), ("copy", options), ("copy", options), ("greedy", options)]
    assert designer("greedy") is dd.DESIGNERS["greedy"]


@pytest.mark.parametrize("spec", ["gredy", "", " ", "hf", "hf/", "openai/", "smollm3", "nowhere/at/all", "setup.py/x"])
def test_a_text_that_names_nothing_is_refused_with_what_would_do(spec, asked):
    with pytest.raises(ValueError, match="^designer must be trained, random, greedy, default, informed-greedy, best-fixed, "
                                         f".*, oracle, .*, hf/ORG/NAME or a folder .*, not {spec!r}$"):
        designer(spec)
    assert not asked


@pytest.mark.parametrize("spec", [None, 7, dd.RandomDesigner, {"reserve_price": 0.1}])
def test_what_is_no_designer_is_refused(spec):
    with pytest.raises(ValueError, match="^designer must be a "):
        designer(spec)


def test_options_of_what_has_none_are_refused():
    for spec in ("greedy", dd.INFORMED_GREEDY):
        with pytest.raises(ValueError, match="^designer .* takes no temperature: only a language model does$"):
            designer(spec, temperature=1.0)


def test_a_hub_model_is_not_mistaken_for_a_folder(asked, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("owner/model").mkdir(parents=True)
    with pytest.raises(ValueError, match="^'hf/owner/model' is a model on the hub, and 'owner/model' is also here: "):
        designer("hf/owner/model")
    assert not asked


# The oracle

@pytest.mark.parametrize("suite", SUITES)
def test_the_oracle_plays_what_was_found_for_each_population(suite):
    people = dd.suite(suite)
    steps = dd.play(designer("oracle"), people, 3, 2)
    assert steps["mechanism"].tolist() == [mechanism for mechanism in oracle(suite) for _ in range(2)]
    table = dd.evaluate({"by name": dd.designer("oracle"), "by list": oracle(suite)}, suite, len(people), steps=2)
    assert table[table["designer"] == "by name"]["reward"].tolist() == table[table["designer"] == "by list"]["reward"].tolist()
    check_designer(Oracle(), people[:3], steps=2)


def test_the_oracle_knows_nobody_else():
    with pytest.raises(ValueError, match="^the oracle knows the populations of the suites stages and open only, "
                                         "not that of episode 1$"):
        dd.play(Oracle(), [STAGES[0], dd.Population(truthful=3)], 0, 1)


# The command line and the service

def test_two_options_name_one_designer(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("copy").mkdir()
    assert [model_spec(None, None), model_spec("greedy", None), model_spec(None, "owner/model")] == [
        "trained", "greedy", "hf/owner/model"]
    assert Path(model_spec(None, "copy")) == Path("copy") and Path(model_spec(None, str(tmp_path))) == tmp_path
    with pytest.raises(ValueError, match="^--model greedy and --repo-id owner/model both name the designer"):
        model_spec("greedy", "owner/model")


def inference(*words):
    """What the command answers, and what it wrote."""
    done = CliRunner().invoke(app, ["inference", *words])
    file = Path("inference_results.json")
    return done, json.loads(file.read_text()) if file.exists() else None


def test_inference_plays_a_designer_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, found = inference("--model", "best fixed")
    assert done.exit_code == 0 and found["designer"] == "best fixed" and found["mechanism"] == dict(best_fixed())
    assert (found["replies"], found["invalid replies"]) == (0, 0) and best_fixed().to_text() in done.stdout
    done, found = inference("--model", "oracle", "--n-episodes", "5")
    known = dd.evaluate({"x": oracle("stages")}, "stages", 5)["reward"].tolist()
    assert found["rewards"] == {"oracle": known}
    done, found = inference("--model", "default", "--n-episodes", "2", "--baseline")
    assert list(found["rewards"]) == ["random", "informed-greedy", "best fixed", "oracle", "default"]


def test_inference_answers_a_brief(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = 'maximise revenue; auction_type is "vcg"; reserve_price is at most 0.05'
    done, found = inference("--brief", asked)
    assert done.exit_code == 0 and f"brief: {found['brief']}" in done.stdout and found["brief"] == dd.Brief.from_text(asked).text()
    assert found["mechanism"]["auction_type"] == "vcg" and found["mechanism"]["reserve_price"] <= 0.05
    done, found = inference("--model", "trained", "--n-episodes", "3", "--baseline", "--brief", asked)
    known = dd.evaluate({"x": designer("trained")}, "stages", 3, brief=dd.Brief.from_text(asked))["reward"].tolist()
    assert found["rewards"]["trained"] == known and "objective" not in found


@pytest.mark.parametrize("words, sentence", [
    (["--brief", "sell a lot"], "a brief is a text such as 'maximise welfare x revenue; .* not 'sell a lot'"),
    (["--brief", "maximise revenue", "--objective", "welfare"], "objective must be left out beside a brief"),
    (["--brief", "maximise revenue", "--suite", "briefs"], "brief must be left out with the suite 'briefs', which has"),
    (["--model", "gredy"], "designer must be trained, random, .* not 'gredy'"),
    (["--model", "greedy", "--repo-id", "a/b"], "--model greedy and --repo-id a/b both name the designer: give one of them"),
    (["--model", "greedy", "--free"], "designer 'greedy' takes no constrained: only a language model does"),
])
def test_inference_refuses_what_names_no_designer(words, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done, found = inference(*words)
    assert done.exit_code == 2 and found is None
    assert re.search(sentence, done.stderr) and "Traceback" not in done.stderr


def test_a_service_is_run_with_a_designer_by_name(monkeypatch):
    calls = []
    monkeypatch.setattr("daedalus.cli._check_port", lambda *asked: None)
    monkeypatch.setattr("daedalus.serving.serve.serve", lambda *given, **options: calls.append(given))
    done = CliRunner().invoke(app, ["serve", "--model", "contextual"])
    assert done.exit_code == 0, done.output
    *_, load, _, name, _ = calls[0]
    assert name == "contextual" and load().library == rival("contextual").library
    assert CliRunner().invoke(app, ["serve", "--model", "gredy"]).exit_code == 2 and len(calls) == 1


def test_a_service_says_who_answers():
    from starlette.testclient import TestClient

    from daedalus.serving.serve import arena_designers, create_app

    service = create_app(load=lambda: designer("default"), page=False, name="default")
    with TestClient(service, base_url="http://localhost") as client:
        answer = client.post("/api/design", json={}).json()
    assert (answer["designer"], answer["mechanism"]) == ("default", dict(dd.DEFAULT_MECHANISM))
    offered = [name for name in arena_designers(service.state.designers) if name not in PRETRAINED]
    assert offered == ["default", "trained", "first edition", "contextual-brief", "contextual", "best fixed", "informed-greedy",
                       "random"]
    twin = create_app(load=lambda: designer("random"), page=False, name="random")
    others = [name for name in arena_designers(twin.state.designers) if name not in PRETRAINED]
    assert others == ["random", "trained", *offered[2:-1]]


def test_the_designer_of_the_first_edition_is_asked_without_a_brief_and_mended():
    brief = dd.Brief(at_most={"reserve_price": 0.05})
    first = designer("first edition")
    seen = dd.DaedalusEnv(STAGES[3], brief=brief).reset(0)
    assert first(seen) == brief.mended(first(seen.replace(brief=None))) and brief.allows(first(seen))
