"""The service as its clients meet it: a real server on this machine, real sockets, and what goes wrong with them."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

import httpx
import pytest
import requests
import uvicorn
import yaml
from openenv import GenericEnvClient
from openenv.cli.__main__ import app as openenv_cli
from openenv.validation.graders.runtime import basic
from openenv.validation.runner import run_validation
from openenv.validation.types import ProviderCapability
from starlette.testclient import TestClient
from typer.testing import CliRunner
from shared import PATIENCE, held_port, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from daedalus.serving.access import HEADERS
from daedalus.market.bidders import Population
from daedalus.serving.connections import settings
from daedalus.designers.base import Designer, informed_greedy
from daedalus.designers.language import LanguageDesigner, chat_text, messages, small_model, small_tokenizer
from daedalus.designers.models import pretrained_path
from daedalus.market.engine import SIGNALS, simulate
from daedalus.serving.openenv import DaedalusAction, DaedalusEnvClient, ResetOptions
from daedalus.paths import CHECKOUT
from daedalus.schema import INFORMED_GREEDY, Brief, Mechanism, Objective, Observation
from daedalus.serving.serve import arena_designers, create_app, designer_queues
from daedalus.serving.sessions import LIMITS, MEASURED, MOST_ENTRIES, SLOW, Cost, DesignerQueue, Limits, Meter, Sessions

LAST = {"truthful": 3, "shader": 2, "colluder": 2, "n_items": 2}
EPISODES = [  # options of an episode, and who bids in it
    ({"seed": 0}, Population.stage(4)),
    ({"seed": 2**53 - 1, "episode": 7, "stage": 2}, Population.stage(2)),
    ({"seed": 11, "n_agents": 4, "stage": 0}, Population(truthful=4)),
    ({"seed": 5, "population": LAST}, Population(**LAST))]


class Server:
    """An address, and the ways in."""

    def __init__(self, port: int, connections: Collection = ()):
        self.host, self.url = f"127.0.0.1:{port}", f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=PATIENCE)
        self.connections = connections   # those that the server has open, where it runs in a thread

    def open(self, path: str = "/ws", **options):
        """A socket, to be used in a `with`."""
        return connect(f"ws://{self.host}{path}", proxy=None, **options)

    def post(self, path: str, body: bytes) -> httpx.Response:
        """A body as it is, said to be JSON."""
        return self.http.post(path, content=body, headers={"Content-Type": "application/json"})

    def design(self, asked: dict) -> dict:
        """What the server answers to a question for rules."""
        return self.http.post("/api/design", json=asked).raise_for_status().json()

    def health(self) -> dict:
        """What the server says of itself."""
        return self.http.get("/health").json()

    def wait_until_empty(self) -> None:
        """Return when no socket holds a place any more."""
        until(lambda: self.health()["socket_sessions"] == 0, "sockets hold places")


@contextlib.contextmanager
def serving(limits: Limits = LIMITS, load=lambda: informed_greedy) -> Iterator[Server]:
    """A server in a thread, on a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        runner = uvicorn.Server(uvicorn.Config(
            create_app(limits, load, page=False), **settings(limits), ws_max_size=limits.body))
        thread = threading.Thread(target=runner.run, kwargs={"sockets": [listener]})
        thread.start()
        server = Server(listener.getsockname()[1], runner.server_state.connections)
        try:
            until(lambda: runner.started)
            yield server
        finally:
            server.http.close()
            runner.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def server():
    """A server as it comes, but for the designer."""
    with serving() as running:
        yield running


def say(sock, message: object) -> dict:
    """The answer to a message; text and bytes are sent as they are."""
    sock.send(message if isinstance(message, (str, bytes)) else json.dumps(message))
    return json.loads(sock.recv(timeout=PATIENCE))


def refusal(answer: dict) -> str:
    """The sentence of an error that came over a socket."""
    assert answer["type"] == "error", answer
    return answer["data"]["message"]


def sentences(response: httpx.Response) -> str:
    """What a refused request is told."""
    detail = response.json()["detail"]
    return detail if isinstance(detail, str) else "; ".join(fault["msg"] for fault in detail)


# The published contract

CARD = '''
import requests

BASE = "https://kabilesh-c-daedalus-env.hf.space"

# Reset and read the initial observation
r = requests.post(BASE + "/reset", json={"session_id": "demo", "n_agents": 8, "episode_length": 10})
obs = r.json()["observation"]

# Ask the trained designer for a mechanism
r = requests.post(BASE + "/api/design", json={
    "round_number": obs["round_number"],
    "episode_length": obs["episode_length"],
    "market_outcomes": obs.get("market_outcomes", []),
})
print(r.json()["mechanism"])

# Apply it and observe the reward
r = requests.post(BASE + "/step", json={"session_id": "demo", "action": r.json()["mechanism"]})
print("R =", r.json()["reward"])
'''


def test_the_snippet_of_the_model_card_runs(server, capsys):
    names = {}
    exec(CARD.replace("https://kabilesh-c-daedalus-env.hf.space", server.url), names)
    mechanism, reward = capsys.readouterr().out.splitlines()
    assert mechanism == str(INFORMED_GREEDY.model_dump())
    seed = requests.get(server.url + "/state", params={"session_id": "demo"}).json()["seed"]
    assert reward == f"R = {simulate([INFORMED_GREEDY], [Population.stage(4)], [seed], 1).reward[0, 0]}"


def test_an_episode_has_a_beginning_and_an_end(server):
    reset = server.http.post("/reset", json={"n_agents": 5, "episode_length": 2, "seed": 3}).json()
    name = reset["session_id"]
    assert (reset["reward"], reset["done"], reset["observation"]["signals"]["bidders"]) == (None, False, 5)
    steps = [server.http.post("/step", json={"session_id": name, "action": {}}) for _ in range(3)]
    assert [step.json().get("done") for step in steps] == [False, True, None]
    assert steps[2].status_code == 409
    assert sentences(steps[2]) == "the episode is over at step 2: reset starts another"
    state = server.http.get("/state", params={"session_id": name}).json()
    assert (state["step_count"], state["done"], state["n_agents"]) == (2, True, 5)


def test_sessions_without_a_name_get_one_each(server):
    names = {server.http.post("/reset").json()["session_id"] for _ in range(5)}
    assert len(names) == 5


