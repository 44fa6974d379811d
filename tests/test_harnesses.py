"""The market under other people's harnesses: scores to the last digit, the hub's folder, and shares of what can be earned.

Inspect and verifiers are not installed beside the project, whose pins they rule out: `make harnesses` makes an environment for
each, and this file is run with it. Elsewhere the tests that need them are skipped.
"""

import contextlib
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import tomllib
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from openenv.cli.__main__ import app as openenv_cli
from openenv.cli._cli_utils import validate_env_structure
from openenv.cli.commands import push
from openenv.validation.runner import run_validation
from test_serve import Here, patient, serving  # noqa: F401  patient is a fixture
from typer.testing import CliRunner

import daedalus as dd
from daedalus.designers.chat_server import ChatServer, DesignerChat
from daedalus.designers.endpoint import PromptDesigner
from daedalus.paths import CHECKOUT
from daedalus.serving.harnesses import AskedModel, Episode, WireChat, environment, episodes_of, mean_scores, played
from daedalus.serving.openenv import DaedalusAction, DaedalusEnvClient, DaedalusOpenEnv, ResetOptions, best_known, share_of

SPACE = CHECKOUT / "space"
MANIFEST = yaml.safe_load((SPACE / "openenv.yaml").read_text(encoding="utf-8"))
needs_inspect = pytest.mark.skipif(not environment("inspect"), reason="Inspect is not here: make harnesses")
needs_verifiers = pytest.mark.skipif(not environment("verifiers"), reason="verifiers is not here: make harnesses")
MARKET_COLUMNS = ["welfare", "fairness", "participation", "stability", "reward", "revenue", "revenue_share"]


@pytest.fixture(scope="module")
def address():
    """The address of the service, on a free port."""
    with serving(load=lambda: dd.designer("greedy")) as server:
        yield server.url


