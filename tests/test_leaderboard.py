"""A table of models: the protocol, its rows from a file, a server that misbehaves, and the committed table from its replies alone."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from test_endpoint import GREEDY, failed, said
from test_endpoint import serving as scripted
from test_first_hour import on_the_core_alone

import daedalus as dd
from daedalus.designers import chat_server
from daedalus.designers.chat_server import HABITS, DesignerChat, chat_model, read_prompt, served_name, serving
from daedalus.designers.endpoint import PROMPTS, EndpointDesigner, EndpointError, Prices, Replies, past_of, prompt_of, read_yaml, reply_format
from daedalus.env import DaedalusEnv, observe, open_episodes
from daedalus.paths import CHECKOUT, data_dir
from daedalus.results import as_kept, short_hash
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, Brief, Mechanism
from daedalus.studies import leaderboard as board
from daedalus.studies.leaderboard import (
    FILES, Entry, Models, Part, flat_table, latex_table, leaderboard, obedience, read_models, read_protocol, repeats, score, write_leaderboard)

COMMITTED = data_dir() / "leaderboard"
SMALL = read_protocol().replace(parts=(Part(suite="open", populations=3), Part(suite="briefs", populations=3)), steps=3, resamples=100)
COMMAND = (sys.executable, "-c", "from daedalus.cli import main; main()", "leaderboard")
RECIPE = (CHECKOUT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## A row of the leaderboard\n")[1].split("\n## ")[0]


def one(**fields):
    return Models(protocol="standard 1", models=(Entry(**{"name": "it", "model": "mine/NAME", **fields}),))


def without_seconds(value):
    return {**value, "rows": [{**row, "seconds": 0, "requests": 0} for row in value["rows"]]}


def run(*words, code=0, cwd=None, **environment):
    done = subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=os.environ | environment)
    assert done.returncode == code, done.stderr
    return done


# What a designer reads


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 4), st.sampled_from(sorted(PROMPTS)), st.sampled_from(["none", "brief", "words"]), st.booleans())
def test_what_a_prompt_shows_is_read_back(seed, stage, prompt, brief, published):
    rng = np.random.default_rng(seed)
    wanted = {"none": None, "brief": Brief.random(rng), "words": Brief(words='say "more": {now}, round_number: 7')}[brief]
    env = DaedalusEnv(dd.Population.stage(stage), brief=wanted, hidden_horizon=bool(seed % 2))
    env.reset(seed)
    seen = env.step(Mechanism.random(rng))
    seen = seen.published() if published else seen
    again = read_prompt(prompt_of(prompt).chat(seen, past_of(seen))[-1]["content"])
    assert again.prompt() == seen.prompt() and (again.brief == wanted or brief == "words")


@pytest.mark.parametrize("text", ["", "Which rules?", "round_number: 1 / 10", "recent_outcomes: []"])
def test_a_message_without_an_observation_is_refused(text):
    with pytest.raises(ValueError, match="shows no observation"):
        read_prompt(text)


# The server


def ask(server, **body):
    return requests.post(f"{server.url}/chat/completions", json=body, timeout=60)


CHAT = prompt_of("full").chat(observe(open_episodes([dd.Population.stage(4)], 0))[0])


def test_the_server_answers_as_the_protocol_says():
    with serving(["greedy", "contextual"]) as server:
        assert [each["id"] for each in requests.get(f"{server.url}/models", timeout=60).json()["data"]] == ["greedy", "contextual"]
        answer = ask(server, model="greedy", messages=CHAT, temperature=0, **reply_format("json_schema"))
        assert answer.status_code == 200 and answer.json()["choices"][0]["message"]["content"] == GREEDY and answer.json()["model"] == "greedy"
        assert "usage" not in answer.json()   # a designer without language has no tokens


@pytest.mark.parametrize("body, status, words", [
    ({"model": "other", "messages": CHAT}, 404, "model must be one of greedy, not 'other'"),
    ({"model": "greedy", "messages": CHAT, "temperature": 0.7}, 400, "temperature must be 0, not 0.7"),
    ({"model": "greedy", "messages": []}, 400, "messages must be a list of at least one message"),
    ({"model": "greedy", "messages": [{"role": "user", "content": 3}]}, 400, "messages must have a role and a content"),
    ({"model": "greedy", "messages": [{"role": "user", "content": "hello"}]}, 400, "shows no observation"),
    ({"model": "greedy", "messages": CHAT, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}}, 400, "schema of a mechanism")])
def test_a_request_that_cannot_be_met_is_refused_in_one_sentence(body, status, words):
    with serving(["greedy"]) as server:
        answer = ask(server, **body)
        assert answer.status_code == status and words in answer.json()["error"]["message"]
        assert ask(server, model="greedy", messages=CHAT).status_code == 200   # and goes on


def test_chats_that_wait_are_answered_together_and_each_gets_its_own():
    sizes, begun = [], threading.Event()

    class Slow(DesignerChat):
        def complete(self, chats):
            sizes.append(len(chats))
            begun.set()
            if len(sizes) == 1:
                assert hold.wait(60)
            return super().complete(chats)

    hold, seen = threading.Event(), observe(open_episodes(dd.suite("open")[:9], 0))
    chats = [prompt_of("full").chat(each) for each in seen]
    batches = chat_server._Batches(lambda: Slow(dd.designer("contextual")))
    with ThreadPoolExecutor(9) as pool:
        first = pool.submit(batches.ask, chats[0], True)
        assert begun.wait(60)
        rest = [pool.submit(batches.ask, chat, True) for chat in chats[1:]]
        while len(batches.waiting) < 8:
            threading.Event().wait(0.01)
        hold.set()
        said_ = [future.result().text for future in (first, *rest)]
    assert sizes == [1, 8]
    assert said_ == [DesignerChat(dd.designer("contextual")).complete([chat])[0] for chat in chats]


def test_a_model_that_fails_says_so_to_all_who_wait_and_is_made_again():
    tries = []

    def make():
        tries.append(1)
        if len(tries) == 1:
            raise ValueError("no weights")
        return chat_model("greedy")

    batches = chat_server._Batches(make)
    with pytest.raises(ValueError, match="no weights"):
        batches.ask(CHAT, True)
    assert batches.ask(CHAT, True).text == GREEDY


def test_habits_follow_from_the_chat_and_all_come_up():
    seen = observe(open_episodes(dd.suite("open") * 3, [(0, at) for at in range(60)]))
    chats = [prompt_of("full").chat(each) for each in seen]
    plain, careless = DesignerChat(dd.designer("contextual")).complete(chats), chat_model("careless").complete(chats)
    assert chat_model("careless").complete(chats[::-1]) == careless[::-1]
    told = [next(name for name, habit in HABITS.items() if habit(reply) == text) for reply, text in zip(plain, careless)]
    assert set(told) == set(HABITS)
    for name, reply, text in zip(told, plain, careless):
        if name == "cut":
            with pytest.raises(ValueError):
                Mechanism.from_text(text, complete=True)
        else:
            assert Mechanism.from_text(text, complete=True).to_text() == reply


def test_a_served_model_is_named_by_its_weights_and_by_nothing_else(tmp_path):
    copy = shutil.copytree(data_dir() / "designer", tmp_path / "trained")
    assert served_name("trained") == served_name(str(copy)) and re.fullmatch(r"trained@[0-9a-f]{8}", served_name("trained"))
    (copy / "README.md").write_text("other")
    assert served_name(str(copy)) == served_name("trained")
    with open(copy / "model.safetensors", "ab") as file:
        file.write(b"\0")
    assert served_name(str(copy)) != served_name("trained")
    assert served_name("contextual") == "contextual"


def test_no_unknown_model_is_served():
    with pytest.raises(ValueError, match="^designer must be trained, "):
        chat_model("nobody")


# The protocol


def test_populations_are_spread_and_briefs_are_of_every_kind():
    assert Part(suite="open", populations=20).places() == list(range(20)) and Part(suite="open", populations=1).places() == [10]
    assert Part(suite="open", populations=4).places() == [2, 7, 12, 17]
    there = len(dd.suite("briefs"))
    assert {10 * at // there for at in Part(suite="briefs", populations=10).places()} == set(range(10))
    with pytest.raises(ValueError, match="parts must be of different suites, not of open, open"):
        SMALL.replace(parts=SMALL.parts[:1] * 2)
    with pytest.raises(ValueError, match="^populations must be at most 5 in suite 'stages', not 6$"):
        Part(suite="stages", populations=6).cases()


def test_whatever_changes_a_row_changes_the_hash(monkeypatch):
    changes = [{"steps": 4}, {"seed": 1}, {"version": 2}, {"complete": False}, {"parameters": {"temperature": 0, "top_p": 1}}, {"resamples": 101},
               {"parts": SMALL.parts[:1]}, {"parts": (SMALL.parts[0].replace(episodes=2), SMALL.parts[1])}]
    hashes = {SMALL.hash, *(SMALL.replace(**change).hash for change in changes)}
    assert len(hashes) == 1 + len(changes)
    monkeypatch.setattr(board, "suite", lambda name: dd.suite(name)[::-1])
    assert SMALL.hash not in hashes


# A row by hand


def steps_of(rewards, mechanisms, at=None):
    """Steps as `plays` yields them, of episodes of two steps."""
    rows = [(episode, step, reward) for episode, pair in enumerate(rewards) for step, reward in enumerate(pair, 1)]
    return pd.DataFrame(rows, columns=["episode", "step", "reward"]).assign(
        designer="x", mechanism=mechanisms, at=lambda table: table["episode"] if at is None else at)


def test_a_row_by_hand():
    """Two episodes: mine earns .5 and .3, best fixed .2 and .4, the oracle .6 and .6; the share is (.4 - .3) / (.6 - .3)."""
    known = pd.DataFrame({"designer": ["best fixed"] * 2 + ["oracle"] * 2, "episode": [0, 1] * 2, "at": [0, 1] * 2, "reward": [0.2, 0.4, 0.6, 0.6]})
    mine = steps_of([(0.4, 0.6), (0.3, 0.3)], [DEFAULT_MECHANISM, INFORMED_GREEDY, INFORMED_GREEDY, INFORMED_GREEDY])
    values = score(mine, known, Part(suite="open", populations=2), 50)
    assert values["R"] == pytest.approx(0.4) and values["gain"] == pytest.approx(0.1) and values["share"] == pytest.approx(1 / 3)
    assert values["R low"] <= 0.4 <= values["R high"] and values["obedience"] is None
    assert values["repeats"] == 2 / 4   # the default at first, and the second step of the other episode
    none = known.assign(reward=[0.6, 0.6, 0.2, 0.4])
    assert "share" not in score(mine, none, Part(suite="open", populations=2), 50)   # no gap, no share


def test_obedience_by_hand():
    low, fixed = Brief(at_most={"reserve_price": 0.1}), Brief(fixed={"auction_type": "vcg"}, at_least={"reserve_price": 0.2})
    cases = [(brief, dd.Population.stage(1)) for brief in (low, fixed, Brief())]
    played = [Mechanism(reserve_price=0.1), Mechanism(reserve_price=0.11), Mechanism(auction_type="vcg", reserve_price=0.3), Mechanism(reserve_price=0.3),
              Mechanism(reserve_price=0.9), Mechanism()]
    table = pd.DataFrame({"at": [0, 0, 1, 1, 2, 2], "mechanism": played})
    assert obedience(table, cases) == 2 / 4   # a brief without rules says nothing
    assert obedience(table[4:], cases) is None and obedience(table, dd.suite("open")) is None


def test_repeats_by_hand():
    table = steps_of([(0, 0), (0, 0)], [INFORMED_GREEDY, INFORMED_GREEDY, INFORMED_GREEDY, DEFAULT_MECHANISM])
    assert repeats(table) == 1 / 4


# The file of rows


@pytest.mark.parametrize("text, words", [
    ("- x", "must have the fields protocol, prices, models"), ("protocol: standard 1", "models is missing"),
    ("protocol: standard 1\nmodels: []", "models"), ("protocol: standard 7\nmodels: [{name: x, model: greedy}]", "protocol must be 'standard 1', not 'standard 7'"),
    ("protocol: standard 1\nmodels: [{name: x}]", "model is missing"),
    ("protocol: standard 1\nmodels: [{name: x, model: greedy, prompt: best}]", "prompt must be one of full, few-shot, trained, not 'best'"),
    ("protocol: standard 1\nmodels: [{name: x, model: greedy, suite: open}]", "'suite' is not a field; the fields are name, model, base_url, prompt"),
    ("protocol: standard 1\nmodels: [{name: x, model: greedy, parameters: {messages: []}}]",
     "parameters must be without messages, model, n, response_format, stream, not 'messages'"),
    ("protocol: standard 1\nmodels: [{name: x, model: greedy, concurrency: 0}]", "concurrency must be a whole number of at least 1, not 0"),
    ("protocol: standard 1\nmodels: [{name: x, model: greedy, timeout: 1e9}]", "timeout must be a number from 0 to 3600"),
    ("protocol: standard 1\nmodels: [{name: x/y, model: greedy}]", "name"),
    ("protocol: standard 1\nmodels: [{name: x, model: mine/NAME, base_url: here}]", "base_url must be an address such as http://127.0.0.1:8000/v1, not 'here'"),
    ("protocol: standard 1\nmodels: [{name: x, model: NAME, base_url: 'http://x/v1'}]", "name must be provider/model, such as openai/NAME, not 'NAME'"),
    ("protocol: standard 1\nmodels: [{name: a b, model: greedy}, {name: a-b, model: greedy}]", "rows must have different names, not 'a b' and 'a-b'"),
    ("protocol: standard 1\nprices: none.json\nmodels: [{name: x, model: greedy}]", "none.json' is no file"), ("a: [", "is not YAML")])
def test_a_wrong_file_is_one_sentence_that_names_field_value_and_what_is_allowed(text, words, tmp_path):
    (tmp_path / "models.yaml").write_text(text)
    with pytest.raises(ValueError) as error:
        read_models(tmp_path / "models.yaml")
    assert words in str(error.value) and "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="^--models '.*none.yaml' is no file$"):
        read_models(tmp_path / "none.yaml")
    (tmp_path / "x").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="^prices '.*x' is not YAML"):
        read_yaml(tmp_path / "x", "prices")


def test_an_unknown_designer_ends_the_table_in_a_sentence(tmp_path):
    with pytest.raises(EndpointError, match="designer must be trained, "):
        leaderboard(one(model="nobody"), tmp_path, protocol=SMALL)


# Live, replayed, and behind a server that misbehaves


def polite(asked):
    """A mechanism that follows from the chat."""
    return Mechanism(reserve_price=int(short_hash(json.dumps(asked["messages"])), 16) % 9 / 10, auction_type="vcg").to_text()


def misbehaving(cut):
    """A script that treats the chats, as they come in, in twelve ways by turns: some fail at first, some are answered oddly."""
    kinds, lock = {}, threading.Lock()

    def script(number, asked):
        with lock:
            chat = json.dumps(asked["messages"])
            first, kind = chat not in kinds, kinds.setdefault(chat, len(kinds) % 12)
        reply = polite(asked)
        if first and kind in (0, 1, 2, 9):
            return {0: failed(429, "busy", Retry_After="0.05"), 1: {"drop": True}, 2: said(reply) | {"cut": 40}, 9: failed(503, "warming up")}[kind]
        return {3: said(f"I suggest {reply}, as before."), 4: said(reply, model="another-7b"), 5: said(reply) | {"delay": 0.1},
                6: said(f'<think>{{"reserve_price": 0.9}}? No.</think>{reply}'), 7: said(f"```json\n{reply}\n```"),
                8: said(reply[:60]) if cut else said(reply)}.get(kind, said(reply))

    return script


def test_a_server_that_misbehaves_has_the_row_of_one_that_behaves(tmp_path):
    rows = {}
    for name, script in (("polite", lambda number, asked: said(polite(asked))), ("rude", misbehaving(cut=False))):
        with scripted(script) as server:
            rows[name], = leaderboard(one(base_url=server.url, timeout=20.0), tmp_path / name, protocol=SMALL)["rows"]
    assert rows["rude"]["suites"] == rows["polite"]["suites"] and rows["rude"]["valid"] == 1
    assert rows["rude"]["requests"] > rows["polite"]["requests"] == rows["polite"]["replies"] == 18
    assert rows["rude"]["returned models"] == ["another-7b", "scripted-1"] and rows["polite"]["returned models"] == ["scripted-1"]
    assert rows["rude"]["prompt tokens"] == rows["polite"]["prompt tokens"] == 1800


def test_a_row_is_added_as_contributing_says_behind_a_server_that_misbehaves(tmp_path):
    text, commands = (re.search(rf"```{kind}\n(.*?)```", RECIPE, re.DOTALL)[1] for kind in ("yaml", "sh"))
    live, again = (line.split("#")[0].split() for line in commands.splitlines())
    assert len(text.splitlines()) + len(commands.splitlines()) <= 10
    with scripted(misbehaving(cut=True)) as server:
        (tmp_path / "models.yaml").write_text(text.replace("http://127.0.0.1:8000/v1", server.url))
        done = run(*live[2:], cwd=tmp_path)
    kept = Replies(tmp_path / "replies" / "my-model.jsonl").known.values()
    made = {name: (tmp_path / "build" / "leaderboard" / name).read_text() for name in FILES}
    row, = json.loads(made["leaderboard.json"])["value"]["rows"]
    cut = sum(len(reply.text) == 60 for reply in kept)
    assert cut and len(kept) == row["replies"] == 230 and row["valid"] == pytest.approx(1 - cut / 230) and row["model"] == "NAME"
    assert "my model" in done.stdout and f"protocol standard 1, {read_protocol().hash}" in done.stdout
    again_done = run(*again[2:], cwd=tmp_path)   # the server is gone
    assert again_done.stdout == done.stdout
    assert {name: (tmp_path / "build" / "leaderboard" / name).read_text() for name in FILES} == made


def test_what_was_answered_before_a_server_was_gone_is_kept_and_asked_once(tmp_path):
    with scripted(lambda number, asked: said(polite(asked)) if number < 7 else failed(401)) as server:
        with pytest.raises(EndpointError, match="wants a key in MINE_API_KEY"):
            leaderboard(one(base_url=server.url, concurrency=1), tmp_path, protocol=SMALL)
        server.script = lambda number, asked: said(polite(asked))
        row, = leaderboard(one(base_url=server.url, concurrency=1), tmp_path, protocol=SMALL)["rows"]
        chats = [json.dumps(asked["messages"]) for asked in server.asked]
        assert row["replies"] == 18 == len(set(chats)) and all(chats.count(chat) == 1 for chat in chats[:7])


def test_a_replay_asks_nobody_and_fails_on_a_miss(tmp_path, monkeypatch):
    models = Models(protocol="standard 1", models=(Entry(name="it", model="contextual"), Entry(name="careless", model="careless")))
    live = leaderboard(models, tmp_path, protocol=SMALL)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for name in ("openai", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr("socket.socket", None)
    assert leaderboard(models, tmp_path, replay=True, protocol=SMALL) == live
    for other in (SMALL.replace(seed=1), SMALL.replace(steps=4), SMALL.replace(parameters={"temperature": 0, "top_p": 1})):
        with pytest.raises(EndpointError, match="cannot be replayed: "):
            leaderboard(models, tmp_path, replay=True, protocol=other)
    with pytest.raises(ValueError, match="replay needs replies"):
        leaderboard(one(model="greedy", name="new"), tmp_path, replay=True, protocol=SMALL)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_replies_that_are_all_there_are_asked_for_no_more(tmp_path, monkeypatch):
    first = leaderboard(one(model="greedy"), tmp_path, protocol=SMALL)
    monkeypatch.setattr(chat_server, "chat_model", lambda spec: pytest.fail("a model was made"))
    assert leaderboard(one(model="greedy"), tmp_path, protocol=SMALL) == first


def test_a_parameter_that_a_server_does_not_take_is_left_out_and_the_row_says_so(tmp_path):
    with scripted([said(GREEDY)]) as server:
        value = leaderboard(one(base_url=server.url, parameters={"temperature": None, "max_tokens": 99}), tmp_path, protocol=SMALL)
        row, = value["rows"]
        assert all("temperature" not in asked and asked["max_tokens"] == 99 for asked in server.asked)
    own = {"temperature": None, "max_tokens": 99}
    assert row["own parameters"] == own and row["parameters"] == {"max_tokens": 99}
    assert flat_table(value)["own parameters"].tolist() == [json.dumps(own)] and "temperature" in latex_table(value)


def test_tokens_and_their_price_are_told_where_they_are_counted(tmp_path):
    prices = Prices(date="2026-11-30", currency="EUR", models={"NAME": {"prompt": 2.0, "completion": 10.0}})
    with scripted([said(GREEDY)]) as server:
        row, = leaderboard(one(base_url=server.url), tmp_path / "a", prices=prices, protocol=SMALL)["rows"]
        assert (row["prompt tokens"], row["completion tokens"]) == (1800, 180)
        assert row["cost"] == {"date": "2026-11-30", "currency": "EUR", "amount": pytest.approx((1800 * 2 + 180 * 10) / 1e6)}
        asked = len(server.asked)
        with pytest.raises(ValueError, match="^the model of the prices must be one of NAME, not 'OTHER'$"):
            leaderboard(one(base_url=server.url, model="mine/OTHER"), tmp_path / "b", prices=prices, protocol=SMALL)
        assert len(server.asked) == asked
    uncounted = said(GREEDY)
    del uncounted["body"]["usage"]
    with scripted(lambda number, asked: uncounted if number == 3 else said(GREEDY)) as server:
        row, = leaderboard(one(base_url=server.url), tmp_path / "c", prices=prices, protocol=SMALL)["rows"]
    assert row["prompt tokens"] is row["completion tokens"] is row["cost"] is None   # a part of them would be too few


def test_a_designer_behind_the_server_earns_what_it_earns_here(tmp_path):
    """A fixed mechanism to the bit; the table's R is that of `dd.evaluate` on the same episodes."""
    row, = leaderboard(one(model="greedy"), tmp_path, protocol=SMALL)["rows"]
    for part in SMALL.parts:
        table = dd.evaluate({"it": INFORMED_GREEDY}, part.cases(), part.populations, SMALL.seed, SMALL.steps)
        assert row["suites"][part.suite]["R"] == table["reward"].mean()