@pytest.mark.parametrize("call", ["step", "state"])
def test_an_unknown_session_is_said_to_be_one(server, call):
    answer = (server.http.post("/step", json={"session_id": "nobody", "action": {}}) if call == "step"
              else server.http.get("/state", params={"session_id": "nobody"}))
    assert (answer.status_code, sentences(answer)) == (404, "there is no session 'nobody': reset opens one")


# The same rewards on every way in

@pytest.mark.parametrize("options, population", EPISODES)
def test_every_way_in_gives_the_rewards_of_the_engine_to_the_bit(server, options, population):
    mechanism, steps = Mechanism.random(options["seed"]), 4
    key = options["seed"], options.get("episode", 0)
    expected = simulate([mechanism], [population], [key], steps).reward[0].tolist()

    opened = server.http.post("/reset", json=options | {"episode_length": steps}).json()
    step = {"session_id": opened["session_id"], "action": mechanism.model_dump()}
    assert [server.http.post("/step", json=step).json()["reward"] for _ in range(steps)] == expected

    with server.open() as sock:
        say(sock, {"type": "reset", "data": options | {"episode_length": steps}})
        message = {"type": "step", "data": mechanism.model_dump()}
        assert [say(sock, message)["data"]["reward"] for _ in range(steps)] == expected

    entry = {"mechanism": mechanism.model_dump(), "population": population.model_dump(),
             "seed": key[0], "episode": key[1]}
    batch = server.http.post("/api/simulate", json={"entries": [entry], "steps": steps}).json()
    assert batch["scores"]["reward"] == [expected]


def test_a_batch_is_every_score_of_every_step_of_every_entry(server):
    mechanisms = [Mechanism.random(seed) for seed in range(20)]
    entries = [{"mechanism": mechanism.model_dump(), "stage": at % 5, "seed": at}
               for at, mechanism in enumerate(mechanisms)]
    scores = server.http.post("/api/simulate", json={"entries": entries, "steps": 3}).json()["scores"]
    expected = simulate(mechanisms, [Population.stage(at % 5) for at in range(20)], list(range(20)), 3)
    assert scores == {name: getattr(expected, name).tolist() for name in scores}
    assert set(scores) == {"welfare", "fairness", "participation", "stability", "reward", "revenue"}


def test_sessions_side_by_side_keep_apart(server):
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.open()) for _ in range(12)]
        for seed, sock in enumerate(socks):
            say(sock, {"type": "reset", "data": {"seed": seed}})
        rewards = []
        for _ in range(3):
            for sock in socks:
                sock.send('{"type": "step", "data": {}}')
            rewards.append([json.loads(sock.recv(timeout=PATIENCE))["data"]["reward"] for sock in reversed(socks)][::-1])
    expected = simulate(Mechanism(), [Population.stage(4)] * 12, list(range(12)), 3).reward
    assert rewards == expected.T.tolist()


# Other people's clients

def test_the_folder_validates():
    report = json.loads(CliRunner().invoke(
        openenv_cli, ["validate", "--level", "static", "--json", str(CHECKOUT)]).stdout)
    assert report["verdict"] == "pass"
    assert report["results"] and all(result["status"] == "pass" for result in report["results"])


class Here:
    """Runs the validator's subject as a server on this machine, in place of a container."""

    name, capabilities, supported_network_modes = "here", {ProviderCapability.IMAGE_BUILD}, {"public"}

    def __init__(self, url: str):
        self.base_url = url

    def build(self, root, execution) -> str:
        """Nothing needs to be built, but what the manifest names has to be there."""
        assert (root / execution.dockerfile).is_file()
        return "sha256:" + "0" * 64

    def start(self, spec) -> "Here":
        """It runs."""
        return self

    def inspect(self) -> dict:
        """Nothing to see."""
        return {}

    def logs(self, max_bytes: int = 65536) -> str:
        """No logs."""
        return ""

    def stop(self) -> None:
        """It runs on."""


@pytest.fixture
def patient(monkeypatch):
    """The validator grants its own process five seconds, which a busy machine may not."""
    run = subprocess.run
    monkeypatch.setattr(basic.subprocess, "run", lambda *words, **options: run(*words, **options | {"timeout": PATIENCE}))


def test_the_folder_validates_and_only_what_nobody_can_check_is_skipped(server, patient):
    report = run_validation(CHECKOUT, provider=Here(server.url))
    results = {result.check_id: result for result in report.results}
    passed = {name for name, result in results.items() if result.status.value == "pass"}
    assert passed == {"static.manifest", "runtime.startup", "runtime.reward_well_formed", "runtime.observation_schema",
                      "runtime.state_contract"}
    for name in results.keys() - passed:
        assert results[name].status.value == "skip", results[name]
        why, = results[name].evidence
        assert why == "grader not implemented in this build" or name == "runtime.network_policy", results[name]


def test_the_top_of_the_declared_range_is_within_reach():
    reward = yaml.safe_load((CHECKOUT / "openenv.yaml").read_text())["validation"]["reward"]
    plan = json.loads((CHECKOUT / "data" / "probe.json").read_text())
    population = Population(**plan["reset"]["options"]["population"])
    out = simulate([Mechanism(**plan["actions"][0])], [population], [plan["reset"]["seed"]], len(plan["actions"]))
    low, high = reward["range"]
    assert (out.reward >= high - reward["oracle_tolerance"]).all() and (out.reward <= high).all()
    worst = simulate([Mechanism(reserve_price=0.9)], [Population.stage(4)], [0], 3).reward
    assert (worst >= low).all() and worst.mean() <= high - reward["floor_margin"]


def test_the_server_validates(server):
    report = json.loads(CliRunner().invoke(openenv_cli, ["validate", "--url", server.url, "--json"]).stdout)
    assert report["passed"] and report["mode"] == "simulation"
    assert len(report["criteria"]) == 6 and all(criterion["passed"] for criterion in report["criteria"])


def test_the_generic_client_plays_an_episode(server):
    with GenericEnvClient(base_url=server.url).sync() as env:
        result, rewards = env.reset(seed=4, episode_length=5), []
        while not result.done:
            result = env.step(INFORMED_GREEDY.model_dump())
            rewards.append(result.reward)
        assert Population(**env.state()["population"]) == Population.stage(4)
    assert rewards == simulate([INFORMED_GREEDY], [Population.stage(4)], [4], 5).reward[0].tolist()


