"""Who may call the service, how much anybody may take of it, and what it says of itself: real sockets on this machine."""

import contextlib
import gzip
import http.client
import json
import logging
import re
import signal
import socket
import threading
import time
from types import SimpleNamespace

import httpx
import pytest
from test_serve import play, process, refusal, say, sentences, serving
from typer.testing import CliRunner
from shared import PATIENCE, held_port, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from daedalus.serving import connections, sessions
from daedalus.market.bidders import Population
from daedalus.cli import app as cli
from daedalus.serving.connections import most_connections
from daedalus.designers.base import FixedDesigner, informed_greedy
from daedalus.market.engine import simulate
from daedalus.serving.openenv import DaedalusAction
from daedalus.paths import CHECKOUT
from daedalus.schema import INFORMED_GREEDY
from daedalus.serving.serve import create_app
from daedalus.serving.sessions import Limits, Place, Queue, Sessions, first_to_go


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """The engine is compiled before anything is timed."""
    simulate([INFORMED_GREEDY], [Population.stage(4)], [0], 1)


# Places

def test_sixty_four_resets_shut_nobody_out():
    with serving() as server:
        for _ in range(64):
            assert server.http.post("/reset").status_code == 200
        for _ in range(3):
            late = server.http.post("/reset")
            assert late.status_code == 200 and play(server, late.json()["session_id"]).status_code == 200
        assert server.health()["http_sessions"] == 64


def test_an_episode_that_is_over_gives_way_before_one_that_is_played():
    sessions = Sessions(Limits(sessions=3), clock=iter(range(10**6)).__next__)
    for name in ("over", "idle", "new"):
        sessions.reset(name, name, episode_length=1 if name == "over" else 5)
    for name in ("idle", "over"):
        sessions.step(name, DaedalusAction())
    sessions.reset("late", "late")
    assert "over" not in sessions and {"idle", "new"} <= sessions._places.keys()


def test_a_client_with_many_places_gives_way_before_one_with_few():
    held = {f"many{at}": Place("many", 100.0 + at, playing=True) for at in range(10)}
    held["few"] = Place("few", 0.0)
    assert first_to_go(held, "new", recent=50.0) == "many0"
    assert first_to_go({"few": Place("few", 60.0, playing=True)}, "new", recent=50.0) is None
    assert first_to_go({"few": Place("few", 40.0, playing=True)}, "new", recent=50.0) == "few"


def test_a_socket_that_says_nothing_gives_way_and_is_told():
    with serving(Limits(sessions=2, rest=0.3)) as server, server.open() as first, server.open() as second:
        say(first, {"type": "state"})
        time.sleep(0.4)
        say(second, {"type": "state"})
        with server.open() as third:
            assert say(third, {"type": "reset"})["type"] == "observation"
            assert "needed for somebody else" in refusal(json.loads(first.recv(timeout=PATIENCE)))
            with pytest.raises(ConnectionClosed):
                first.recv(timeout=PATIENCE)
            assert say(second, {"type": "reset"})["type"] == "observation"


def test_close_ends_a_session():
    with serving(Limits(sessions=1)) as server:
        server.http.post("/reset", json={"session_id": "demo"})
        play(server, "demo")
        assert server.http.post("/close", json={"session_id": "demo"}).status_code == 204
        assert server.health()["http_sessions"] == 0
        again = server.http.post("/close", json={"session_id": "demo"})
        assert (again.status_code, sentences(again)) == (404, "there is no session 'demo': reset opens one")


def test_a_session_with_a_token_is_its_own_client_s():
    with serving() as server:
        mine = {"X-Session-Token": "secret of mine"}
        server.http.post("/reset", json={"session_id": "demo"}, headers=mine)
        step = {"session_id": "demo", "action": {}}
        for headers in ({}, {"X-Session-Token": "guess"}):
            for answer in (server.http.post("/step", json=step, headers=headers),
                           server.http.post("/reset", json={"session_id": "demo"}, headers=headers),
                           server.http.post("/close", json={"session_id": "demo"}, headers=headers),
                           server.http.get("/state", params={"session_id": "demo"}, headers=headers)):
                assert (answer.status_code, sentences(answer)) == (
                    403, "session 'demo' was opened with a token: send the same")
        assert server.http.post("/step", json=step, headers=mine).status_code == 200
        text = server.http.get("/openapi.json").text
        assert "whoever knows the name may play" in text and "X-Session-Token" in text


