"""Jobs: the same bits wherever they run and whoever is killed; what is finished is kept, and only that."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from shared import HEARS, PATIENCE, until

from daedalus import jobs
from daedalus.market.bidders import Population
from daedalus.env import SUITES
from daedalus.designers.search import episode_scores
from daedalus.jobs import Done, Job, JobError, code_hash, cost, job_name, run_jobs
from daedalus.market.engine import simulate
from daedalus.schema import DEFAULT_MECHANISM, Mechanism
from daedalus.seeds import block_of
from daedalus.designers.search import (
    choice_rounds, choose, climb, climb_rounds, search_suites)


def some_jobs(count, episodes=3):
    return [Job(episode_scores, (Mechanism.random(at), Population.stage(at % 5), episodes, at)) for at in range(count)]


def results(done):
    "All results, to the bit."
    return [json.dumps(each.result) for each in done]


def killed_once(flag, number):
    "Kills its process the first time that it is called with a flag that is not there yet."
    if not Path(flag).exists():
        Path(flag).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def always_killed():
    os.kill(os.getpid(), signal.SIGKILL)


def waiting(folder, number):
    "Leaves a result of its own: the first five at once, the others when a file `go` is there."
    while number >= 5 and not Path(folder, "go").exists(): time.sleep(0.01)
    return number * number


def waiting_jobs(folder):
    return [Job(waiting, (str(folder), at)) for at in range(12)]


def returned(value):
    return value


def mistaken():
    raise KeyError("a mistake in the job")


@pytest.fixture(scope="module")
def cluster():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as two:
        yield two


def test_a_job_is_what_it_says():
    job, = some_jobs(1)
    done, = run_jobs([job])
    outcomes = simulate(job.arguments[0], job.arguments[1], [(0, at) for at in range(3)])
    assert done.result["reward"] == outcomes.reward.mean() and done.result["revenue"] == outcomes.revenue.mean()
    assert done.seconds > 0 and not done.kept


def test_order_and_processes_change_nothing(tmp_path):
    here = some_jobs(9)
    alone = results(run_jobs(here))
    assert results(run_jobs(here[::-1]))[::-1] == alone
    assert results(run_jobs(here, workers=2)) == alone
    assert results(run_jobs(here[4:5])) == alone[4:5]


def test_no_jobs_are_done_at_once(tmp_path):
    assert run_jobs([]) == run_jobs([], workers=2) == run_jobs([], folder=tmp_path) == []


# Workers that die

def test_a_worker_of_a_dask_cluster_is_killed_in_the_middle(cluster, tmp_path):
    here, kept = waiting_jobs(tmp_path), tmp_path / "kept"
    nanny = cluster.workers[0]
    victim, at_death = nanny.pid, []

    def kill():
        until(lambda: len(list(kept.glob("*.json"))) == 5)   # both workers are at others
        os.kill(victim, signal.SIGKILL)
        at_death.append(len(list(kept.glob("*.json"))))
        (tmp_path / "go").touch()

    killer = threading.Thread(target=kill)
    killer.start()
    done = run_jobs(here, cluster.scheduler_address, kept)
    killer.join()
    assert [each.result for each in done] == [at * at for at in range(12)] and not any(each.kept for each in done)
    assert at_death == [5]
    until(lambda: nanny.pid not in (None, victim))
    again = run_jobs(here, folder=kept)
    assert all(each.kept for each in again) and results(again) == results(done)


def test_a_worker_process_is_killed_in_the_middle(tmp_path):
    flag = str(tmp_path / "flag")
    done = run_jobs([Job(killed_once, (flag, at)) for at in range(6)], workers=2)
    assert [each.result for each in done] == [0, 1, 4, 9, 16, 25] and Path(flag).exists()


def test_a_job_that_kills_every_worker_is_given_up():
    with pytest.raises(JobError, match=r"killed 3 times in a row with \d jobs left: is there enough memory"):
        run_jobs([*some_jobs(2), Job(always_killed, ())], workers=2)


def test_an_address_that_does_not_answer_is_told_in_a_sentence(tmp_path):
    done = subprocess.run([sys.executable, "-c", "from daedalus.cli import main; main()", "search", "--cluster",
                           "tcp://127.0.0.1:1"], capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("daedalus: cluster 'tcp://127.0.0.1:1' does not answer: is a Dask scheduler running at this "
                           "address, such as tcp://host:8786?\n")


@pytest.mark.parametrize("address", ["", "nowhere", "nosuch://host:1", "tcp://"])
def test_an_address_that_is_none_is_refused(address):
    pytest.importorskip("distributed")
    with pytest.raises(ValueError, match=f"cluster '{address}' does not answer"):
        run_jobs(some_jobs(1), address)


def test_a_cluster_without_workers_is_refused(monkeypatch):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(jobs, "ANSWER", 1)
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0", silence_logs=50) as empty:
        with pytest.raises(ValueError, match=f"cluster '{empty.scheduler_address}' has no workers: start some with"):
            run_jobs(some_jobs(1), empty.scheduler_address)


def test_a_mistake_in_a_job_is_raised_as_it_is(cluster):
    for workers in (1, 2):
        with pytest.raises(KeyError, match="a mistake in the job"): run_jobs([Job(mistaken, ())], workers)
    with pytest.raises(ValueError, match="episodes|empty|dimension|seeds"):
        run_jobs([Job(episode_scores, (DEFAULT_MECHANISM, Population.stage(0), 0))], cluster.scheduler_address)


def test_a_worker_with_other_code_refuses():
    with pytest.raises(ValueError, match="a worker has other code for daedalus.designers.search.episode_scores, or other versions"):
        jobs._call(some_jobs(1)[0], "0" * 16)


# What is kept

def test_what_is_kept_is_not_computed_again(tmp_path):
    here = some_jobs(6)
    first = run_jobs(here[:4], folder=tmp_path)
    done = run_jobs(here, folder=tmp_path)
    assert [each.kept for each in done] == [True] * 4 + [False] * 2
    assert [each.seconds for each in done[:4]] == [each.seconds for each in first]
    assert results(done) == results(run_jobs(here))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(map(job_name, here))


@pytest.mark.parametrize("damage", [
    lambda text: text[:-40], lambda text: "", lambda text: "[]", lambda text: "null",
    lambda text: text.replace("reward", "rewind"), lambda text: text.replace('"seconds": 0', '"seconds": 1'),
    lambda text: text.replace("checksum", "check"), lambda text: "\udcff\udcfe{}"])
def test_a_damaged_file_is_computed_again_with_a_warning(tmp_path, damage):
    here = some_jobs(2)
    whole = run_jobs(here, folder=tmp_path)
    file = tmp_path / f"{job_name(here[0])}.json"
    text = file.read_text()
    assert damage(text) != text
    file.write_bytes(damage(text).encode("utf-8", "surrogateescape"))
    with pytest.warns(UserWarning, match=f"{file.name} in the folder of kept jobs is damaged: the job is computed ag"):
        done = run_jobs(here, folder=tmp_path)
    assert [each.kept for each in done] == [False, True] and results(done) == results(whole)
    assert all(each.kept for each in run_jobs(here, folder=tmp_path))


def test_the_file_of_another_job_is_no_result_of_this_one(tmp_path):
    one, other = some_jobs(2)
    run_jobs([one], folder=tmp_path)
    (tmp_path / f"{job_name(one)}.json").rename(tmp_path / f"{job_name(other)}.json")
    with pytest.warns(UserWarning, match="is damaged"):
        done, = run_jobs([other], folder=tmp_path)
    assert not done.kept


def test_an_interrupt_loses_only_what_was_running(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("""if __name__ == "__main__":
    import sys
    sys.path.insert(0, sys.argv[1])
    from test_jobs import waiting_jobs
    from daedalus.jobs import run_jobs
    run_jobs(waiting_jobs(sys.argv[2]), 2, sys.argv[3])
