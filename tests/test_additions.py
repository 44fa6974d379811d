"""What users add by name: one table, one way to other processes, and files that the command line and the service load."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
from shared import PATIENCE, additions, held_port, until
from typer.testing import CliRunner
from websockets.sync.client import connect

import daedalus as dd
from daedalus import jobs
from daedalus._runtime import ADDED, added_code, addition
from daedalus.cli import app
from daedalus.designers import search, specs
from daedalus.designers.base import DESIGNERS
from daedalus.designers.specs import load_files
from daedalus.env import SUITES
from daedalus.market.auction import highest_bids, second_price_revenue
from daedalus.market.bidders import BIDDERS
from daedalus.studies.exploit import HONEST, SCALES, Deviation, ex_post_regret, joint_regret, responses

OUTSIDE = Path(__file__).parent / "outside"
COMMAND = [sys.executable, "-c", "from daedalus.cli import main; main()"]
MINE = """
import daedalus as dd
import beside
from daedalus.market.auction import highest_bids

def pay(bids, won, n_items, reserve):
    return beside.share * bids[:, 0] * won

dd.register_format("mine", allocate=highest_bids, pay=pay)
dd.register_bidder("half", lambda view: (0.0, 0.5))
dd.DESIGNERS["mine"] = lambda observation: dd.Mechanism(auction_type="mine", reserve_price=0.0)
dd.env.SUITES["halves"] = lambda: [dd.Population(truthful=2, half=count) for count in (1, 2)]
"""


def pay_half(bids, won, n_items, reserve):
    return 0.5 * bids[:, 0] * won


def half(view):
    return 0.0, 0.5


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a test adds is gone after it."""
    monkeypatch.setattr(specs, "_LOADED", set())
    kept = dict(DESIGNERS), dict(SUITES), list(sys.path)
    with additions():
        yield
    for table, before in zip((DESIGNERS, SUITES), kept):
        table.clear()
        table.update(before)
    sys.path[:] = kept[2]


@pytest.fixture
def mine(tmp_path):
    """A user's file, which imports what stands beside it."""
    (tmp_path / "beside.py").write_text("share = 0.5\n")
    (tmp_path / "mine.py").write_text(MINE)
    return tmp_path / "mine.py"


# One table


def test_formats_and_bidders_are_in_one_table_with_one_hash():
    assert not ADDED and added_code() == ""
    dd.register_format("part", allocate=highest_bids, pay=pay_half)
    one = added_code()
    dd.register_bidder("half", half, memory=2)
    assert list(ADDED) == [("format", "part"), ("bidder", "half")] and len({"", one, added_code()}) == 3
    dd.register_bidder("half", half, memory=2)
    dd.register_format("part", allocate=highest_bids, pay=pay_half)
    assert len(ADDED) == 2
    assert addition("bidder", "half", print, function=half, memory=2) is None
    with pytest.raises(ValueError, match="bidder 'half' is registered already, with other functions or numbers"):
        addition("bidder", "half", print, function=half, memory=3)


@pytest.mark.parametrize("sent", [
    lambda: jobs.Job(second_price_revenue, (2, 0.0)),
    lambda: jobs.Job(dd.simulate, (dd.Mechanism(auction_type="part"), dd.Population(half=2), 0)),
    lambda: dd.Population(truthful=1, half=1),
    lambda: dd.Mechanism(auction_type="part"),
    lambda: dd.Brief(fixed={"reserve_price": 0.1}),
], ids=["job", "job of records", "population", "mechanism", "brief"])
def test_whatever_is_sent_takes_along_what_was_added(sent, tmp_path):
    plain = pickle.dumps(dd.Population(truthful=1))
    dd.register_format("part", allocate=highest_bids, pay=pay_half)   # of this module, which the other process does not find
    dd.register_bidder("half", lambda view: (0.0, 0.5), memory=2)
    (tmp_path / "sent").write_bytes(pickle.dumps(sent()))
    code = ("import pickle, sys; thing = pickle.load(open(sys.argv[1], 'rb')); from daedalus._runtime import ADDED, added_code\n"
            "import daedalus.market.auction as a, daedalus.market.bidders as b; again = pickle.loads(pickle.dumps(thing))\n"
            "print(repr(again), again == thing, list(a.FORMATS)[3:], b.BIDDERS['half'].memory, added_code(), sep='|')")
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "sent"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().split("|")[1:] == ["True", "['part']", "2", added_code()]
    assert b"_made_there" not in plain


def test_what_arrives_under_a_name_that_stands_for_another_thing_is_refused():
    dd.register_bidder("half", half)
    sent = pickle.dumps(dd.Population(half=2))
    del ADDED["bidder", "half"], BIDDERS["half"]
    dd.register_bidder("half", lambda view: (0.0, 0.6))
    with pytest.raises(ValueError, match="bidder 'half' is registered already, with other functions or numbers"):
        pickle.loads(sent)