def test_three_files_say_the_same(tmp_path):
    value = leaderboard(one(model="greedy", name="a_b & 100%"[:3]), tmp_path / "replies", protocol=SMALL)
    files = write_leaderboard(value, tmp_path / "made")
    assert [file.name for file in files] == list(FILES)
    kept = json.loads(files[0].read_text())
    assert kept["value"] == as_kept(value) and kept["provenance"]["parameters"] == {"seed": 0, "protocol": SMALL.hash}
    table = pd.read_csv(files[1])
    for name, values in value["rows"][0]["suites"].items():
        for what, number in values.items():
            read = table[f"{name} {what}"][0]
            assert (number is None and np.isnan(read)) or read == number
    tex = files[2].read_text()
    assert r"a\_b" in tex and tex.count(r"\toprule") == 2 and f"{value['rows'][0]['suites']['open']['R']:.3f}" in tex


# The command


def test_the_command_refuses_in_one_sentence(tmp_path):
    (tmp_path / "wrong.yaml").write_text("protocol: standard 1\nmodels: [{name: x, model: greedy, prompt: best}]")
    for words, says in ((["--models", "none.yaml"], "--models 'none.yaml' is no file"),
                        (["--models", "wrong.yaml"], "prompt must be one of full, few-shot, trained, not 'best'"),
                        (["--replay", "--replies", "none"], "--replies 'none' is no folder"),
                        (["--replay", "--output", COMMITTED], "holds the committed table, which no replay replaces"),
                        (["--replay", "--output", "wrong.yaml"], "is a file: name a folder")):
        done = run(*words, code=2, cwd=tmp_path)
        assert says in done.stderr and done.stderr.count("\n") == 1 and done.stdout == ""
    assert sorted(file.name for file in tmp_path.iterdir()) == ["wrong.yaml"]