@pytest.mark.parametrize("way", [DaedalusEnvClient, lambda *of, **options: DaedalusEnvClient(*of, **options).sync()],
                         ids=["direct", "sync"])
def test_our_client_plays_the_episode_it_was_made_for(server, way):
    with way(server.url, n_agents=4, episode_length=3) as env:
        result, rewards = env.reset(seed=4, stage=0), []
        assert result.observation.signals["bidders"] == 4
        for action in (Mechanism(), DaedalusAction(), Mechanism()):
            result = env.step(action)
            rewards.append(result.reward)
        assert result.done and result.observation.done
        assert (env.state().n_agents, env.state().episode_length) == (4, 3)
        assert rewards == simulate([Mechanism()], [Population(truthful=4)], [4], 3).reward[0].tolist()
        env.reset(population=Population(**LAST), episode_length=1)
        env.step(Mechanism())
        assert env.state().population == Population(**LAST).model_dump()


def test_our_client_says_what_the_server_refused(server):
    with DaedalusEnvClient(server.url).sync() as env:
        with pytest.raises(RuntimeError, match="seed must be a whole number from 0 to 18446744073709551615, not -1"):
            env.reset(seed=-1)
        with pytest.raises(RuntimeError, match="no episode has begun: reset starts one"):
            env.step(Mechanism())


OLD = """
import asyncio, sys
from openenv import GenericEnvClient

async def play():
    async with GenericEnvClient(base_url=sys.argv[1]) as env:
        result = await env.reset(seed=4, episode_length=5)
        while not result.done:
            result = await env.step({"auction_type": "vcg"})
            print(repr(result.reward))

asyncio.run(play())
"""


@pytest.mark.skipif("DAEDALUS_OLD_OPENENV" not in os.environ,
                    reason="DAEDALUS_OLD_OPENENV names no Python that has openenv-core 0.3.0")
def test_the_client_of_the_old_package_plays_an_episode(server):
    played = subprocess.run([os.environ["DAEDALUS_OLD_OPENENV"], "-c", OLD, server.url],
                            capture_output=True, text=True, check=True)
    expected = simulate([Mechanism(auction_type="vcg")], [Population.stage(4)], [4], 5).reward[0]
    assert [float(line) for line in played.stdout.split()] == expected.tolist()


# What is out of range, field by field as the service documents itself

def followed(spec: dict, schemas: dict) -> dict:
    """A schema behind its references, without its null."""
    spec = next((choice for choice in spec.get("anyOf", []) if choice.get("type") != "null"), spec)
    return followed(schemas[spec["$ref"].rsplit("/")[-1]], schemas) if "$ref" in spec else spec


def least(spec: dict, schemas: dict) -> object:
    """The smallest value that a schema allows."""
    spec = followed(spec, schemas)
    if spec["type"] == "object":
        return {name: least(spec["properties"][name], schemas) for name in spec.get("required", [])}
    return {"array": [least(spec["items"], schemas)] if "items" in spec else [], "string": "x",
            "integer": spec.get("minimum", 0), "number": spec.get("minimum", 0.0)}[spec["type"]]


def wrong_values(spec: dict, schemas: dict) -> list:
    """Values that a schema does not allow."""
    wrong = {"object": ["text", [1]], "array": ["text", {"a": 1}], "string": [7, True], "boolean": ["yes", 1],
             "integer": ["many", 0.5, True, [1]], "number": ["many", True, [1]]}[spec["type"]]
    wrong += ["none of these"] if "enum" in spec else []
    wrong += [spec["minimum"] - 1] if "minimum" in spec else []
    wrong += [spec["maximum"] + 1] if "maximum" in spec else []
    wrong += [""] if "minLength" in spec else []
    wrong += ["x" * (spec["maxLength"] + 1)] if "maxLength" in spec else []
    wrong += [[]] if "minItems" in spec else []
    wrong += [[least(spec["items"], schemas)] * (spec["maxItems"] + 1)] if "maxItems" in spec else []
    return wrong


def faults(spec: dict, schemas: dict) -> Iterator[tuple[str, dict]]:
    """Objects with one wrong field each, and the name of that field."""
    spec = followed(spec, schemas)
    right = least(spec, schemas)
    for name, field in spec["properties"].items():
        field = followed(field, schemas)
        yield from ((name, right | {name: value}) for value in wrong_values(field, schemas))
        if "properties" in field:
            yield from ((where, right | {name: value}) for where, value in faults(field, schemas))
        elif "properties" in (item := followed(field.get("items", {}), schemas)):
            yield from ((where, right | {name: [value]}) for where, value in faults(item, schemas))
    yield "no_such_field", right | {"no_such_field": 1}


def documented_faults() -> list:
    """A wrong body for each field of each call."""
    document = create_app(page=False).openapi()
    schemas = document["components"]["schemas"]
    cases = []
    for path in ("/reset", "/step", "/api/design", "/api/simulate"):
        spec = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        cases += [pytest.param(path, name, body, id=f"{path}-{name}-{at}")
                  for at, (name, body) in enumerate(faults(spec, schemas))]
    return cases


@pytest.mark.parametrize("path, name, body", documented_faults())
def test_a_wrong_field_is_refused_by_name(server, path, name, body):
    answer = server.http.post(path, json=body)
    assert answer.status_code == 422
    assert name in sentences(answer), sentences(answer)
    assert "Value error" not in sentences(answer) and len(answer.content) < 2000


def test_there_is_a_wrong_body_for_every_field():
    named = {case.values[1] for case in documented_faults()}
    for fields in (ResetOptions, DaedalusAction, Population, Mechanism):
        assert set(fields.model_fields) <= named


@pytest.mark.parametrize("signals", [{}, {"price": 1.0}, dict.fromkeys([*SIGNALS, "mood"], 0.5),
                                     dict.fromkeys(SIGNALS, "x")])
def test_signals_are_all_there_or_none(server, signals):
    answer = server.http.post("/api/design", json={"signals": signals})
    assert answer.status_code == 422 and "signals" in json.dumps(answer.json()["detail"])
    assert isinstance(answer.json()["detail"], list)