def test_jobs_in_processes_play_what_was_added():
    dd.register_format("part", allocate=highest_bids, pay=pay_half)
    dd.register_bidder("half", lambda view: (0.0, 0.5))
    work = [jobs.Job(mean_reward, (dd.Mechanism(auction_type="part"), dd.Population(truthful=2, half=count))) for count in (1, 2)]
    here, apart = jobs.run_jobs(work), jobs.run_jobs(work, workers=2)
    assert [done.result for done in here] == [done.result for done in apart] and here[0].result != here[1].result


def mean_reward(mechanism, population):
    """The reward of two episodes."""
    return float(dd.simulate(mechanism, population, [(0, 0), (0, 1)], 1).reward.mean())


# A user's files


def test_a_file_is_run_once_and_its_functions_travel_without_it(mine):
    load_files([mine, mine])
    assert list(ADDED) == [("format", "mine"), ("bidder", "half")] and "mine" in DESIGNERS
    sent = pickle.dumps(dd.Population(truthful=1, half=1))
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()))"
    done = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, cwd="/", env=os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(dd.__path__[0]).parent), str(mine.parent)])})
    assert done.stdout.strip() == b"1 truthful, 1 half", done.stderr.decode()


@pytest.mark.parametrize("text, sentence", [
    (None, r"'.*wrong.py' is no file: name a Python file that registers formats or bidders"),
    ("", r"'.*wrong.py' registers nothing: let it call daedalus.register_format or register_bidder"),
    ("import nothing_of_the_kind", r"'.*wrong.py' cannot be loaded: ModuleNotFoundError: No module named 'nothing_of_the_kind'"),
    ("def (", r"'.*wrong.py' cannot be loaded: SyntaxError: "),
    ("raise SystemExit('enough')", r"'.*wrong.py' cannot be loaded: SystemExit: enough"),
    ("import daedalus as dd\ndd.register_bidder('2nd', len)", r"'.*wrong.py' cannot be loaded: BidderError: name must be a Python name"),
])
def test_a_file_that_cannot_be_used_is_one_sentence(text, sentence, tmp_path):
    if text is not None:
        (tmp_path / "wrong.py").write_text(text)
    with pytest.raises(ValueError, match=sentence) as error:
        load_files([tmp_path / "wrong.py"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_command_line_plays_what_a_file_adds(mine):
    words = ["inference", "--model", "mine", "--suite", "halves", "--n-episodes", "2", "--output", "rewards.json"]
    refused = subprocess.run([*COMMAND, *words, "--load", "none.py"], capture_output=True, text=True, cwd=mine.parent)
    assert (refused.returncode, refused.stderr) == (
        2, "daedalus: 'none.py' is no file: name a Python file that registers formats or bidders\n")
    records = []
    for options, environment in ((["--load", "mine.py"], {}), ([], {"DAEDALUS_LOAD": str(mine)})):
        done = subprocess.run([*COMMAND, *words, *options], capture_output=True, text=True, cwd=mine.parent, env=os.environ | environment)
        assert done.returncode == 0, done.stderr
        records.append(json.loads((mine.parent / "rewards.json").read_text()))
    load_files([mine])
    table = dd.evaluate({"mine": dd.designer("mine")}, "halves", 2)
    assert records[0] == records[1] and records[0]["suite"] == "halves"
    assert sorted(map(float, table["reward"])) == sorted(np.ravel(list(records[0]["rewards"].values())).tolist())


def test_the_search_climbs_in_a_format_of_a_users_file(mine, monkeypatch):
    """Each population is climbed in the built-in formats, as ever, and again under a brief that fixes the loaded one."""
    def climb(populations, budget, seed, brief):
        return [brief.mended(rules) for rules in (dd.DEFAULT_MECHANISM, dd.INFORMED_GREEDY)]

    def run_jobs(parts, workers, folder, what):
        results = [job.function(*job.arguments) if what == "populations climbed" else dict(job.arguments[0][1]) if what == "oracles chosen"
                   else dict(dd.DEFAULT_MECHANISM) for job in parts]
        return [jobs.Done(result, 0.0, 0, False) for result in results]

    monkeypatch.setattr(search, "climb", climb)
    monkeypatch.setattr(search, "run_jobs", run_jobs)
    monkeypatch.chdir(mine.parent)
    plain = search.climb_rounds(800)
    assert search._climb_job(dd.Population(truthful=2), 800, 0, dd.Objective()).rounds == plain
    done = CliRunner().invoke(app, ["search", "--load", "mine.py", "--output", "searched.json", "--work", "work"])
    assert done.exit_code == 0, done.output
    assert search._climb_job(dd.Population(truthful=2), 800, 0, dd.Objective()).rounds == 2 * plain
    record = json.loads(Path("searched.json").read_text())
    formats = [[json.loads(text)["auction_type"] for text in elite] for elite in record["elites"]]
    assert len(formats) == 27 and all(each[1::2] == ["mine"] * 2 and "mine" not in each[::2] for each in formats)   # by rank
    assert [fields["auction_type"] for fields in record["value"]["halves"]["oracle"]] == ["mine"] * 2   # offered to everybody
    assert record["provenance"]["parameters"]["added"] == added_code() != ""


def test_a_suite_of_pairs_is_not_searched():
    SUITES["mine"] = lambda: dd.suite("briefs")[:1]
    with pytest.raises(ValueError, match="suite 'mine' must hold populations to be searched, not pairs"):
        search.search_suites(1, 1, 1)


@pytest.mark.slow
def test_the_service_plays_a_registered_format_and_bidder_on_every_way_in(tmp_path):
    load_files([OUTSIDE / "mix_format.py", OUTSIDE / "sniper.py"])
    rules, people, steps = dd.Mechanism(auction_type="mix", reserve_price=0.1), dd.Population(truthful=4, sniper=2), 3
    expected = dd.simulate(rules, people, [(5, 1)], steps).reward[0].tolist()
    options = {"population": people.model_dump(), "seed": 5, "episode": 1, "episode_length": steps}
    with held_port() as port, (tmp_path / "log").open("w") as log:
        words = ["serve", "--port", str(port), "--model", "greedy", "--load", str(OUTSIDE / "mix_format.py")]
        environment = os.environ | {"DAEDALUS_LOAD": ""}
        words += ["--load", str(OUTSIDE / "sniper.py")]
        child = subprocess.Popen([*COMMAND, *words], stdout=log, stderr=log, env=environment)
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as http:
                until(lambda: child.poll() is not None or answers(http), "the server never answered")
                assert rewards_over_requests(http, options, rules, steps) == expected
                batch = {"entries": [{"mechanism": rules.model_dump(), "population": people.model_dump(), "seed": 5, "episode": 1}]}
                assert http.post("/api/simulate", json=batch | {"steps": steps}).json()["scores"]["reward"] == [expected]
            with connect(f"ws://127.0.0.1:{port}/ws", proxy=None) as sock:
                say(sock, {"type": "reset", "data": options})
                step = {"type": "step", "data": rules.model_dump()}
                assert [say(sock, step)["data"]["reward"] for _ in range(steps)] == expected
        finally:
            child.kill()
            child.wait()


def answers(http):
    """Whether the server is there."""
    try:
        return http.get("/health").is_success
    except httpx.TransportError:
        return False


def rewards_over_requests(http, options, rules, steps):
    """The rewards of an episode, by the published contract."""
    name = http.post("/reset", json=options).json()["session_id"]
    step = {"session_id": name, "action": rules.model_dump()}
    return [http.post("/step", json=step).json()["reward"] for _ in range(steps)]


def say(sock, message):
    """The answer to a message."""
    sock.send(json.dumps(message))
    return json.loads(sock.recv(timeout=PATIENCE))


# The best response in a registered format


def pay_own(bids, won, n_items, reserve):
    """First-price payments of one or two units."""
    paid = np.zeros(len(won))
    for i in range(len(won)):
        for unit in range(won[i]):
            paid[i] += bids[i, unit]
    return paid


@pytest.mark.parametrize("n_items", [1, 2, 3])
def test_the_regret_of_a_format_that_is_cleared_again_is_that_of_its_closed_form(n_items):
    dd.register_format("first_again", allocate=highest_bids, pay=pay_own)
    values = -np.sort(-np.random.default_rng(1).random((60, 4, 2)), axis=2)
    for members in ([0], [1, 2]):
        regrets = [joint_regret(values, 0.7 * values, members, name, n_items, 0.2) for name in ("first_price", "first_again")]
        assert np.abs(regrets[0] - regrets[1]).max() < 1e-8


def equilibrium(n, own):
    """Values, and bids of the equilibrium of the format mix."""
    values = np.random.default_rng(n).random((4_000, n))
    return values, (n - 1) / (n - 1 + own) * values


@pytest.mark.parametrize("n", [2, 3, 5])
def test_regret_in_the_equilibrium_of_a_users_format_is_what_theory_says(n):
    load_files([OUTSIDE / "mix_format.py"])
    values, bids = equilibrium(n, 0.5)
    regret, slope = ex_post_regret(values, bids, "mix").sum(1), bids[0, 0] / values[0, 0]
    theory = n / 2 * (1 - 2 * slope * (n - 1) / n + slope**2 * (n - 1) / (n + 1)) - 1 / (n + 1)
    assert abs(regret.mean() - theory) < 4 * regret.std() / len(values) ** 0.5


def test_no_deviation_gains_in_the_equilibrium_of_a_users_format():
    load_files([OUTSIDE / "mix_format.py"])
    dd.register_bidder("equilibrium", lambda view: (0.0, 0.8))   # three bidders, w = 1/2: (n - 1) / (n - 1 + w)
    people = dd.Population(equilibrium=3, value_low=0.0, value_high=1.0, return_rate=0.0)
    script = np.tile(dd.Mechanism(auction_type="mix", reserve_price=0.0).to_array(), (60, 10, 1))
    tried = [HONEST, *(Deviation(str(scale), "misreport", first=scale, second=scale) for scale in SCALES)]
    kept = responses(script, people, np.stack([np.zeros(60, int), np.arange(60)], 1), [0], tried)
    gain = kept - kept[[deviation.first for deviation in tried].index(0.8)]
    assert (gain.mean(1) < 3 * gain.std(1, ddof=1) / 60**0.5 + 1e-12).all() and gain.mean(1).min() < -0.2
