"""A model behind a server: prompts, a server that misbehaves, replies kept and replayed, and a key that shows nowhere."""

import json
import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from shared import HEARS, held_port, until
from typer.testing import CliRunner

import daedalus as dd
from daedalus.cli import app
from daedalus.designers.endpoint import (
    FORMS, PROMPTS, SIGNAL_MEANINGS, Endpoint, EndpointDesigner, EndpointError, Past, Replies, example_pairs, past_of, prompt_of,
    read_prices, reply_format, server_of)
from daedalus.designers.language import messages
from daedalus.env import DaedalusEnv, observe, open_episodes, play_step
from daedalus.market.engine import SIGNALS
from daedalus.paths import data_dir
from daedalus.schema import DEFAULT_MECHANISM, INFORMED_GREEDY, LEVERS, SYSTEM_PROMPT, Brief, Mechanism, Objective, RecentOutcome

KEY = "sk-planted-7f3a9c5e"
GREEDY = INFORMED_GREEDY.to_text()
PEOPLE = [dd.Population.stage(stage) for stage in (1, 4)]


# A server that does as it is told


def said(text, model="scripted-1", finish="stop", **message):
    """An answer of a server, as it should be."""
    return {"body": {"model": model, "usage": {"prompt_tokens": 100, "completion_tokens": 10},
                     "choices": [{"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}]}}


def failed(status, text="no", **headers):
    """An answer that reports an error."""
    return {"status": status, "body": {"error": {"message": text, "code": headers.pop("code", None)}}, "headers": headers}


class Handler(BaseHTTPRequestHandler):
    """Does what the server's script says of each request: a status, headers and a body, late, cut short or not at all."""

    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        server, asked = self.server, json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            number = len(server.asked)
            server.asked.append(asked | {"authorization": self.headers.get("Authorization"), "path": self.path})
            server.now += 1
            server.most = max(server.most, server.now)
        act = server.script(number, asked)
        time.sleep(act.get("delay", 0))
        with server.lock:
            server.now -= 1
        if act.get("drop"):
            self.hang_up()
            return
        text = act["text"].encode() if "text" in act else json.dumps(act["body"]).encode()
        try:
            self.send_response(act.get("status", 200))
            for name, value in {"Content-Type": "application/json", "Content-Length": str(len(text)), **act.get("headers", {})}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(text[:act.get("cut")])
            server.sent += 1
        except OSError:   # nobody waits any more
            self.close_connection = True
        if "cut" in act:
            self.hang_up()

    def hang_up(self):
        """Drop the connection."""
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, *line):
        pass


class Fake(ThreadingHTTPServer):
    """The server, with what it was asked."""

    request_queue_size, daemon_threads = 128, True

    def __init__(self, script):
        self.script, self.lock, self.asked, self.now, self.most, self.sent = script, threading.Lock(), [], 0, 0, 0
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        pass


@contextmanager
def serving(script):
    """A server whose script is a function of (number of the request, request), or a list of which the last repeats."""
    acts = script if callable(script) else lambda number, asked: script[min(number, len(script) - 1)]
    server = Fake(acts)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def endpoint(server, file=None, **options):
    """The chat model behind a server."""
    return Endpoint(server_of("mine/NAME", server.url), Replies(file), **{"pause": 0.01, **options})


def chats(count):
    return [[{"role": "user", "content": f"market {number}"}] for number in range(count)]


@pytest.fixture(scope="module")
def seen():
    """Observations: plain, with a brief, as published, after some steps."""
    env = DaedalusEnv(PEOPLE[1])
    plain = [env.reset(3), env.step(INFORMED_GREEDY), env.step(DEFAULT_MECHANISM), env.step(INFORMED_GREEDY)]
    briefs = Brief(at_most={"reserve_price": 0.15}), Brief(at_most={"reserve_price": 0.15}, words="sell at any price")
    return [*plain, *(plain[2].replace(brief=brief, signals=None) for brief in briefs), plain[3].published()]


# Prompts


def test_the_trained_prompt_is_what_it_was_to_the_byte(seen):
    for observation in seen:
        assert prompt_of("trained").chat(observation, past_of(observation), Objective(revenue=1)) == messages(observation) == [
            {"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": observation.prompt()}]


@pytest.mark.parametrize("name", ["full", "few-shot"])
def test_a_general_model_is_told_everything(name, seen):
    for observation in seen:
        system, *_, user = prompt_of(name).chat(observation, past_of(observation), Objective(revenue=2))
        assert SYSTEM_PROMPT not in system["content"]
        for lever in LEVERS.values():
            ends = [f"{lever.settings[0]:g} to {lever.settings[-1]:g}"] if lever.step else map(lever.text, lever.settings)
            line = next(line for line in system["content"].splitlines() if line.startswith(f"- {lever.name}: "))
            assert lever.meaning in line and all(end in line for end in ends)
        assert all(f"- {signal}: {SIGNAL_MEANINGS[signal]}" in system["content"] for signal in SIGNALS)
        assert DEFAULT_MECHANISM.to_text() in system["content"]
        wanted = "objective: maximise welfare x fairness x participation x stability x revenue^2"
        if observation.brief:
            wanted = 'words: "sell at any price"' if observation.brief.words else f"brief: {observation.brief.text()}"
        assert wanted in user["content"] and [user["content"].count(f"{line}: ") for line in ("objective", "brief", "words")].count(1) == 1
        assert observation.prompt() in user["content"]


def test_the_hash_tells_prompts_apart():
    full = prompt_of("full")
    others = [full.replace(name="other"), full.replace(version=2), full.replace(system="?"), full.replace(steps=4),
              full.replace(user="{observation}"), full.replace(examples=(("a", "b"),)), *map(prompt_of, PROMPTS)]
    assert len({prompt.hash for prompt in others}) == len(others) and full.hash == prompt_of("full").hash
    with pytest.raises(ValueError, match="^prompt must be one of trained, full, few-shot, not 'long'$"):
        prompt_of("long")


def test_examples_are_made_from_a_seed_or_given(seen):
    assert example_pairs(2, 5) == example_pairs(2, 5) != example_pairs(2, 6)
    given = prompt_of([(seen[1], INFORMED_GREEDY)])
    roles = [part["role"] for part in given.chat(seen[0])]
    assert roles == ["system", "user", "assistant", "user"] and given.chat(seen[0])[2]["content"] == GREEDY
    pairs = example_pairs(2, teacher=dd.DESIGNERS["greedy"])
    assert [answer for _, answer in pairs] == [INFORMED_GREEDY] * 2 and [at.round_number for at, _ in pairs] == [0, 1]


def test_the_past_goes_on_only_where_it_does(seen):
    first, second, third, *_ = seen
    one, two = past_of(first), past_of(second, past_of(first), INFORMED_GREEDY)
    assert [past.mechanism for past in past_of(third, two, DEFAULT_MECHANISM)] == [DEFAULT_MECHANISM, INFORMED_GREEDY, DEFAULT_MECHANISM]
    alone = [None, None, DEFAULT_MECHANISM]
    other = second.replace(market_outcomes=(RecentOutcome(welfare=0, fairness=0, participation=0), *second.market_outcomes[1:]))
    for before, answer in (((), None), (two, INFORMED_GREEDY), (one, DEFAULT_MECHANISM), (past_of(other), DEFAULT_MECHANISM)):
        assert [past.mechanism for past in past_of(third, before, answer)] == alone
    assert [past.mechanism for past in past_of(third.published(), two, INFORMED_GREEDY)][-1] == INFORMED_GREEDY
    assert past_of(first.replace(market_outcomes=())) == ()
    assert Past(1, None, first.market_outcomes[0]).line().startswith("step 1: rules not shown -> welfare 0.")


def test_a_played_episode_is_shown_as_it_was_played():
    """Of the rules that a model is shown, step by step, each is the one that was played, also where observations hide them."""
    with serving(lambda number, asked: said(Mechanism(reserve_price=round(number % 7 / 10, 1)).to_text())) as server:
        designer = EndpointDesigner("mine/NAME", server.url, form="plain")
        steps = dd.play(designer, PEOPLE, 3, 4)
        for at, shown in enumerate(asked["messages"][-1]["content"] for asked in server.asked[-2:]):
            own = steps[steps["index"] == at]["mechanism"].tolist()[:3]
            found = {tuple(f"step {step + 1}: {mechanism.to_text()}" in text for step, mechanism in enumerate(own))
                     for text in (asked["messages"][-1]["content"] for asked in server.asked[-2:])}
            assert (True, True, True) in found and "step 0: " + DEFAULT_MECHANISM.to_text() in shown
        designer.reset()
        episodes = open_episodes(PEOPLE[1], 3)
        for _ in range(2):
            episodes = play_step(episodes, designer.design_batch([each.published() for each in observe(episodes)]))
        designer.design_batch([each.published() for each in observe(episodes)])
        assert "rules not shown" not in server.asked[-1]["messages"][-1]["content"].partition("step 1")[2]


# What servers do


READ = {
    "plain": said(GREEDY), "prose": said(f"Sure! I would play\n{GREEDY}\nsince fines help."), "fenced": said(f"```json\n{GREEDY}\n```"),
    "thinking": said(f"<think>What about {DEFAULT_MECHANISM.to_text()}?</think>{GREEDY}"),
    "another model": said(GREEDY, model="some-other-model"), "no usage": {"body": said(GREEDY)["body"] | {"usage": None}},
    "parts": said([{"type": "text", "text": GREEDY[:30]}, {"type": "text", "text": GREEDY[30:]}]),
}


@pytest.mark.parametrize("name", READ)
def test_a_mechanism_is_read_however_it_comes(name, seen):
    with serving([READ[name]]) as server:
        designer = EndpointDesigner("mine/NAME", server.url, pause=0.01)
        assert designer(seen[0]) == INFORMED_GREEDY and (designer.asked, designer.invalid, designer.refused) == (1, 0, 0)
        assert designer.record["returned_models"] == (["some-other-model"] if name == "another model" else ["scripted-1"])
        assert designer.record["model"] == "NAME" and designer.usage["uncounted"] == (name == "no usage")
        assert server.asked[0]["path"] == "/v1/chat/completions" and server.asked[0]["temperature"] == 0


BROKEN = {"cut JSON": (said(GREEDY[:80], finish="length"), 0), "nothing": (said(None), 0), "prose": (said("I would fine them."), 0),
          "out of range": (said('{"reserve_price": 7}'), 0), "still thinking": (said(f"<think>{GREEDY}"), 0),
          "refusal": (said(None, refusal="I cannot help."), 1), "filter": (said(GREEDY, finish="content_filter"), 1),
          "filtered request": (failed(400, "filtered", code="content_filter"), 1)}


@pytest.mark.parametrize("name", BROKEN)
def test_an_invalid_or_refused_reply_keeps_the_rules_and_is_counted(name, seen):
    act, refused = BROKEN[name]
    with serving([act]) as server:
        designer = EndpointDesigner("mine/NAME", server.url, pause=0.01)
        assert designer(seen[0]) == DEFAULT_MECHANISM                      # the first step
        assert designer(seen[1]) == seen[1].mechanism == INFORMED_GREEDY   # the last rules, as shown
        assert (designer.asked, designer.invalid, designer.refused) == (2, 2, 2 * refused)
        assert len(server.asked) == 2
    with serving([said(GREEDY), act]) as server:
        designer = EndpointDesigner("mine/NAME", server.url, pause=0.01)
        hidden = [seen[0].published(), seen[1].published()]
        assert designer(hidden[0]) == INFORMED_GREEDY == designer(hidden[1])   # the last rules, as remembered


AGAIN = {"429": failed(429), "429 with a wait": failed(429, Retry_After="0.05"), "500": failed(500), "503": failed(503, "busy"), "408": failed(408),
         "dropped": {"drop": True}, "cut off": {**said(GREEDY), "cut": 50}, "no JSON": {"text": '{"choices": [{"mess'},
         "slow": {**said(GREEDY), "delay": 1.0}}


@pytest.mark.parametrize("answer, reserve, invalid", [("I would rather not.", 0.18, 1), ('{"reserve_price": 0.4}', 0.4, 0)])
def test_the_mechanisms_of_a_prompt_that_is_given_back_are_no_answer(answer, reserve, invalid, seen):
    with serving(lambda number, asked: said("<|user|>" + asked["messages"][-1]["content"] + "<|assistant|>" + answer)) as server:
        designer = EndpointDesigner("mine/NAME", server.url)
        assert (designer(seen[1]).reserve_price, designer.invalid) == (reserve, invalid)


@pytest.mark.parametrize("name", AGAIN)
def test_what_passes_is_tried_again(name, seen):
    with serving([AGAIN[name], AGAIN[name], said(GREEDY)]) as server:
        model = endpoint(server, timeout=0.3)
        assert model.complete(chats(1)) == [GREEDY] and len(server.asked) == 3
        assert next(iter(model.used.values())).tries == 3 and next(iter(model.used.values())).form == "json_schema"


def test_waits_grow_and_the_servers_own_is_obeyed(monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda event, seconds=None, wait=threading.Event.wait: (
        waits.append(seconds) or False if seconds in (0.5, 1.0, 2.0, 7.0) else wait(event, seconds)))
    with serving([failed(500), failed(500), failed(429, Retry_After="7"), failed(500), said(GREEDY)]) as server:
        assert endpoint(server, pause=0.25, form="plain").complete(chats(1)) == [GREEDY]
    assert waits == [0.5, 7.0, 2.0]   # the first, of 0.25 s, is not looked at
    with serving([failed(429, Retry_After="3600")]) as server:
        with pytest.raises(EndpointError, match=r"^http://127.0.0.1:\d+/v1 asks to wait 3600 s, and is not able to answer .*: no reply after 1 "
                                                "request; those that came before are kept$"):
            endpoint(server).complete(chats(1))


@pytest.mark.parametrize("accepted", FORMS)
@pytest.mark.parametrize("status", [400, 422])
def test_the_form_steps_down_and_is_remembered(accepted, status, tmp_path):
    def script(number, asked):
        form = asked.get("response_format", {}).get("type", "plain")
        return said(GREEDY) if FORMS.index(form) >= FORMS.index(accepted) else failed(status, f"{form} is not known")

    steps = FORMS.index(accepted)
    with serving(script) as server:
        model = endpoint(server, tmp_path / "replies.jsonl")
        model.complete(chats(6))
        assert model.form == accepted and len(server.asked) == 6 + steps   # only one request finds it out
        assert {key: value for key, value in server.asked[-1].items() if key == "response_format"} == reply_format(accepted)
        again = endpoint(server, tmp_path / "replies.jsonl")
        again.complete(chats(8))
        assert len(server.asked) == 8 + steps and {reply.form for reply in again.used.values()} == {accepted}


FINAL = {"no key": (failed(401), "wants a key in MINE_API_KEY: no reply after 1 request"), "no model": (failed(404, "no NAME"), "no NAME"),
         "a page": (said("x") | {"text": "<html>hello</html>"}, "cannot be read"), "no choices": ({"body": {"choices": []}}, "end in /v1"),
         "wrong in any form": (failed(400, "context too long"), "context too long.*no reply after 3 requests"),
         "always busy": (failed(503, "busy"), "busy.*no reply after 3 requests")}


@pytest.mark.parametrize("name", FINAL)
def test_a_server_that_gives_no_reply_ends_in_a_sentence(name):
    act, words = FINAL[name]
    with serving([act]) as server:
        model = endpoint(server, retries=2)
        with pytest.raises(EndpointError, match=f"^http://127.0.0.1:[0-9]+/v1 .*{words}") as error:
            model.complete(chats(3))
        assert "\n" not in str(error.value) and model.form == "json_schema"
    with pytest.raises(EndpointError, match="cannot be reached .*no reply after 2 requests"):   # nobody is there any more
        endpoint(server, retries=1).complete(chats(1))


def test_what_came_before_an_error_is_kept_and_not_asked_again(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(lambda number, asked: failed(404) if "market 5" in str(asked) and number < 20 else said(GREEDY)) as server:
        with pytest.raises(EndpointError):
            endpoint(server, file, concurrency=2).complete(chats(10))
        kept = len(file.read_text().splitlines())
        assert 5 <= kept < 10
        server.asked.extend([{}] * 20)
        assert endpoint(server, file).complete(chats(10)) == [GREEDY] * 10
        assert len(file.read_text().splitlines()) == 10


# Many at a time


def test_as_many_requests_as_are_allowed_run_side_by_side():
    with serving(lambda number, asked: said(asked["messages"][0]["content"].split()[1]) | {"delay": 0.05}) as server:
        texts = endpoint(server, concurrency=4, form="plain").complete(chats(30))
        assert server.most == 4 and len(server.asked) == 30
    assert texts == [str(number) for number in range(30)]   # each its own


def test_the_same_chat_is_asked_once_and_another_sample_anew():
    with serving(lambda number, asked: said(f"reply {number}")) as server:
        model = endpoint(server)
        texts = model.complete([*chats(2), *chats(2)])
        assert texts[:2] == texts[2:] and model.complete(chats(2)) == texts[:2] and len(server.asked) == 2
        other = Endpoint(model.server, model.kept, sample=1)
        assert not set(other.complete(chats(2))) & set(texts) and len(server.asked) == 4
        warm = Endpoint(model.server, model.kept, parameters={"temperature": 1})
        assert not set(warm.complete(chats(2))) & set(texts) and server.asked[-1]["temperature"] == 1


CHILD = """
import sys
from pathlib import Path
from daedalus.designers.endpoint import Endpoint, Replies, server_of
url, file, count = sys.argv[1:]
model = Endpoint(server_of("mine/NAME", url), Replies(file), concurrency=8, form="plain")
print(len(model.complete([[{"role": "user", "content": f"market {n}"}] for n in range(int(count))])))
"""


def child(server, file, count):
    return subprocess.Popen([sys.executable, "-c", CHILD, server.url, str(file), str(count)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            text=True, **HEARS)


def test_a_killed_process_loses_no_reply_that_had_arrived(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(lambda number, asked: said(GREEDY) | {"delay": 0.05}) as server:
        with child(server, file, 300) as running:
            until(lambda: server.sent >= 60)
            running.send_signal(signal.SIGKILL)
            running.communicate()
        until(lambda: server.now == 0)
        lines = file.read_text().splitlines()
        assert server.sent - 8 - 8 <= len(lines) <= server.sent and len(Replies(file).known) == len(lines) >= 44
        asked = len(server.asked)
        assert endpoint(server, file, form="plain", concurrency=32).complete(chats(300)) == [GREEDY] * 300
        assert len(server.asked) - asked == 300 - len(lines)   # only the rest is paid for


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_interrupt_lets_what_is_on_its_way_arrive(number, tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(lambda number, asked: said(GREEDY) | {"delay": 0.2}) as server:
        with child(server, file, 300) as running:
            until(lambda: len(server.asked) >= 20)
            running.send_signal(number)
            _, errors = running.communicate(timeout=60)
        assert "KeyboardInterrupt" in errors and running.returncode != 0
        assert len(file.read_text().splitlines()) == len(server.asked) < 300   # every request that was made is kept


def test_two_processes_keep_replies_in_one_file(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving(lambda number, asked: said(GREEDY * 40)) as server:
        with child(server, file, 150) as one, child(server, file, 150) as other:
            assert one.communicate(timeout=100)[0] == other.communicate(timeout=100)[0] == "150\n"
    assert all(json.loads(line)["text"] == GREEDY * 40 for line in file.read_text().splitlines())
    assert len(Replies(file).known) == 150


def test_a_line_that_was_cut_short_is_no_reply_and_spoils_none(tmp_path):
    file = tmp_path / "replies.jsonl"
    with serving([said(GREEDY)]) as server:
        endpoint(server, file).complete(chats(3))
        whole = file.read_bytes()
        file.write_bytes(whole[:-30])
        assert len(Replies(file).known) == 2
        endpoint(server, file).complete(chats(3))
        assert len(server.asked) == 4 and len(Replies(file).known) == 3


@pytest.mark.parametrize("text", ["{}", "some notes\nof mine", '{"key": 1}'])
def test_a_file_of_something_else_is_refused_and_stays(text, tmp_path):
    (tmp_path / "notes").write_text(text)
    with pytest.raises(ValueError, match="^replies '.*notes' is a file of something else than replies$"):
        Replies(tmp_path / "notes")
    assert (tmp_path / "notes").read_text() == text
    for path, words in ((None, "replay needs replies, the file that is replayed$"), (tmp_path / "none", "and '.*none' is no file$")):
        with pytest.raises(ValueError, match=words):
            Replies(path, replay=True)
    with pytest.raises(ValueError, match="there is no folder"):
        Replies(tmp_path / "none" / "replies.jsonl")


# Replayed


def test_a_table_is_computed_again_from_its_replies_alone(tmp_path, monkeypatch):
    file, options = tmp_path / "replies.jsonl", dict(episodes=4, steps=3)
    with serving(lambda number, asked: said(Mechanism(reserve_price=number % 5 / 10).to_text() if number % 4 else "no")) as server:
        live = EndpointDesigner("mine/NAME", server.url, file)
        table = dd.evaluate({"it": live}, **options)
    assert live.invalid == 3 and live.asked == 12
    monkeypatch.setitem(sys.modules, "openai", None)
    again = EndpointDesigner("mine/NAME", server.url, file, replay=True)
    assert dd.evaluate({"it": again}, **options).equals(table) and again.record == live.record
    before = file.read_bytes()
    for name, url, changed in (("mine/NAME", server.url, {"prompt": "trained"}), ("mine/OTHER", server.url, {}), ("mine/NAME", "http://x/v1", {}),
                               ("mine/NAME", server.url, {"sample": 1}), ("mine/NAME", server.url, {"parameters": {}})):
        with pytest.raises(ValueError, match="^replies '.*replies.jsonl' cannot be replayed: 4 of the 4 that are asked for are not there; ask "):
            dd.evaluate({"it": EndpointDesigner(name, url, file, replay=True, **changed)}, **options)
    assert file.read_bytes() == before


def test_a_missing_package_is_said_with_what_brings_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["inference", "--model", "openai/NAME", "--base-url", "http://127.0.0.1:1/v1"])
    assert done.exit_code == 1 and done.stderr == "daedalus: this needs openai: pip install -e '.[endpoint]' brings it\n"


# The key


def test_the_key_shows_nowhere(tmp_path, monkeypatch, caplog, capsys, seen):
    """Whatever a server does with the key: in a reply, a name, an error, a header, at every level of logging."""
    monkeypatch.setenv("MINE_API_KEY", KEY)
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx", "httpx2", "httpcore", "httpcore2"):
        caplog.set_level(logging.DEBUG, logger=name)
    file, shown = tmp_path / "replies.jsonl", []
    acts = [said(f"{GREEDY} {KEY}", model=f"m-{KEY}", finish=KEY), said(None, refusal=f"Bearer {KEY}"), failed(400, KEY, code="content_filter"),
            *(failed(status, f"Incorrect API key provided: {KEY}") for status in (400, 401, 403, 404, 429, 500)), {"text": KEY}, {"drop": True},
            {"body": {KEY: KEY}}, {"status": 302, "body": {}, "headers": {"Location": f"http://127.0.0.1:1/{KEY}"}}]
    for act in acts:
        with serving([act]) as server:
            designer = EndpointDesigner("mine/NAME", server.url, file, retries=1, pause=0.01)
            try:
                designer.replies(seen[:2])
            except Exception as error:
                while error is not None:   # and those that it hides
                    shown += [repr(error), str(error)]
                    error = error.__cause__ or error.__context__
            assert all(asked["authorization"] == f"Bearer {KEY}" for asked in server.asked) and server.asked
            shown += [repr(designer), repr(designer.chat_model), json.dumps(designer.record), repr(vars(designer.chat_model.kept)),
                      repr(pickle.dumps(designer.chat_model)), repr(designer.chat_model.server)]
    for url in (f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}", f"{KEY}"):
        with pytest.raises(ValueError) as refused:
            server_of("mine/NAME", url)
        shown.append(str(refused.value))
    shown += [file.read_text(), caplog.text, *capsys.readouterr()]
    assert len(file.read_text().splitlines()) == 6 and "***" in file.read_text()
    assert caplog.text and not [text for text in shown if KEY in text or KEY[:14] in text]


def test_the_key_is_that_of_the_provider_and_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    monkeypatch.setenv("SOME_HOUSE_API_KEY", "abcdef")
    assert server_of("some-house/a/b", "http://x/v1").key() == "abcdef" and server_of("some-house/a/b", "http://x/v1").model == "a/b"
    with pytest.raises(ValueError, match="^https://api.openai.com/v1 wants a key: set OPENAI_API_KEY$"):
        EndpointDesigner("openai/NAME")(DaedalusEnv(PEOPLE[0]).reset(0))
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here:1/v1/")
    assert server_of("openai/NAME").url == "http://here:1/v1"


# Prices


def test_prices_come_from_a_dated_file(tmp_path, seen):
    prices = {"date": "2026-11-30", "currency": "EUR", "models": {"NAME": {"prompt": 2.5, "completion": 10}}}
    (tmp_path / "prices.json").write_text(json.dumps(prices))
    (tmp_path / "prices.yaml").write_text("date: 2026-11-30\ncurrency: EUR\nmodels:\n  NAME: {prompt: 2.5, completion: 10}\n")
    assert read_prices(tmp_path / "prices.json") == read_prices(tmp_path / "prices.yaml")
    with serving([said(GREEDY)]) as server:
        designer = EndpointDesigner("mine/NAME", server.url, prices=tmp_path / "prices.yaml")
        designer.replies(seen[:2])
        assert designer.usage["prompt_tokens"] == 200 and designer.usage["completion_tokens"] == 20
        assert designer.record["cost"] == {"date": "2026-11-30", "currency": "EUR", "amount": pytest.approx(0.0007)}
        with pytest.raises(ValueError, match="^the model of the prices must be one of NAME, not 'OTHER'$"):
            EndpointDesigner("mine/OTHER", server.url, prices=tmp_path / "prices.json")


@pytest.mark.parametrize("name, text, words", [
    ("a.json", "{", "Expecting"), ("a.json", "[]", "mapping"), ("a.yaml", "models: {NAME: 3}", ""), ("a.yaml", "x", ""),
    ("a.json", '{"currency": "EUR", "models": {}}', "date is missing"), ("a.yaml", "models: {NAME: {prompt: dear, completion: 1}}", "dear"),
    ("a.json", '{"date": "2026-11-30", "currency": "EUR", "models": {"NAME": {"prompt": -1, "completion": 1}}}', "models.NAME: prompt must be")])
def test_a_file_without_prices_is_refused(name, text, words, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=rf"^prices '.*{name}' cannot be read: .*{words}"):
        read_prices(tmp_path / name)


# With everything else


def test_it_keeps_the_contract_of_designers():
    with serving(lambda number, asked: said(Mechanism(reserve_price=len(str(asked["messages"])) % 9 / 10).to_text())) as server:
        for options in ({}, {"prompt": "trained"}, {"parameters": {"temperature": 1}}, {"concurrency": 1}):
            dd.check_designer(dd.designer("mine/NAME", base_url=server.url, **options), PEOPLE, workers=2)


@pytest.mark.parametrize("spec, options, sentence", [
    ("openai/NAME", {"constrained": False}, "designer 'openai/NAME' takes no constrained: it is behind a server, and takes concurrency, "),
    ("trained", {"replies": "x"}, "designer 'trained' takes no replies: only a model behind a server does, such as openai/NAME"),
    ("greedy", {"base_url": "http://x/v1"}, "designer 'greedy' takes no base_url"), ("openai/NAME", {"base_url": "x"}, "base_url must be "),
    ("openai/NAME", {"concurrency": 0}, "concurrency must be"), ("openai/NAME", {"form": "xml"}, "form must be one of json_schema, "),
    ("openai/NAME", {"prompt": "x"}, "prompt must be one of"), ("openai/NAME", {"retries": -1}, "retries must be"),
    ("mine/NAME", {"replay": True}, "designer 'mine/NAME' takes no replay"), ("openai/NAME", {"sample": -1}, "sample must be")])
def test_wrong_options_are_one_sentence(spec, options, sentence):
    with pytest.raises(ValueError) as error:
        dd.designer(spec, **options)
    assert str(error.value).startswith(sentence) and "\n" not in str(error.value)


def inference(*words):
    done = CliRunner().invoke(app, ["inference", "--model", "openai/NAME", *words])
    return done, json.loads(Path("inference_results.json").read_text()) if done.exit_code == 0 else None


def test_inference_asks_a_server_and_replays_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = "--n-episodes 3 --baseline --replies replies.jsonl --base-url".split()
    with serving(lambda number, asked: said(Mechanism(reserve_price=len(str(asked["messages"])) % 9 / 10).to_text())) as server:
        done, live = inference(*words, server.url)
        assert done.exit_code == 0, done.output
    assert set(live["rewards"]) == {"random", "informed-greedy", "best fixed", "oracle", "openai/NAME"}
    assert live["endpoint"]["prompt"]["name"] == "full" and live["endpoint"]["usage"]["replies"] == 30 and live["invalid replies"] == 0
    done, again = inference(*words, server.url, "--replay")
    assert done.exit_code == 0 and again == live
    done, _ = inference(*words, server.url, "--replay", "--prompt", "trained")
    assert done.exit_code == 2 and "cannot be replayed" in done.stderr and done.stderr.count("\n") == 1
    with serving([said(GREEDY)]) as server:
        done, asked = inference("--base-url", server.url, "--n-episodes", "2", "--objective", "welfare x revenue")
        assert asked["endpoint"]["objective"] == "welfare x revenue" and asked["rewards"]["openai/NAME"]
        assert all("objective: maximise welfare x revenue\n" in each["messages"][-1]["content"] for each in server.asked)


def test_a_batch_of_briefs_is_asked_with_its_briefs():
    with serving([said(GREEDY)]) as server:
        designer = EndpointDesigner("mine/NAME", server.url)
        table = dd.evaluate({"it": designer}, suite="briefs", episodes=12, steps=1)
        texts = [asked["messages"][-1]["content"] for asked in server.asked]
    assert len(texts) == 12 and {text.split("brief: ")[1].splitlines()[0] for text in texts} == {
        brief.text() for brief, _ in dd.suite("briefs")[:12]} and "brief" in table


def answers(port):
    """Whether somebody listens there."""
    with socket.socket() as trial:
        return trial.connect_ex(("127.0.0.1", port)) == 0


def test_the_trained_designer_behind_a_real_server_plays_as_in_this_process(tmp_path):
    folder = data_dir() / "designer"
    with held_port() as port:
        words = f"serve {folder} --port {port} --device cpu".split()
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path), "HOME": str(tmp_path)}
        with subprocess.Popen([Path(sys.executable).parent / "transformers", *words], env=environment, stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as running:
            try:
                until(lambda: running.poll() is not None or answers(port), "the server does not begin")
                designer = EndpointDesigner(f"local/{folder}", f"http://127.0.0.1:{port}/v1", prompt="trained", concurrency=2,
                                            parameters={"temperature": 0, "max_tokens": 120})
                observations = observe(open_episodes(dd.suite("stages"), 0))
                assert designer.design_batch(observations) == dd.LanguageDesigner.load(constrained=False).design_batch(observations)
                assert designer.invalid == 0 and designer.usage["completion_tokens"] > 0
            finally:
                running.terminate()


def test_threads_ask_one_designer():
    with serving([said(GREEDY)]) as server:
        model = endpoint(server)
        with ThreadPoolExecutor(4) as pool:
            assert set(map(tuple, pool.map(lambda _: model.complete(chats(5)), range(4)))) == {(GREEDY,) * 5}
    assert os.environ.get("MINE_API_KEY") is None