# Pages of others

EVIL = [{"Origin": "https://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://127.0.0.1:1"}]


@pytest.mark.parametrize("headers", EVIL, ids=str)
def test_a_foreign_page_changes_nothing(headers):
    with serving() as server:
        for path in ("/reset", "/step", "/close", "/api/design", "/api/simulate", "/mcp", "/nothing"):
            for body in ({}, {"content": b"{}", }, {"json": {}}):
                answer = server.http.post(path, headers=headers, **body)
                assert (answer.status_code, sentences(answer)) == (
                    403, "pages of this origin may not call; --origin adds one"), path
        assert server.health()["http_sessions"] == 0


def test_our_own_page_and_a_named_one_may_call():
    friend = "https://friend.example"
    with serving(Limits(origins=(friend,))) as server:
        for headers in ({"Origin": server.url, "Sec-Fetch-Site": "same-origin"}, {"Origin": server.url}, {},
                        {"Origin": friend, "Sec-Fetch-Site": "cross-site"},
                        {"Origin": "https://behind.a.proxy", "Sec-Fetch-Site": "same-origin"}):
            assert server.http.post("/reset", headers=headers).status_code == 200, headers


def test_a_name_that_was_pointed_here_is_refused():
    with serving(Limits(hosts=("proxy.example",))) as server:
        for host, status in (("evil.example:7860", 421), ("127.0.0.1.evil.example", 421), ("localhost:7860", 200),
                             ("[::1]:7860", 200), ("127.0.0.2", 200), ("proxy.example", 200), ("a.localhost", 200)):
            assert server.http.get("/health", headers={"Host": host}).status_code == status, host
        evil = {"Host": "evil.example", "Origin": "http://evil.example"}
        assert server.http.post("/reset", headers=evil).status_code == 421
        with pytest.raises(InvalidStatus):
            with server.open(additional_headers={"Host": "evil.example"}, origin="http://evil.example"):
                pass


# Methods

def test_a_wrong_method_is_told_the_right_ones():
    with serving() as server:
        paths = server.http.get("/openapi.json").json()["paths"]
        assert {"/health", "/metrics", "/docs", "/plots/", "/plots/{name}", "/blog.md", "/mcp", "/close"} <= paths.keys()
        for path, methods in paths.items():
            right = {method.upper() for method in methods} | ({"HEAD"} if "get" in methods else set()) | {"OPTIONS"}
            for method in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE"} - right:
                answer = server.http.request(method, path.replace("{name}", "x.png"))
                assert answer.status_code == 405 and set(answer.headers["Allow"].split(", ")) == right, (method, path)
            assert set(server.http.options(path).headers["Allow"].split(", ")) == right


def test_head_is_get_without_the_body():
    with serving() as server:
        figure = sorted((CHECKOUT / "paper" / "figures").glob("*.png"))[0].name
        for path in ("/health", "/plots/", f"/plots/{figure}", "/plots/training.csv", "/blog.md", "/docs", "/openapi.json",
                     "/metadata", "/schema", "/nothing"):
            head, get = server.http.head(path), server.http.get(path)
            assert (head.status_code, head.content) == (get.status_code, b""), path
            assert head.headers["content-type"] == get.headers["content-type"]


# Connections

HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"


def line(server) -> socket.socket:
    """A bare connection."""
    return socket.create_connection(("127.0.0.1", int(server.host.rsplit(":")[-1])), timeout=PATIENCE)


def told(connection: socket.socket) -> bytes:
    """Everything that comes until the other side closes."""
    heard = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            heard += piece
    return heard