@pytest.mark.parametrize("query", ["", "?session_id=", "?session_id=" + "x" * 256, "?session=x"])
def test_a_state_needs_the_name_of_a_session(server, query):
    answer = server.http.get("/state" + query)
    assert answer.status_code == 422 and "session_id" in answer.text


# Bodies that are none

BODIES = {
    "nothing": b"", "text": b"hello", "bytes": b"\xff\xfe\x00", "cut": b'{"seed": 1', "null": b"null", "list": b"[1]",
    "number": b"7", "NaN": b'{"seed": NaN, "round_number": NaN}',
    "Infinity": b'{"steps": -Infinity, "n_agents": Infinity}',
    "huge": b'{"seed": 1e999, "steps": 1e999}', "digits": b'{"seed": 1' + b"0" * 5000 + b"}",
    "open": b"[" * 60_000, "nested": b"[" * 30_000 + b"]" * 30_000,
    "nested objects": b'{"seed":' * 5_000 + b"1" + b"}" * 5_000,
    "nested metadata": b'{"session_id":"x","action":{"metadata":' + b'{"a":' * 900 + b"1" + b"}" * 902,
    "surrogate": b'{"session_id": "\\ud800", "episode_id": "\\udfff"}', "surrogate key": b'{"\\ud800": 1}',
    "zero": b'{"session_id": "\\u0000", "action": {"auction_type": "\\u0000"}}',
    "twice": b'{"seed": 1, "seed": "x"}',
}


@pytest.mark.parametrize("path", ["/reset", "/step", "/api/design", "/api/simulate", "/mcp"])
@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_no_body_breaks_the_server(server, path, body):
    for kind in ("application/json", "text/plain", "multipart/form-data"):
        answer = server.http.post(path, content=body, headers={"Content-Type": kind})
        assert answer.status_code in (200, 400, 404, 422)
        json.loads(answer.text)
    assert server.health()["status"] == "healthy"


@pytest.mark.parametrize("path, most", [("/reset", 2**16), ("/step", 2**16), ("/api/design", 2**16),
                                        ("/api/simulate", 2**21), ("/mcp", 2**16)])