NO_NETWORK = """
import socket, sys
def refuse(*words): raise AssertionError("a socket was opened")
socket.socket.connect = socket.socket.bind = refuse
sys.argv = ["daedalus", "leaderboard", "--replay", "--output", sys.argv[1]]
from daedalus.cli import main
main()
"""


def test_the_committed_table_comes_from_its_replies_alone_on_the_core_without_a_network(tmp_path):
    before = {file: file.read_bytes() for file in COMMITTED.rglob("*") if file.is_file()}
    code = f"import sys\nsys.argv = ['', {str(tmp_path / 'made')!r}]\n{NO_NETWORK}"
    done = on_the_core_alone(code)
    assert done.returncode == 0, done.stderr
    for name in FILES:
        made, kept = (tmp_path / "made" / name).read_text(), (COMMITTED / name).read_text()
        assert (json.loads(made)["value"] == json.loads(kept)["value"]) if name.endswith("json") else made == kept
    assert {file: file.read_bytes() for file in COMMITTED.rglob("*") if file.is_file()} == before


def test_the_light_import_stays_light():
    code = "import sys, daedalus; print(sorted({'openai', 'torch', 'transformers', 'http.server', 'daedalus.studies.leaderboard'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


# What is committed


def committed():
    return json.loads((COMMITTED / FILES[0]).read_text())["value"]