BODY = b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{"


UNFINISHED = {"nothing": b"", "a letter": b"G", "no end": HEAD, "cut header": HEAD + b"X-A: b", "cut body": BODY,
              "second request": HEAD + b"\r\n" + HEAD, "empty lines": b"\r\n"}


@pytest.fixture(scope="module")
def unfinished():
    """What a server says that waits two seconds for the rest of requests, and after how many: {beginning: (answer, seconds)}."""
    with serving(Limits(arrival=2.0)) as server, contextlib.ExitStack() as stack:
        began = time.monotonic()
        lines = {name: stack.enter_context(line(server)) for name in UNFINISHED}
        for name, start in UNFINISHED.items():
            lines[name].sendall(start)
        heard = {name: (told(connection), time.monotonic() - began) for name, connection in lines.items()}
        assert server.health()["status"] == "healthy"
    return heard


@pytest.mark.parametrize("start", UNFINISHED)
def test_a_request_that_does_not_arrive_is_closed(unfinished, start):
    heard, seconds = unfinished[start]
    assert b"408 Request Timeout" in heard and seconds > 1.9
    assert (b"200 OK" in heard) == (start == "second request")


def test_a_client_that_sends_byte_by_byte_is_closed_too():
    with serving(Limits(arrival=0.5)) as server, line(server) as connection, pytest.raises(ConnectionError):
        for byte in HEAD * 100:   # which takes more than a minute
            connection.sendall(bytes([byte]))
            time.sleep(0.02)


def test_slow_answers_and_many_requests_on_one_connection_are_no_fault():
    with serving(Limits(arrival=2.0), lambda: lambda observation: time.sleep(2.5) or INFORMED_GREEDY) as server:
        answers = []
        asker = threading.Thread(target=lambda: answers.append(httpx.post(server.url + "/api/design", json={}, timeout=PATIENCE)))
        asker.start()
        began, asked = time.monotonic(), 0
        while asked < 30 or time.monotonic() - began < 2.5:
            assert server.http.get("/health").status_code == 200
            asked += 1
            time.sleep(0.04)
        asker.join()
        assert answers[0].status_code == 200
        assert server.post("/reset", b" " * 40_000 + b"{}").status_code == 200


@pytest.mark.parametrize("start", [HEAD + b"X-Long: ", HEAD + b"X-A: b\r\n" * 10_000, b"GET /" + b"a" * 10**6, b"\r\n" * 10**6],
                         ids=["one header", "many headers", "address", "empty lines"])
def test_headers_without_end_are_refused(start):
    with serving() as server, line(server) as connection:
        sent = len(start)
        with contextlib.suppress(ConnectionError):
            connection.sendall(start)
            while sent < 60 * 2**20:
                connection.sendall(b"a" * 2**16)
                sent += 2**16
        assert sent < 20 * 2**20
        assert server.health()["status"] == "healthy"


def test_one_connection_too_many_is_told_so_and_the_log_too(caplog, monkeypatch):
    monkeypatch.setattr(connections._Clocked, "noted", 0.0)   # the log is told once a second at most, by all servers of a process
    with serving(Limits(connections=20)) as server:
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                stack.enter_context(line(server))
            until(lambda: len(server.connections) == 20)
            with caplog.at_level(logging.WARNING, "daedalus.serving.serve"), line(server) as late:
                heard = told(late)
            assert b"503 Service Unavailable" in heard and b"Retry-After" in heard
        until(lambda: not server.connections)
        assert server.health()["status"] == "healthy"
    assert any(record.message == "connection refused" for record in caplog.records)


def test_connections_leave_some_files_to_others(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda kind: (256, 1024))
    assert most_connections(Limits()) == 192 and most_connections(Limits(connections=10)) == 10


# The designer's queue

def asks(server, path: str, body: str) -> socket.socket:
    """A connection on which a question was sent."""
    connection = line(server)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                       f"Content-Length: {len(body)}\r\n\r\n{body}".encode())
    return connection


def status_line(connection: socket.socket) -> bytes:
    """How an answer begins."""
    return connection.recv(65536).partition(b"\r\n")[0]