def test_a_body_over_the_limit_is_refused(server, path, most):
    pieces = iter([b" " * 1000] * (most // 1000 + 1))  # sent without saying how many there will be
    for body in (b" " * (most + 1), pieces) if path != "/mcp" else (b" " * (most + 1),):
        answer = server.post(path, body)
        assert answer.status_code == 413
        assert str(most) in sentences(answer)
        assert answer.headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
    assert server.post(path, b" " * most).status_code != 413


def test_a_batch_has_at_most_so_many_entries(server):
    answer = server.http.post("/api/simulate", json={"entries": [{}] * (MOST_ENTRIES + 1), "steps": 1})
    assert answer.status_code == 422 and "entries" in sentences(answer)


# Sockets

def test_a_wrong_option_over_a_socket_is_refused_and_the_session_goes_on(server):
    schema = ResetOptions.model_json_schema()
    with server.open() as sock:
        say(sock, {"type": "reset", "data": {"seed": 8, "episode_length": 2}})
        for name, options in faults(schema, schema["$defs"]):
            assert name in refusal(say(sock, {"type": "reset", "data": options})), options
        reward = say(sock, {"type": "step", "data": {}})["data"]["reward"]
    assert reward == simulate([Mechanism()], [Population.stage(4)], [8], 1).reward[0, 0]


def test_a_wrong_action_over_a_socket_is_refused_and_the_session_goes_on(server):
    schema = DaedalusAction.model_json_schema()
    with server.open() as sock:
        say(sock, {"type": "reset", "data": {"seed": 8}})
        for name, action in faults(schema, schema.get("$defs", {})):
            if name == "metadata":  # which nobody reads
                continue
            assert name in refusal(say(sock, {"type": "step", "data": action})), action
        assert say(sock, {"type": "state"})["data"]["step_count"] == 0


FRAMES = {
    "binary": b"\x00\x01", "binary JSON": b'{"type": "reset"}', "empty": "", "cut": '{"type": "step", "data":',
    "text": "hello", "list": '[{"type": "reset"}]', "null": "null", "number": "7", "no type": "{}",
    "unknown type": {"type": "dance"}, "type of a wrong type": {"type": ["reset"]}, "null type": {"type": None},
    "data is a list": {"type": "step", "data": [1]}, "data is text": {"type": "reset", "data": "seed"},
    "data is null": {"type": "step", "data": None}, "NaN": '{"type": "step", "data": {"reserve_price": NaN}}',
    "Infinity": '{"type": "reset", "data": {"seed": -Infinity}}',
    "huge": '{"type": "step", "data": {"reserve_price": 1e999}}',
    "huge seed": '{"type": "reset", "data": {"seed": 1e999}}',
    "digits": '{"type": "reset", "data": {"seed": 1' + "0" * 5000 + "}}",
    "open": "[" * 60_000, "nested": "[" * 30_000 + "]" * 30_000, "nested a little": '{"type":' * 33 + "1" + "}" * 33,
    "nested metadata": '{"type": "step", "data": {"metadata": ' + '{"a":' * 900 + "1" + "}" * 902,
    "surrogate": '{"type": "step", "data": {"auction_type": "\\ud800"}}', "surrogate type": '{"type": "\\udfff"}',
    "surrogate option": '{"type": "reset", "data": {"\\ud800": 1}}', "self": {"type": "reset", "data": {"self": 1}},
    "unknown rule": {"type": "step", "data": {"rake": 0.1}}, "early step": {"type": "step", "data": {}},
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
def test_a_bad_frame_is_answered_and_harms_nobody(server, frame):
    with server.open() as other, server.open() as sock:
        say(other, {"type": "reset", "data": {"seed": 8}})
        sentence = refusal(say(sock, frame))
        assert sentence and "Traceback" not in sentence and len(sentence) < 400
        assert say(sock, {"type": "reset", "data": {"seed": 1}})["type"] == "observation"
        reward = say(other, {"type": "step", "data": {}})["data"]["reward"]
    assert reward == simulate([Mechanism()], [Population.stage(4)], [8], 1).reward[0, 0]


def test_an_option_named_self_is_an_unknown_field(server):
    with server.open() as sock:
        assert refusal(say(sock, FRAMES["self"])).startswith("'self' is not a field; the fields are ")


@pytest.mark.parametrize("size", [2**16 + 1, 17 * 2**20])
def test_a_frame_over_the_limit_closes_its_socket_only(server, size):
    with server.open() as other:
        say(other, {"type": "reset", "data": {"seed": 8}})
        sock = socket.create_connection(("127.0.0.1", int(server.host.rsplit(":")[-1])))
        with sock:
            sock.sendall(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                         b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
            while not sock.recv(4096).endswith(b"\r\n\r\n"):
                pass
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"\x81\xff" + size.to_bytes(8) + b"\0\0\0\0")  # a text frame of that size begins
                frame = sock.recv(4096)
                sock.sendall(b"x" * size)
            assert frame[0] == 0x88 and int.from_bytes(frame[2:4]) == 1009
        assert say(other, {"type": "step", "data": {}})["data"]["reward"] is not None
    server.wait_until_empty()


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1:1", "file://", "http://[", "x"])
@pytest.mark.parametrize("path", ["/ws", "/mcp"])
def test_a_page_of_a_foreign_origin_is_refused(server, origin, path):
    with pytest.raises(InvalidStatus) as refused:
        with server.open(path, origin=origin):
            pass
    assert refused.value.response.status_code == 403


def test_a_page_of_our_own_and_a_program_are_welcome(server):
    for origin in (None, server.url, server.url.replace("http", "https")):
        with server.open(origin=origin) as sock:
            assert say(sock, {"type": "state"})["type"] == "state"


def test_an_allowed_origin_is_welcome_and_no_other():
    friend = "https://friend.example"
    with serving(Limits(origins=(friend,))) as server:
        with server.open(origin=friend) as sock:
            assert say(sock, {"type": "state"})["type"] == "state"
        with pytest.raises(InvalidStatus), server.open(origin=friend + ".evil.example"):
            pass
        for origin, allowed in ((friend, friend), ("https://evil.example", None)):
            asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            for answer in (server.http.get("/health", headers=asks), server.http.options("/step", headers=asks)):
                assert answer.headers.get("Access-Control-Allow-Origin") == allowed
                assert "Access-Control-Allow-Credentials" not in answer.headers


# Places

def play(server: Server, name: str) -> httpx.Response:
    """A step in a session."""
    return server.http.post("/step", json={"session_id": name, "action": {}})


def test_when_all_sessions_are_being_played_a_reset_is_told_when_to_come_back(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("daedalus.serving.serve.Sessions", partial(Sessions, clock=lambda: now[0]))
    with serving(Limits(sessions=3, idle=15.0, rest=10.0)) as server:
        for at in range(3):
            assert server.http.post("/reset", json={"session_id": f"s{at}"}).status_code == 200
            assert play(server, f"s{at}").status_code == 200
        now[0] += 2.5
        refused = server.http.post("/reset", json={})
        assert (refused.status_code, sentences(refused)) == (503, "all 3 sessions are taken")
        assert refused.headers["Retry-After"] == "8"
        assert server.http.post("/reset", json={"session_id": "s0"}).status_code == 200
        now[0] += 8
        assert server.http.post("/reset", json={}).status_code == 200
        gone = play(server, "s1")
        assert (gone.status_code, sentences(gone)) == (404, "there is no session 's1': reset opens one")
        now[0] += 14
        assert server.health()["http_sessions"] == 1
        now[0] += 2
        assert server.health()["http_sessions"] == 0


def test_one_socket_too_many_is_told_so_and_places_return():
    with serving(Limits(sessions=5)) as server, contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.open()) for _ in range(5)]
        for sock in socks:
            say(sock, {"type": "reset"})
        with server.open() as late:
            answer = json.loads(late.recv(timeout=PATIENCE))
            assert answer["data"]["code"] == "CAPACITY_REACHED"
            assert refusal(answer).startswith("all 5 sessions are taken")
            with pytest.raises(ConnectionClosed):
                late.recv(timeout=PATIENCE)
        with pytest.raises(RuntimeError, match="all 5 sessions are taken"):
            DaedalusEnvClient(server.url).sync().reset()
        for sock in socks:
            sock.send('{"type": "step", "data": {}}')
            sock.socket.shutdown(socket.SHUT_RDWR)
        server.wait_until_empty()
        for _ in range(5):
            assert say(stack.enter_context(server.open()), {"type": "reset"})["type"] == "observation"


def test_an_idle_socket_is_told_why_it_is_closed():
    with serving(Limits(sessions=1, idle=2.0)) as server, server.open() as sock:
        say(sock, {"type": "reset"})
        assert refusal(json.loads(sock.recv(timeout=PATIENCE))).startswith("nothing was said for 2 s")
        with pytest.raises(ConnectionClosed):
            sock.recv(timeout=PATIENCE)
        server.wait_until_empty()
        with server.open() as next_one:
            assert say(next_one, {"type": "reset"})["type"] == "observation"


def test_clients_that_vanish_in_the_middle_of_a_step_leave_their_places():
    with serving(Limits(sessions=4)) as server:
        for _ in range(3):
            with contextlib.ExitStack() as stack:
                for _ in range(4):
                    sock = stack.enter_context(server.open())
                    say(sock, {"type": "reset", "data": {"n_agents": 64}})
                    sock.send('{"type": "step", "data": {}}')
                    sock.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.socket.close()
            server.wait_until_empty()


# What every answer has, and what none gives away

@pytest.mark.parametrize("method, path, status", [
    ("GET", "/health", 200), ("GET", "/metadata", 200), ("GET", "/schema", 200), ("GET", "/openapi.json", 200),
    ("GET", "/plots/", 200), ("GET", "/blog.md", 200), ("GET", "/plots/training.csv", 200), ("GET", "/nothing", 404),
    ("GET", "/state", 422), ("GET", "/web", 404), ("POST", "/health", 405), ("DELETE", "/reset", 405)])
def test_every_answer_has_the_headers(server, method, path, status):
    answer = server.http.request(method, path, headers={"Origin": "https://evil.example"})
    assert answer.status_code == status
    assert answer.headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
    assert answer.headers["X-Request-Id"]
    assert "Access-Control-Allow-Origin" not in answer.headers and "Server" not in answer.headers


def test_only_figures_are_given_out(tmp_path, monkeypatch):
    folder = tmp_path / "figures"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(b"secret")
    for name in ("good.png", ".hidden.png", "notes.txt", ".env"):
        (folder / name).write_bytes(name.encode())
    monkeypatch.setenv("DAEDALUS_FIGURES_DIR", str(folder))
    with serving() as server:
        def get(path: str) -> tuple[int, bytes]:
            """Status and body for a path that no client has tidied."""
            line = http.client.HTTPConnection(server.host)
            line.putrequest("GET", path)
            line.endheaders()
            answer = line.getresponse()
            return answer.status, answer.read()

        assert get("/plots/good.png") == (200, b"good.png")
        assert b"good.png" in get("/plots/")[1] and b"hidden" not in get("/plots/")[1]
        for path in (".hidden.png", ".env", "notes.txt", "../secret.png", "..%2fsecret.png", "%2e%2e/secret.png",
                     "%2e%2e%2fsecret.png", "..%5csecret.png", "%252e%252e%252fsecret.png", f"{tmp_path}/secret.png",
                     f"/{tmp_path}/secret.png", f"{tmp_path}/secret.png".replace("/", "%2f"), "..", "%00",
                     "good.png%00", "../../../../../../etc/passwd", "..%2f..%2f..%2f..%2f..%2fetc%2fpasswd",
                     "GOOD.PNG"):
            assert get("/plots/" + path)[0] == 404, path


# Faults

class Blocked:
    """A designer that answers when it is let go."""

    def __init__(self):
        self.go, self.busy, self.most = threading.Event(), 0, 0

    def __call__(self, observation):
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.go.wait(PATIENCE)
        self.busy -= 1
        return INFORMED_GREEDY


@contextlib.contextmanager
def two_ask(server: Server, designer: Blocked) -> Iterator[list]:
    """Two requests wait, and the designer thinks; afterwards, their answers are in the list."""
    answers = []

    def ask() -> None:
        """Ask for a mechanism, and keep the answer."""
        answers.append(httpx.post(server.url + "/api/design", json={}, timeout=PATIENCE))

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for asker in askers:
        asker.start()
    try:
        until(lambda: designer.busy and server.http.get("/api/designer/status").json()["waiting"] + len(answers) == 2)
        yield answers
    finally:
        for asker in askers:
            asker.join()


def test_a_slow_designer_holds_up_nobody_else():
    designer = Blocked()
    with serving(Limits(patience=PATIENCE, waiting=1), lambda: designer) as server, two_ask(server, designer) as answers:
        crowded = server.http.post("/api/design", json={})
        assert (crowded.status_code, sentences(crowded)) == (503, "2 requests wait for the designer")
        for _ in range(15):
            server.health()
        with server.open() as sock:
            say(sock, {"type": "reset", "data": {"seed": 8}})
            reward = say(sock, {"type": "step", "data": {}})["data"]["reward"]
        assert reward == simulate([Mechanism()], [Population.stage(4)], [8], 1).reward[0, 0]
        assert designer.busy == 1 and not answers   # it still thinks
        designer.go.set()
    assert [answer.status_code for answer in answers] == [200, 200] and designer.most == 1


def test_a_slow_designer_s_clients_are_told_to_come_back_and_it_is_not_asked_again_meanwhile():
    designer = Blocked()
    with serving(Limits(patience=1.0, waiting=1), lambda: designer) as server:
        with two_ask(server, designer) as answers:
            pass
        for answer in answers + [server.http.post("/api/design", json={})]:
            assert (answer.status_code, sentences(answer)) == (503, "the designer did not answer within 1 s")
            assert int(answer.headers["Retry-After"]) >= 1
        assert designer.most == 1  # those that gave up waiting have not put a second one to work
        designer.go.set()
        answer = until(lambda: (told := server.http.post("/api/design", json={})).status_code == 200 and told)
        assert answer.json()["mechanism"] == INFORMED_GREEDY.model_dump()
        assert server.http.get("/api/designer/status").json()["waiting"] == 0 and designer.most == 1


def missing():
    """A designer that is not there."""
    raise FileNotFoundError("there is no folder small")


def test_when_the_designer_is_missing_another_stands_in_and_says_so():
    with serving(load=missing) as server:
        answer = server.http.post("/api/design", json={}).json()
        assert (answer["designer"], answer["mechanism"]) == ("informed-greedy", INFORMED_GREEDY.model_dump())
        assert answer["note"] == "the trained designer cannot be loaded: there is no folder small"
        status = server.http.get("/api/designer/status").json()
        assert (status["designer"], status["note"], status["answered"]) == ("informed-greedy", answer["note"], 1)


class Terse(Designer):
    """A language model that names one lever in each reply, and has said nonsense before."""

    invalid, partial = 2, 5

    def __call__(self, observation):
        return Mechanism.from_text('{"auction_type": "vcg"}')


def test_an_answer_says_which_fields_nobody_named():
    with serving(load=Terse) as server:
        assert server.http.get("/api/designer/status").json()["partial"] == 0   # nobody is loaded yet
        answer = server.http.post("/api/design", json={}).json()
        assert answer["mechanism"] == Mechanism(auction_type="vcg").model_dump()
        assert answer["unnamed"] == list(Mechanism.model_fields)[1:]
        status = server.http.get("/api/designer/status").json()
        assert (status["invalid"], status["partial"]) == (2, 5)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, KeyError])