""")
    folder = tmp_path / "kept"
    run = subprocess.Popen([sys.executable, script, Path(__file__).parent, tmp_path, folder], stderr=subprocess.DEVNULL, **HEARS)
    until(lambda: len(list(folder.glob("*.json"))) == 5 or run.poll() is not None)
    run.send_signal(signal.SIGINT)
    assert run.wait(PATIENCE) != 0
    (tmp_path / "go").touch()
    done = run_jobs(waiting_jobs(tmp_path), folder=folder)
    assert [each.kept for each in done] == [True] * 5 + [False] * 7
    assert [each.result for each in done] == [at * at for at in range(12)]
    assert not list(folder.glob(".*"))


def test_a_name_depends_on_everything_that_a_result_depends_on(tmp_path, monkeypatch):
    job, = some_jobs(1)
    mechanism, population, episodes, seed = job.arguments
    others = [(mechanism, population, episodes, seed + 1), (mechanism, population, episodes, 0.0),
              (mechanism, population, episodes, False), (DEFAULT_MECHANISM, population, episodes, seed),
              (mechanism, population.replace(shader=3), episodes, seed), (mechanism, population, str(episodes), seed),
              (mechanism, [population], episodes, seed), ([mechanism, population], episodes, seed)]
    names = [job_name(job), *(job_name(job._replace(arguments=args)) for args in others)]
    names += [job_name(job._replace(function=returned))]
    assert len(set(names)) == len(names)
    assert job_name(job._replace(rounds=9)) == names[0]
    monkeypatch.setattr(jobs, "versions", lambda: {"numpy": "0"})
    code_hash.cache_clear()
    assert job_name(job) != names[0]
    code_hash.cache_clear()


HELPER = "def twice(x): return {factor} * x\n"
USER = "from {place} import twice\n\ndef job(x): return twice(x)\n"


@pytest.mark.parametrize("user, helper, place", [
    ("mine_a.py", "helper_a.py", "helper_a"), ("mine_b/jobs.py", "mine_b/tools/helper.py", ".tools.helper"),
    ("mine_c/deep/jobs.py", "mine_c/helper.py", "..helper"), ("mine_d.py", "tools_d/__init__.py", "tools_d")])
def test_results_of_a_job_do_not_outlive_the_modules_that_it_imports(tmp_path, user, helper, place):
    for file, text in ((user, USER.format(place=place)), (helper, HELPER.format(factor=2))):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    name = user.removesuffix(".py").replace("/", ".")
    script = (f"from {name} import job; from daedalus.jobs import Job, run_jobs; "
              "done, = run_jobs([Job(job, (3,))], folder='kept'); print(done.result, done.kept)")

    def run():
        told = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True,
                              env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(jobs.__file__).parents[1]}"})
        return told.stdout.split() or told.stderr

    assert run() == ["6", "False"] and run() == ["6", "True"]
    (tmp_path / helper).write_text(HELPER.format(factor=5))
    assert run() == ["15", "False"]


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"result": "1"}'])
def test_a_kept_job_that_is_emptied_or_cut_short_is_run_again(tmp_path, content):
    job, = some_jobs(1)
    first, = run_jobs([job], folder=tmp_path)
    file, = tmp_path.iterdir()
    file.write_text(content)
    with pytest.warns(UserWarning, match="is damaged: the job is computed again"):
        again, = run_jobs([job], folder=tmp_path)
    assert not again.kept and again.result == first.result


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes", 1j])
def test_an_argument_that_cannot_be_written_exactly_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="a job's arguments must be numbers, texts, mechanisms, populations, or lists"):
        run_jobs([Job(returned, (value,))], folder=tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, DEFAULT_MECHANISM])
def test_a_result_that_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"must return numbers \(not NaN or infinite\), texts, lists or dictionaries"):
        run_jobs([Job(returned, (value,))])


def test_a_function_without_a_module_runs_but_is_not_kept(tmp_path):
    loose = eval("lambda: 4", {"__name__": "__main__"})
    loose.__module__ = "made_up"
    sys.modules["made_up"] = type(sys)("made_up")
    try:
        assert run_jobs([Job(loose, ())])[0].result == 4
        with pytest.raises(ValueError, match="cannot be kept, for it is not in a module: put it into one, or give no"):
            run_jobs([Job(loose, ())], folder=tmp_path)
    finally:
        del sys.modules["made_up"]


@pytest.mark.parametrize("workers", [0, -1, True, 1.5, None])
def test_workers_that_are_none_are_refused(workers):
    with pytest.raises(ValueError, match="workers must be a whole number of at least 1, or the address of a Dask"):
        run_jobs(some_jobs(1), workers)


def test_costs_are_sums_and_means():
    took = cost([Done(1, 0.5, 100, True), Done(2, 1.5, 300, False)])
    assert took == {"jobs": 2, "kept": 1, "seconds": 2.0, "rounds": 400, "seconds per job": 1.0, "rounds per job": 200}


# The search for the yardsticks, as jobs

def test_rounds_are_bounds_and_tight_ones(counted_rounds):
    with counted_rounds() as spent:
        climb([Population.stage(4)], 30, 0, block=block_of("oracle climbs"))
    assert 0.9 * climb_rounds(30) <= sum(spent) <= climb_rounds(30)
    with counted_rounds() as spent:
        choose([Mechanism.random(at) for at in range(30)], [Population.stage(4)], 10, 0, 9)
    assert sum(spent) == choice_rounds(30, 10)


def test_the_search_is_the_same_on_a_cluster_and_after_an_interrupt(cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(SUITES, "stages", lambda: [Population.stage(0), Population.stage(4)])
    monkeypatch.setitem(SUITES, "open", lambda: [Population.stage(2)])
    def found(*where): return search_suites(6, 4, 4, 1, *where)._replace(seconds={})
    alone, kept = found(), str(tmp_path / "kept")
    assert found(cluster.scheduler_address, kept) == alone
    for path in list(Path(kept).iterdir())[::2]: path.unlink()
    assert found(1, kept) == alone