def test_those_who_wait_are_answered_together_and_those_who_left_are_not():
    asked, go = [], threading.Event()

    class Counting(FixedDesigner):
        """Notes how many it is asked at once."""

        def design_batch(self, observations):
            asked.append(len(observations))
            go.wait(PATIENCE)
            return super().design_batch(observations)

    with serving(Limits(patience=PATIENCE), lambda: Counting(INFORMED_GREEDY)) as server, contextlib.ExitStack() as stack:
        def waiting(count: int) -> None:
            """Wait until so many wait."""
            until(lambda: server.http.get("/api/designer/status").json()["waiting"] == count, f"{count} never waited")

        def ask() -> socket.socket:
            """Ask for a mechanism."""
            return stack.enter_context(asks(server, "/api/design", "{}"))

        stayers = [ask()]
        until(lambda: asked)
        stayers += [ask() for _ in range(4)]
        leavers = [ask() for _ in range(3)]
        waiting(8)
        for leaver in leavers:
            leaver.close()
        waiting(5)
        go.set()
        assert [status_line(stayer) for stayer in stayers] == [b"HTTP/1.1 200 OK"] * 5 and asked == [1, 4]


def test_the_time_to_come_back_is_the_time_that_calls_take(monkeypatch):
    now, called, go = [0.0], threading.Event(), threading.Event()
    monkeypatch.setattr(sessions, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def ask(questions):
        """Take 0.3 s."""
        called.set()
        go.wait(PATIENCE)
        now[0] += 0.3
        return questions

    queue = Queue(ask)
    go.set()
    for _ in range(4):
        queue.put([0]).result()
    assert queue.ahead() == 1
    called.clear()
    go.clear()
    waiting = [queue.put([0])]
    assert called.wait(PATIENCE)
    waiting += [queue.put([at]) for at in range(160)]   # ten calls, and the newcomer's own
    assert queue.ahead() == 4
    now[0] += 2.0
    assert queue.ahead() == 22
    for one in waiting:
        one.cancel()
    go.set()


def test_one_question_that_fails_leaves_the_others_their_answers():
    def ask(questions):
        """Fail at 13."""
        time.sleep(0.1)
        if 13 in questions:
            raise RuntimeError("unlucky")
        return questions

    queue = Queue(ask)
    futures = [queue.put([number]) for number in (1, 2, 13, 4)]
    assert [one.result() for at, one in enumerate(futures) if at != 2] == [[1], [2], [4]]
    with pytest.raises(RuntimeError, match="unlucky"):
        futures[2].result()


def test_a_batch_whose_client_has_left_is_not_played(monkeypatch):
    played, go = [], threading.Event()

    def slowly(batch, objective):
        """Note the batch, and wait."""
        played.append(batch.entries[0].seed)
        go.wait(PATIENCE)
        return {"reward": [[0.0]]}

    monkeypatch.setattr("daedalus.serving.serve.play_batch", slowly)
    with serving() as server, contextlib.ExitStack() as stack:
        def waiting(count: int) -> None:
            """Wait until so many batches are there."""
            until(lambda: f"\ndaedalus_batches_waiting {count:.1f}\n" in server.http.get("/metrics").text, f"never {count}")

        askers = []
        for seed in (1, 2, 3):
            body = json.dumps({"entries": [{"seed": seed}], "steps": 1})
            askers.append(stack.enter_context(asks(server, "/api/simulate", body)))
            waiting(seed)
        askers.pop(1).close()
        waiting(2)
        go.set()
        assert [status_line(asker) for asker in askers] == [b"HTTP/1.1 200 OK"] * 2
    assert played == [1, 3]


# Running it

SLOW = """
import os, sys, time
from functools import partial
from daedalus.serving import serve

def designer(observation):
    while not os.path.exists(os.environ["GO"]): time.sleep(0.05)

serve.create_app = partial(serve.create_app, page=False)
serve.serve(port=int(sys.argv[1]), load=lambda: designer)
"""


def test_a_request_in_flight_when_the_service_stops_is_told_to_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr("test_serve.PROGRAM", SLOW)
    monkeypatch.setenv("GO", str(tmp_path / "go"))
    with held_port() as port, process(port, tmp_path / "log") as (server, child):
        answers: list[httpx.Response] = []
        asker = threading.Thread(target=lambda: answers.append(httpx.post(server.url + "/api/design", json={}, timeout=PATIENCE)))
        asker.start()
        until(lambda: server.http.get("/api/designer/status").json()["waiting"] == 1)
        child.send_signal(signal.SIGTERM)
        asker.join()
        (tmp_path / "go").touch()
        child.wait(PATIENCE)
    assert answers[0].status_code == 503 and "stopping" in sentences(answers[0]) and answers[0].headers["Retry-After"]
    assert '"trace"' not in (tmp_path / "log").read_text()


def test_large_frames_and_early_leavers_leave_no_traces_in_the_log(caplog):
    with serving() as server, caplog.at_level(logging.INFO):
        for _ in range(5):
            with server.open() as sock, contextlib.suppress(ConnectionClosed):
                for _ in range(20):
                    sock.send('{"type": "reset"}')
                sock.send("x" * 70_000)
                while True:
                    sock.recv(timeout=PATIENCE)
            sock = server.open()
            for _ in range(20):
                sock.send('{"type": "reset"}')
            sock.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            sock.socket.close()
            with line(server) as connection:
                connection.sendall(b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n")
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        server.wait_until_empty()
    loud = [record for record in caplog.records if record.levelno >= logging.ERROR or record.exc_info]
    assert not loud, loud


def start(monkeypatch, *options: str):
    """What the command says that starts the service, with options under which it must not."""
    monkeypatch.setattr("daedalus.serving.serve.serve", lambda *args: pytest.fail("the service started"))
    with held_port() as port:
        return CliRunner().invoke(cli, ["serve", "--port", str(port), *options])


def test_a_designer_that_is_not_there_keeps_the_service_from_starting(monkeypatch):
    run = start(monkeypatch, "--repo-id", "nowhere/at/all")
    assert run.exit_code != 0 and "nowhere/at/all" in run.output and "Traceback" not in run.output


@pytest.mark.parametrize("path", ["daedalus", "/daedalus/", "/a b", "http://x/y"])
def test_a_root_path_that_is_none_is_refused(monkeypatch, path):
    run = start(monkeypatch, "--root-path", path)
    assert run.exit_code != 0 and "--root-path must be a path such as /daedalus" in run.output


def test_behind_a_proxy_the_service_answers_with_and_without_its_path():
    from starlette.testclient import TestClient

    client = TestClient(create_app(page=False, root_path="/daedalus"))
    for prefix in ("", "/daedalus"):
        assert client.get(prefix + "/health").status_code == 200
        assert client.post(prefix + "/health").status_code == 405
        assert client.post(prefix + "/reset", json={}).status_code == 200
        with client.websocket_connect(prefix + "/ws") as sock:
            sock.send_text('{"type": "reset"}')
            assert json.loads(sock.receive_text())["type"] == "observation"
    assert "](/daedalus/plots/" in client.get("/blog.md").text
    assert client.get("/openapi.json").json()["servers"] == [{"url": "/daedalus"}]


# What it says of itself

def test_the_description_needs_nothing_from_elsewhere():
    with serving() as server:
        text = server.http.get("/docs").text
        assert not re.findall(r"(?:src|href)=['\"](?:https?:)?//", text) and "<script" not in text
        for path in server.http.get("/openapi.json").json()["paths"]:
            assert path in text
        assert "n_agents" in text and "bidders" in text
        assert server.http.get("/redoc").status_code == 404


def test_what_a_reader_has_is_not_sent_again():
    with serving() as server:
        figure = sorted((CHECKOUT / "paper" / "figures").glob("*.png"))[0].name
        for path in (f"/plots/{figure}", "/plots/training.csv", "/blog.md"):
            first = server.http.get(path)
            again = server.http.get(path, headers={"If-None-Match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert server.http.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_batches_are_packed_for_those_who_ask():
    body = {"entries": [{"seed": seed} for seed in range(50)], "steps": 5}
    with serving() as server:
        plain = server.http.post("/api/simulate", json=body, headers={"Accept-Encoding": "identity"})
        assert "content-encoding" not in plain.headers
        raw = http.client.HTTPConnection(server.host)
        raw.request("POST", "/api/simulate", json.dumps(body), {"Accept-Encoding": "gzip", "Content-Type": "application/json"})
        answer = raw.getresponse()
        packed = answer.read()
        assert answer.getheader("Content-Encoding") == "gzip" and len(packed) < len(plain.content)
        assert gzip.decompress(packed) == plain.content


def test_the_counts_are_what_prometheus_reads():
    from prometheus_client.parser import text_string_to_metric_families

    with serving() as server, server.open() as sock:
        say(sock, {"type": "reset"})
        server.http.post("/reset")
        families = {family.name: family for family in text_string_to_metric_families(server.http.get("/metrics").text)}
    assert families["daedalus_socket_sessions"].samples[0].value == 1
    assert families["daedalus_http_sessions"].samples[0].value == 1
    assert families["daedalus_socket_frames"].samples[0].value == 1
    counts = [sample for sample in families["daedalus_request_seconds"].samples if sample.name.endswith("_count")]
    assert {(one.labels["method"], one.labels["route"], one.labels["status"]): one.value for one in counts}[
        "POST", "/reset", "200"] == 1


def test_whole_numbers_may_be_written_with_a_point():
    with serving() as server, server.open() as sock:
        answer = server.http.post("/reset", json={"seed": 42.0, "episode_length": 3.0})
        assert answer.status_code == 200 and answer.json()["observation"]["episode_length"] == 3
        assert say(sock, '{"type": "reset", "data": {"seed": 42.0, "n_agents": 8.0}}')["type"] == "observation"
        for wrong in (42.5, "42", True):
            assert server.http.post("/reset", json={"seed": wrong}).status_code == 422


def test_sessions_over_mcp_are_not_held_for_ever():
    create = {"jsonrpc": "2.0", "id": 1, "method": "openenv/session/create", "params": {}}
    with serving(Limits(sessions=2, idle=1.0)) as server:
        assert ["result" in server.http.post("/mcp", json=create).json() for _ in range(2)] == [True, True]
        until(lambda: server.http.post("/mcp", json=create).json().get("result"), "nobody gets a place any more")


# The page

def test_of_the_page_s_library_only_what_the_page_needs_is_open():
    pytest.importorskip("gradio", reason="the arena needs gradio")
    from starlette.testclient import TestClient

    client = TestClient(create_app(load=lambda: informed_greedy))
    assert client.get("/").status_code == 200 and client.get("/config").status_code == 200
    upload = {"files": ("x.txt", b"mine")}
    for headers in ({}, {"Origin": "https://evil.example"}):
        assert client.post("/gradio_api/upload", files=upload, headers=headers).status_code in (403, 404)
    for path in ("file=/etc/passwd", "file/x", "proxy=http://127.0.0.1/", "stream/a/1/2/playlist.m3u8", "upload_progress", "info",
                 "openapi.json", "call/x/y", "deep_link", "run/predict", "api/predict", "component_server",
                 "process_recording", "vibe-code", "run-history/buckets", "dev/reload", "user", "token", "app_id"):
        for method in ("GET", "POST"):
            assert client.request(method, f"/gradio_api/{path}").status_code in (404, 405), path
    for path in ("/monitoring", "/login", "/logout", "/upload", "/file=/etc/passwd"):
        assert client.get(path).status_code == 404, path
    for method, path in (("POST", "/health"), ("DELETE", "/plots/x.png"), ("PUT", "/reset")):
        assert client.request(method, path).status_code == 405
    assert client.head("/health").status_code == client.head("/").status_code == 200