def test_a_designer_that_fails_is_not_the_client_s_mistake(kind):
    def failing(observation):
        """No mechanism."""
        raise kind("weights-of-lead")

    with serving(load=lambda: failing) as server:
        for _ in range(2):
            answer = server.http.post("/api/design", json={})
            assert answer.status_code in (500, 503)
            assert "weights-of-lead" not in answer.text and "Traceback" not in answer.text
            assert answer.headers.items() >= {name.lower(): value for name, value in HEADERS.items()}.items()
        assert server.http.get("/api/designer/status").json()["waiting"] == 0
        assert server.http.post("/reset", json={}).status_code == 200


PROGRAM = """
import sys
from functools import partial
from daedalus.serving import serve
from daedalus.schema import INFORMED_GREEDY

def designer(observation):
    if observation.round_number == 13:
        raise RuntimeError("weights of lead")
    return INFORMED_GREEDY

serve.create_app = partial(serve.create_app, page=False)
serve.serve(port=int(sys.argv[1]), load=lambda: designer)
"""


def there(server: Server) -> bool:
    """Whether a server answers."""
    with contextlib.suppress(httpx.TransportError):
        return bool(server.health())
    return False


@contextlib.contextmanager
def process(port: int, log: Path) -> Iterator[tuple[Server, subprocess.Popen]]:
    """A server in a process of its own, as `serve` runs it."""
    with log.open("w") as file:
        child = subprocess.Popen([sys.executable, "-c", PROGRAM, str(port)], cwd=CHECKOUT, stdout=file, stderr=file)
        server = Server(port)
        try:
            until(lambda: child.poll() is not None or there(server), "the server never answered")
            yield server, child
        finally:
            child.kill()
            child.wait()