def test_the_committed_table_is_of_the_committed_rows_and_protocol():
    models, _ = read_models()
    value = committed()
    assert sorted(row["name"] for row in value["rows"]) == sorted(entry.name for entry in models.models)
    assert value["protocol"]["hash"] == read_protocol().hash
    trained, = (row for row in value["rows"] if row["name"] == "trained")
    assert trained["model"] == served_name("trained"), "the trained designer is another one now: run `make leaderboard`"
    assert (COMMITTED / FILES[1]).read_text() == flat_table(value).to_csv(index=False, lineterminator="\n")
    assert (COMMITTED / FILES[2]).read_text() == latex_table(value)


def test_replies_are_few_each_is_of_a_row_and_none_tells_of_this_machine():
    models, _ = read_models()
    files = sorted((COMMITTED / "replies").iterdir())
    assert [file.name for file in files] == sorted(entry.file for entry in models.models)
    rows = {row["name"]: row for row in committed()["rows"]}
    for entry in models.models:
        assert len(Replies(COMMITTED / "replies" / entry.file, replay=True).known) == rows[entry.name]["replies"], "replies that no row uses"
    assert sum(file.stat().st_size for file in COMMITTED.rglob("*") if file.is_file()) < 2_000_000
    for file in COMMITTED.rglob("*.*"):
        assert not re.search(r"/(tmp|home|work|root)/", file.read_text()), file.name