@contextlib.contextmanager
def asked(model):
    """A chat model behind a server, under the name `model`."""
    with ChatServer({"model": lambda: model}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.url
        finally:
            server.shutdown()
            thread.join()


def run_in(python, *command, folder, **variables):
    """What a command of another environment prints."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    own |= {"INSPECT_DISPLAY": "none", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"} | variables
    done = subprocess.run([python, *command] if command[0] == "-c" else [python.parent / command[0], *command[1:]],
                          cwd=folder, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


# Episodes

@pytest.mark.parametrize("suite, episodes", [("stages", 7), ("open", 3), ("briefs", 3)])
def test_episodes_and_scores_are_those_of_evaluate_to_the_digit(suite, episodes):
    designer = dd.designer("random")
    scores = pd.DataFrame([mean_scores([*played(one, designer)], 3) for one in episodes_of(suite, episodes, 5, 3)])
    table = dd.evaluate({"random": designer}, suite, episodes, 5, 3)
    assert set(MARKET_COLUMNS) == set(scores)
    assert scores[MARKET_COLUMNS].to_numpy().tolist() == table[MARKET_COLUMNS].to_numpy().tolist()


def test_an_objective_is_what_is_rewarded():
    wanted = dd.Objective.from_text("welfare x revenue")
    one, = episodes_of("stages", 1, 0, 2, wanted)
    table = dd.evaluate({"x": dd.DEFAULT_MECHANISM}, "stages", 1, 0, 2, objective=wanted)
    assert mean_scores([*played(one, dd.designer("default"))], 2)["reward"] == table["reward"][0]
    assert table["reward"][0] != dd.evaluate({"x": dd.DEFAULT_MECHANISM}, "stages", 1, 0, 2)["reward"][0]


def test_an_episode_goes_through_json():
    for one in [*episodes_of("briefs", 2), *episodes_of("open", 2, objective=dd.Objective(revenue=1))]:
        assert Episode.from_json(one.to_json()) == one


@pytest.mark.parametrize("wrong, sentence", [
    ({"suite": "closed"}, "suite must be one of"), ({"suite": "sealed"}, "'sealed' is played by designers in"),
    ({"episodes": 0}, "episodes must be"), ({"steps": 0}, "steps must be"), ({"seed": -1}, "seed")])
def test_episodes_that_are_none_are_refused(wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        episodes_of(**wrong)


def test_steps_that_were_not_played_count_as_0():
    one, = episodes_of("stages", 1, 0, 4)
    rows = [*played(one, dd.designer("default"))]
    cut, whole = mean_scores(rows[:1], 4), mean_scores(rows, 4)
    assert cut["reward"] == rows[0]["reward"] / 4 and whole["welfare"] == pytest.approx(np.mean([row["welfare"] for row in rows]))
    assert set(mean_scores([], 4).values()) == {0.0}


def test_an_asked_model_is_read_as_one_behind_a_server_is():
    replies = iter(["no idea", '{"auction_type": "vcg"}', "no idea", "{"])
    designer = PromptDesigner(AskedModel(lambda chat: next(replies)))
    one, = episodes_of("stages", 1, 0, 4)
    rows = [*played(one, designer)]
    vcg = dd.Mechanism(auction_type="vcg")
    env, _ = one.open()
    by_hand = [env.step(mechanism).reward for mechanism in (dd.DEFAULT_MECHANISM, vcg, vcg, vcg)]
    assert [row["reward"] for row in rows] == by_hand and (designer.asked, designer.invalid) == (4, 3)


def test_an_echo_of_the_question_is_no_answer():
    designer = PromptDesigner(AskedModel(lambda chat: chat[-1]["content"]))
    one, = episodes_of("stages", 1, 0, 2)
    assert len([*played(one, designer)]) == designer.invalid == 2


# Shares

@pytest.mark.parametrize("stage", range(5))
def test_the_best_mechanism_known_has_the_whole_share_and_others_what_they_earn_of_it(stage):
    env, mechanism = DaedalusOpenEnv(), dd.Mechanism.random(stage)
    earned = {best: dd.simulate([best], [dd.Population.stage(stage)], [7], 4).reward[0].tolist()
              for best in (best_known(stage), mechanism)}
    for played_here in earned:
        env.reset(seed=7, stage=stage, share=True, episode_length=4)
        shares = [env.step(DaedalusAction(**played_here.model_dump())).reward for _ in range(4)]
        top = earned[best_known(stage)]
        assert shares == [1.0 if own >= best else own / best for own, best in zip(earned[played_here], top)]
    assert dd.oracle("stages")[stage] == best_known(stage)


def test_a_share_by_hand():
    assert [share_of(*pair) for pair in ((0.25, 0.5), (0.5, 0.5), (0.75, 0.5), (0.0, 0.5), (0.0, 0.0))] == [0.5, 1, 1, 0, 1]


def test_without_share_the_reward_is_what_it_was():
    env, rewards = DaedalusOpenEnv(), []
    for share in (True, False):
        env.reset(seed=3, share=share)
        rewards.append(env.play(dd.Mechanism(reserve_price=0.3)).reward)
    expected = dd.simulate([dd.Mechanism(reserve_price=0.3)], [dd.Population.stage(4)], [3], 1).reward[0, 0]
    assert rewards[1] == expected


@pytest.mark.parametrize("options", [{"n_agents": 4}, {"population": {"truthful": 8}}, {"objective": {"revenue": 1}},
                                     {"brief": {"at_most": {"reserve_price": 0.1}}}])
def test_a_share_of_what_is_not_known_is_refused(options):
    with pytest.raises(ValueError, match="share needs a stage with its 8 bidders and the published reward"):
        ResetOptions(share=True, **options)


def test_a_service_that_rewards_something_else_has_no_shares():
    with pytest.raises(ValueError, match="share needs the published reward, and this service rewards .*revenue"):
        DaedalusOpenEnv(dd.Objective(revenue=1)).reset(share=True)


# The hub's folder

def test_the_folder_is_what_push_takes():
    assert validate_env_structure(SPACE) == ["Recommended directory missing: outputs/"]


def test_the_folder_validates():
    report = json.loads(CliRunner().invoke(openenv_cli, ["validate", "--level", "static", "--json", str(SPACE)]).stdout)
    assert report["verdict"] == "pass" and [result["status"] for result in report["results"]] == ["pass"]


@pytest.mark.usefixtures("patient")
def test_every_check_that_the_release_has_passes_on_the_folder(address):
    results = {result.check_id: result for result in run_validation(SPACE, provider=Here(address)).results}
    passed = {name for name, result in results.items() if result.status.value == "pass"}
    assert passed == {"static.manifest", "runtime.startup", "runtime.reward_well_formed", "runtime.observation_schema",
                      "runtime.state_contract"}
    for name in results.keys() - passed:
        why, = results[name].evidence
        assert why == "grader not implemented in this build" or name == "runtime.network_policy", results[name]


def test_the_server_validates(address):
    report = json.loads(CliRunner().invoke(openenv_cli, ["validate", "--url", address, "--json"]).stdout)
    assert report["passed"] and len(report["criteria"]) == 6


def test_the_probe_is_the_oracle_and_reaches_what_the_manifest_declares():
    plan = json.loads((SPACE / MANIFEST["validation"]["execution"]["probe_path"]).read_text(encoding="utf-8"))
    reward = MANIFEST["validation"]["reward"]
    env = DaedalusOpenEnv()
    env.reset(seed=plan["reset"]["seed"], **plan["reset"]["options"])
    rewards = [env.step(DaedalusAction(**action)).reward for action in plan["actions"]]
    assert min(rewards) >= reward["range"][1] - reward["oracle_tolerance"] == max(rewards) == 1
    for seed in range(4):   # and whoever does not design is well below
        env.reset(seed=seed, stage=4, share=True)
        floor = [env.play(dd.Mechanism(reserve_price=0.9)).reward for _ in range(10)]
        assert reward["range"][0] <= np.mean(floor) <= reward["range"][1] - reward["floor_margin"]


def test_the_oracle_passes_its_own_check_and_one_that_is_none_does_not(address, monkeypatch, capsys):
    oracle = runpy.run_path(str(SPACE / "oracle.py"))
    assert oracle["main"](address) == 0
    assert capsys.readouterr().out.count("smallest reward is 1, and 1 is declared") == 5
    monkeypatch.setitem(oracle["main"].__globals__, "best_known", lambda stage: dd.Mechanism(reserve_price=0.9))
    assert oracle["main"](address) == 1


def test_the_folder_says_what_the_project_says():
    ours = yaml.safe_load((CHECKOUT / "openenv.yaml").read_text(encoding="utf-8"))
    for name in ours.keys() - {"validation"}:
        assert MANIFEST[name] == ours[name], name
    for name in ("resources", "types"):
        assert MANIFEST["validation"][name] == ours["validation"][name]
    project = tomllib.loads((SPACE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    meta = ConfigParser(delimiters=["="])
    meta.read(CHECKOUT / "settings.ini", encoding="utf-8")
    assert project["version"] == meta["DEFAULT"]["version"] == dd.__version__
    assert project["requires-python"] == f">={meta['DEFAULT']['min_python']}"
    assert project["dependencies"] == [f"{meta['DEFAULT']['name']}[serve]=={dd.__version__}"] and "serve" in meta["extras"]
    text = (SPACE / "Dockerfile").read_text(encoding="utf-8")
    assert set(re.findall(r"daedalus-space:([\d.]+)", text + (SPACE / "README.md").read_text())) == {dd.__version__}
    root = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    for line in ("FROM", "RUN useradd", "HEALTHCHECK", "EXPOSE"):
        assert re.search(rf"^{line}.*$", text, re.MULTILINE)[0] == re.search(rf"^{line}.*$", root, re.MULTILINE)[0]
    assert f"EXPOSE {MANIFEST['port']}" in text and "latest" not in text


def test_the_folder_is_a_package_that_openenv_finds_by_name(tmp_path):
    (tmp_path / "daedalus_env").symlink_to(SPACE)
    told = subprocess.run(
        [sys.executable, "-c", "import daedalus_env as e, sys; print(e.DaedalusEnv.__name__, e.DaedalusAction().auction_type);"
         "sys.argv[1:] = ['--help']; e.server()"], env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{CHECKOUT}"},
        capture_output=True, text=True)
    assert told.stdout.startswith(f"DaedalusEnvClient {dd.DEFAULT_MECHANISM.auction_type}"), told.stderr
    assert "--port" in told.stdout


class Hub:
    """What a push is uploaded to."""

    def __init__(self):
        self.files = {}

    def create_repo(self, **asked):
        """It exists."""

    def upload_folder(self, folder_path, **asked):
        """Keep what is uploaded."""
        self.files = {path.relative_to(folder_path).as_posix(): path.read_bytes()
                      for path in Path(folder_path).rglob("*") if path.is_file()}


def test_what_is_pushed_is_the_folder_as_it_is(tmp_path, monkeypatch):
    hub, folder = Hub(), tmp_path / "space"
    shutil.copytree(SPACE, folder, ignore=shutil.ignore_patterns("wheels", "__pycache__"))
    (folder / "wheels").mkdir()
    (folder / "wheels" / "constraints.txt").write_text("numpy==1\n")
    monkeypatch.setattr(push, "HfApi", lambda: hub)
    monkeypatch.setattr(push, "whoami", lambda: {"name": "somebody"})
    done = CliRunner().invoke(openenv_cli, ["push", str(folder), "--repo-id", "somebody/daedalus"])
    assert done.exit_code == 0, done.output
    assert {"Dockerfile", "README.md", "openenv.yaml", "pyproject.toml", "client.py", "oracle.py", "probe.json", "__init__.py",
            "wheels/constraints.txt"} == set(hub.files)
    for name, content in hub.files.items():
        assert content == (folder / name).read_bytes(), name   # no page of OpenEnv's own is switched on
    head = yaml.safe_load(hub.files["README.md"].decode().split("---")[1])
    assert head["sdk"] == "docker" and head["app_port"] == MANIFEST["port"] and "openenv" in head["tags"]


def test_the_page_of_the_folder_shows_calls_that_work(address, monkeypatch):
    code, = re.findall(r"```python\n(.*?)```", (SPACE / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = code.replace("https://NAME-daedalus.hf.space", address).replace("from daedalus_env import DaedalusAction, DaedalusEnv\n", "")
    names = {"DaedalusAction": DaedalusAction, "DaedalusEnv": DaedalusEnvClient}
    exec(code, names)
    assert names["result"].done and 0 <= names["result"].reward <= 1


# Inspect

def test_the_pins_for_inspect_are_ours_but_for_what_it_rules_out():
    pins = [dict(line.split("==") for line in (CHECKOUT / name).read_text().splitlines() if "==" in line and line[0] != "#")
            for name in ("constraints.txt", "constraints-inspect.txt")]
    ours, theirs = ({re.sub(r"[-_.]+", "-", name).lower(): version for name, version in some.items()} for some in pins)
    assert {name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name]} == {"fsspec", "python-dateutil"}
    meta = ConfigParser(delimiters=["="])
    meta.read(CHECKOUT / "settings.ini", encoding="utf-8")
    assert f"inspect_ai=={theirs['inspect-ai']}" in meta["extras"]["inspect"].split()
    core = {re.sub(r"[-_.]+", "-", name).lower() for name in meta["DEFAULT"]["requirements"].split()}
    assert core <= theirs.keys()


def test_without_inspect_the_task_says_what_is_missing():
    code = ("import sys; sys.modules['inspect_ai'] = None\n"
            "try: from daedalus.serving.harnesses import referee\n"
            "except ModuleNotFoundError as error: print(error)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=CHECKOUT)
    assert "constraints-inspect.txt: pip install -e '.[inspect]'" in done.stdout, done.stderr


MOCK = """
import json, sys
import daedalus as dd
from daedalus.designers.chat_server import chat_model
from daedalus.designers.endpoint import PromptDesigner
from daedalus.serving.harnesses import referee
from inspect_ai import eval
from inspect_ai.model import ModelOutput, ModelUsage, get_model

suite, prompt, limit = json.loads(sys.argv[1])
careless = chat_model("careless")

def replies(messages, tools, choice, config):
    output = ModelOutput.from_content("mockllm", careless.complete([[{"role": each.role, "content": each.text} for each in messages]])[0])
    output.usage = ModelUsage(input_tokens=10, output_tokens=10, total_tokens=20)
    return output

log, = eval(referee(suite=suite, episodes=4, seed=0, steps=5, prompt=prompt), model=get_model("mockllm/model", custom_outputs=replies),
            log_dir="logs", display="none", token_limit=limit)
ours = PromptDesigner(careless, prompt)
table = dd.evaluate({"ours": ours}, suite, 4, 0, 5)
print(json.dumps({
    "status": log.status, "ours": table.to_dict("list"), "valid": 1 - ours.invalid / ours.asked, "metadata": log.eval.metadata,
    "hash": ours.prompt.hash, "samples": [sample.scores["market_scores"].value for sample in log.samples],
    "rewards": [sample.scores["market_scores"].metadata["rewards"] for sample in log.samples],
    "asked": [[message.role for message in sample.messages] for sample in log.samples],
    "means": {score.name: score.metrics["mean"].value for score in log.results.scores},
    "errors": {score.name: score.metrics["stderr"].value for score in log.results.scores}}))
"""


@needs_inspect
@pytest.mark.parametrize("suite, prompt", [("open", "full"), ("briefs", "few-shot")])
def test_inspect_s_scores_are_those_of_evaluate_to_the_digit(tmp_path, suite, prompt):
    found = json.loads(run_in(environment("inspect"), "-c", MOCK, json.dumps([suite, prompt, None]), folder=tmp_path).splitlines()[-1])
    assert found["status"] == "success"
    for column in MARKET_COLUMNS:
        assert [sample[column] for sample in found["samples"]] == found["ours"][column], column
    assert found["means"]["reward"] == np.mean(found["ours"]["reward"])
    assert found["errors"]["reward"] > 0
    assert np.mean([sample["valid"] for sample in found["samples"]]) == pytest.approx(found["valid"]) and found["valid"] < 1
    assert found["metadata"]["prompt"]["hash"] == found["hash"]
    assert all(roles[0] == "system" and roles[-1] == "assistant" for roles in found["asked"])


@needs_inspect
def test_an_episode_that_a_limit_cuts_short_counts_its_missing_steps_as_0(tmp_path):
    found = json.loads(run_in(environment("inspect"), "-c", MOCK, json.dumps(["open", "full", 30]), folder=tmp_path).splitlines()[-1])
    for rewards, sample in zip(found["rewards"], found["samples"]):
        assert 0 < len(rewards) < 5 and sample["reward"] == pytest.approx(sum(rewards) / 5)


@needs_inspect
def test_the_command_finds_the_task_and_plays_a_model_behind_a_server(tmp_path):
    contextual = DesignerChat(dd.designer("contextual"))
    with asked(contextual) as url:
        run_in(environment("inspect"), "inspect", "eval", "daedalus/referee", "--model", "openai-api/local/model", "-T", "suite=stages",
               "-T", "episodes=3", "-T", "steps=3", "-T", "objective=welfare x revenue", "--log-dir", "logs", "--log-format", "json",
               folder=tmp_path, LOCAL_BASE_URL=url, LOCAL_API_KEY="none")
    log, = (tmp_path / "logs").glob("*.json")
    samples = json.loads(log.read_text())["samples"]
    wanted = dd.Objective.from_text("welfare x revenue")
    ours = dd.evaluate({"ours": PromptDesigner(contextual, objective=wanted)}, "stages", 3, 0, 3, objective=wanted)
    assert [sample["scores"]["market_scores"]["value"]["reward"] for sample in samples] == ours["reward"].tolist()


# verifiers

def test_what_verifiers_sends_is_read_as_the_observation_that_it_is():
    env, seen = DaedalusOpenEnv(), []
    observation = env.reset(seed=1, stage=3, brief={"at_most": {"reserve_price": 0.1}})
    chat = [{"role": "user", "content": json.dumps({"observation": observation.model_dump(), "action_schema": {}})}]
    said, = WireChat(lambda one: seen.append(one) or dd.INFORMED_GREEDY).complete([chat])
    assert dd.Mechanism.from_text(said) == dd.INFORMED_GREEDY
    assert seen[0].prompt() == observation.prompt and seen[0].brief == dd.Brief(at_most={"reserve_price": 0.1})


def test_a_client_that_asks_for_a_stream_gets_the_reply_and_its_end():
    openai = pytest.importorskip("openai")
    with asked(AskedModel(lambda chat: chat[-1]["content"][::-1])) as url, openai.OpenAI(base_url=url, api_key="none") as client:
        told = {"model": "model", "messages": [{"role": "user", "content": "abc"}]}
        parts = [chunk.choices[0] for chunk in client.chat.completions.create(**told, stream=True)]
        assert ["".join(part.delta.content or "" for part in parts), parts[-1].finish_reason] == ["cba", "stop"]
        assert client.chat.completions.create(**told).choices[0].message.content == "cba"


TOML = """
model = "model"
push = false
[run]
name = "daedalus"
[client]
base_url = "{model}"
api_key_var = "LOCAL_KEY"
[env.taskset]
id = "openenv"
base_url = "{market}"
resets = [{{seed = 4, stage = 4, episode_length = 3}}, {{seed = 5, n_agents = 5, stage = 3, episode_length = 2}}, {{seed = 6, stage = 2, share = true, episode_length = 2}}]
[env.player]
harness = {{id = "null"}}
runtime = {{type = "subprocess"}}
"""


@needs_verifiers
def test_the_sum_of_rewards_of_verifiers_is_ours_to_the_digit(tmp_path, address):
    contextual = dd.designer("contextual")
    with asked(WireChat(contextual)) as url:
        (tmp_path / "daedalus.toml").write_text(TOML.format(model=url, market=address))
        run_in(environment("verifiers"), "vf-eval", "@", "daedalus.toml", "--no-rich", folder=tmp_path, LOCAL_KEY="none")
    lines = (tmp_path / "outputs" / "daedalus" / "traces.jsonl").read_text().splitlines()
    theirs = {one["task"]["data"]["reset"]["seed"]: one["traces"][0]["rewards"]["openenv_reward"]["score"] for one in map(json.loads, lines)}
    ours, env = {}, DaedalusOpenEnv()
    for options in ({"seed": 4, "stage": 4, "episode_length": 3}, {"seed": 5, "n_agents": 5, "stage": 3, "episode_length": 2},
                    {"seed": 6, "stage": 2, "share": True, "episode_length": 2}):
        people = ResetOptions(**options).bidders()
        rewards = dd.play(contextual, people, [options["seed"]], options["episode_length"])
        env.reset(**options)
        shares = [env.play(mechanism).reward for mechanism in rewards["mechanism"]]
        ours[options["seed"]] = sum(shares if "share" in options else rewards["reward"].tolist())
    assert theirs == ours