def test_a_killed_server_comes_back_and_its_log_tells_no_tales(tmp_path):
    with (held_port() as port, process(port, tmp_path / "first.log") as (server, child),
          DaedalusEnvClient(server.url).sync() as env):
        env.reset(seed=8, episode_length=2)
        env.step(Mechanism())
        say_secrets(server)
        failed = server.http.post("/api/design", json={"round_number": 13})
        server.health()   # answered when the log's line about the request before is written
        child.send_signal(signal.SIGKILL)
        child.wait()
        with pytest.raises((ConnectionError, ConnectionClosed)) as lost:
            env.step(Mechanism())
        assert str(lost.value)
        with pytest.raises(httpx.ConnectError, match="[Cc]onnection refused"):
            server.health()
        check_log((tmp_path / "first.log").read_text(), failed)
        with process(port, tmp_path / "second.log") as (again, _):
            assert again.health()["socket_sessions"] == 0
            expected = simulate([Mechanism()], [Population.stage(4)], [8], 1).reward[0, 0]
            env.reset(seed=8)
            assert env.step(Mechanism()).reward == expected


SECRET = "hunter2"


def say_secrets(server: Server) -> None:
    """Send a text on every way in."""
    server.http.post("/reset", json={"session_id": SECRET, "episode_id": SECRET})
    server.http.post("/step", json={"session_id": SECRET, "action": {"auction_type": SECRET}})
    server.http.get("/state", params={"session_id": SECRET})
    server.http.get("/plots/" + SECRET)
    server.http.get("/" + SECRET)
    server.post("/reset", SECRET.encode() * 10_000)
    with server.open("/ws?session_id=" + SECRET):
        pass
    with server.open() as sock:
        say(sock, SECRET)
        say(sock, {"type": SECRET})
    with pytest.raises(InvalidStatus), server.open(origin="https://" + SECRET):
        pass


def check_log(text: str, failed: httpx.Response) -> None:
    """Every line is JSON, none holds what clients said, and one tells of the failure."""
    assert SECRET not in text
    lines = [json.loads(line) for line in text.splitlines()]
    requests_seen = [line for line in lines if line["event"] == "request"]
    assert {200, 404, 413, 422, 500} <= {line["status"] for line in requests_seen}
    assert failed.status_code == 500 and "lead" not in failed.text and "Traceback" not in failed.text
    number = failed.headers["X-Request-Id"]
    assert number in sentences(failed)
    failure, = [line for line in lines if line["event"] == "failure"]
    assert failure["id"] == number and "RuntimeError: weights of lead" in json.dumps(failure)


# Somebody else's fuzzer

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance")


def test_schemathesis_finds_nothing(server, tmp_path):
    # Its requests are given ten seconds, and the first market with values of other kinds is compiled for longer than that.
    simulate(Mechanism(), Population(truthful=2, value_shape=2.0), 0, 1)
    run = subprocess.run(
        [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run",
         server.url + "/openapi.json", "--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing,stateful",
         "--max-examples", "5", "--seed", "0", "--generation-deterministic",
         "--continue-on-failure", "--no-color", "--report", "json", "--report-json-path", "report.json"],
        cwd=tmp_path, capture_output=True, text=True)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["failures"], report["errors"], run.returncode) == ([], [], 0), run.stdout[-3000:]
    assert report["complete"] and report["test_cases"]["generated"] > 500
    ran = {name: phase["status"] for name, phase in report["phases"].items()}
    assert ran == dict.fromkeys(["examples", "coverage", "fuzzing", "stateful"], "success")


# Whom to ask, for what, and at which cost

LOW = Brief.from_text("maximise welfare x revenue; reserve_price is at most 0.05")


def test_whoever_answers_obeys_the_brief_and_says_what_was_mended(server):
    for brief in (LOW.model_dump(), LOW.text()):
        answer = server.design({"brief": brief})
        assert answer["mechanism"] == INFORMED_GREEDY.replace(reserve_price=0.05).model_dump()
        assert answer["mended"] == ["reserve_price must be at most 0.05, not 0.18"]
    assert server.design({})["mended"] == []


def test_a_designer_is_shown_the_brief_or_what_the_service_rewards():
    seen = []
    app = create_app(load=lambda: lambda observation: seen.append(observation.brief) or INFORMED_GREEDY, page=False,
                     objective=Objective.from_text("revenue"))
    client = TestClient(app)
    for asked in ({}, {"brief": LOW.text()}):
        assert client.post("/api/design", json=asked).status_code == 200
    assert seen == [Brief.from_text("maximise revenue"), LOW]


def test_a_brief_that_is_none_is_refused_with_the_value_and_what_is_allowed(server):
    refused = server.http.post("/api/design", json={"brief": "maximise revenue; reserve_price is at most 7"})
    assert refused.status_code == 422 and "reserve_price must be a number from 0 to 0.9, not 7" in sentences(refused)