@pytest.mark.slow
def test_rows_asked_live_have_the_committed_numbers(tmp_path):
    models, _ = read_models()
    chosen = tuple(entry for entry in models.models if not entry.model.startswith("smollm2"))
    value = leaderboard(models.replace(models=chosen), tmp_path)
    kept = {row["name"]: {**row, "seconds": 0} for row in committed()["rows"]}
    for row in value["rows"]:
        if row["name"] == "trained":   # whose tokens another processor may choose differently
            assert row["suites"]["open"]["R"] == pytest.approx(kept["trained"]["suites"]["open"]["R"], abs=0.05)
        else:
            assert {**row, "seconds": 0} == kept[row["name"]]


def test_the_endpoint_of_a_row_is_kept_by_its_url_wherever_it_is_reached(tmp_path):
    for url in ("http://one/v1", "http://two/v1"):
        with scripted([said(GREEDY)]) as server:
            asked = EndpointDesigner("mine/NAME", url, tmp_path / "replies", address=server.url)
            asked.design_batch(observe(open_episodes([dd.Population.stage(1)], 0)))
            assert len(server.asked) == 1
    assert {reply.url for reply in Replies(tmp_path / "replies").known.values()} == {"http://one/v1", "http://two/v1"}
    replayed = EndpointDesigner("mine/NAME", "http://two/v1", tmp_path / "replies", replay=True)
    assert replayed.design_batch(observe(open_episodes([dd.Population.stage(1)], 0))) == [INFORMED_GREEDY]
    assert Path(tmp_path / "replies").read_text().count("\n") == 2