def test_each_of_those_who_are_offered_may_be_asked_and_nobody_else(server):
    offered = server.http.get("/api/designers").json()
    assert next(iter(offered)) == "trained" and {"first edition", "contextual-brief", "best fixed", "random"} <= offered.keys()
    assert all(name in ("trained", "random") or not each["answered"] for name, each in offered.items())
    answer = server.design({"designer": "contextual-brief", "brief": LOW.text(),
                                              "signals": dict.fromkeys(SIGNALS, 0.5), "mechanism": {},
                                              "market_outcomes": [{"welfare": 0.7, "fairness": 0.4, "participation": 1.0}]})
    assert answer["designer"] == "contextual-brief" and LOW.allows(Mechanism(**answer["mechanism"]))
    refused = server.http.post("/api/design", json={"designer": "somebody"})
    assert refused.status_code == 422
    assert sentences(refused).startswith("designer must be one of trained, ") and "not 'somebody'" in sentences(refused)


@pytest.mark.parametrize("own", ["random", "best-fixed", "smollm2"])
def test_the_service_s_own_designer_comes_first_and_a_base_only_where_it_is_at_hand(own, tmp_path, monkeypatch):
    monkeypatch.setenv("DAEDALUS_CACHE_DIR", str(tmp_path))
    queues = designer_queues(DesignerQueue(lambda: informed_greedy, LIMITS, own))
    names = [name.replace(" ", "-") for name in queues]
    assert names[0] == own and len({*names}) == len(names) and ("smollm2" in names) == (own == "smollm2")
    pretrained_path("smollm2").mkdir(parents=True)
    queues = designer_queues(DesignerQueue(lambda: informed_greedy, LIMITS, own))
    assert "smollm2" in queues and queues["trained"].limits.patience == LIMITS.patience
    if own != "smollm2":
        assert queues["smollm2"].limits.patience == SLOW and list(queues)[-1] != "smollm2"


def tiny() -> LanguageDesigner:
    """A language model with random weights."""
    tokenizer = small_tokenizer()
    return LanguageDesigner(small_model(tokenizer, 1, 32, 2), tokenizer)


def test_what_a_reply_costs_is_measured_and_told():
    model = tiny()
    client = TestClient(create_app(load=lambda: model, page=False, name="smollm2"))
    assert client.get("/api/designer/status").json()["cost"] is None
    answers = [client.post("/api/design", json={}).json() for _ in range(3)]
    status = client.get("/api/designer/status").json()
    cost = status["cost"]
    assert status["designer"] == "smollm2" and status["answered"] == cost["calls"] == 3 and 0 < cost["seconds"] < PATIENCE
    assert cost["weights"] == 4 * sum(each.numel() for each in model.model.parameters()) < cost["peak"]
    prompt = chat_text(model.tokenizer, messages(Observation(round_number=0, episode_length=10)))
    assert cost["prompt_tokens"] == len(model.tokenizer(prompt)["input_ids"])
    reply = Mechanism(**answers[0]["mechanism"]).to_text()
    assert cost["reply_tokens"] == len(model.tokenizer(reply)["input_ids"]) + 1
    assert client.get("/api/designers").json()["smollm2"] == status


def test_a_designer_is_asked_once_at_the_start_and_that_counts_for_nobody():
    queue = DesignerQueue(tiny, LIMITS)
    assert isinstance(queue.measure().result(PATIENCE)[0], Mechanism)
    assert queue.answered == 0 and queue.meter.cost().calls == 1
    player = arena_designers({"trained": queue})["trained"]
    assert player.cost() == queue.meter.cost().text() and "tokens read and" in player.cost()
    missing = DesignerQueue(lambda: LanguageDesigner.load("nowhere/at/all"), LIMITS)
    missing.measure().result(PATIENCE)
    assert arena_designers({"trained": missing})["trained"].cost().startswith("informed-greedy stands in: the trained designer")


def test_a_median_is_of_the_last_calls_and_words_are_few():
    meter = Meter()
    meter.seconds.extend([1000.0] * 3 + [2.0] * MEASURED)
    meter.tokens.extend([(10, 1), (30, 3), (20, 2)])
    cost = meter.cost()
    assert (cost.seconds, cost.calls, cost.prompt_tokens, cost.reply_tokens) == (2.0, MEASURED, 20, 2)
    assert cost.text() == f"2.0 s, 20 tokens read and 2 written (median of {MEASURED} calls)"
    assert Cost(seconds=0.0002, calls=1, peak=1).text() == "under 1 ms (median of 1 call)"


@pytest.mark.slow
@pytest.mark.skipif(not pretrained_path("smollm2").is_dir(), reason="the pretrained base is not here: `make pretrained` fetches it")
def test_the_pretrained_base_is_served_with_what_it_costs():
    client = TestClient(create_app(Limits(patience=10 * PATIENCE), lambda: LanguageDesigner.load("smollm2"), page=False,
                                   name="smollm2"))
    brief = Brief(fixed={"auction_type": "vcg"}, at_most={"reserve_price": 0.2})
    answer = client.post("/api/design", json={"brief": brief.text()}).json()
    assert answer["designer"] == "smollm2" and answer["mended"] == []   # held to the brief while it writes
    assert brief.allows(Mechanism(**answer["mechanism"])) and answer["unnamed"] == []
    cost = client.get("/api/designer/status").json()["cost"]
    assert cost["weights"] == 4 * 134_515_008 and cost["calls"] == 1 and 0.1 < cost["seconds"]
    assert 90 < cost["reply_tokens"] < 140 and 80 < cost["prompt_tokens"] < 200


# The front door

def test_the_arena_is_at_the_front_door_and_leaves_the_others_in_place():
    pytest.importorskip("gradio", reason="the arena needs gradio")
    from starlette.testclient import TestClient

    client = TestClient(create_app(load=lambda: informed_greedy))
    front = client.get("/")
    assert front.status_code == 200 and "text/html" in front.headers["content-type"] and "DAEDALUS arena" in front.text
    assert front.headers["x-content-type-options"] == "nosniff"
    assert client.get("/health").json()["status"] == "healthy"
    with client.websocket_connect("/ws") as sock:
        sock.send_text('{"type": "reset", "data": {"seed": 3}}')
        sock.receive_text()
        sock.send_text('{"type": "step", "data": {}}')
        reward = json.loads(sock.receive_text())["data"]["reward"]
    assert reward == simulate([Mechanism()], [Population.stage(4)], [3], 1).reward[0, 0]
