"""The worker pool, without torch: what becomes of jobs, of workers and of what workers started."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest

from intarsia.compiling import planner
from intarsia.compiling.planner import Plan, free_memory, plan
from intarsia.compiling.pool import WorkerPool
from intarsia.compiling.worker_process import NoWorker, WorkerDied, WorkerTimeout
from tests import processes
from tests.processes import are_gone, eventually, read_pids

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.timeout(60),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]


@pytest.fixture
def pool() -> Iterator[WorkerPool]:
    """A pool of two workers, which is closed."""
    made = WorkerPool(2)
    yield made
    made.close()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings."""
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# ------------------------------------------------------------------------------------------ results


def test_a_job_runs_in_another_process(pool: WorkerPool) -> None:
    assert pool.submit(processes.where).result() not in (os.getpid(), None)


def test_a_pool_is_an_executor(pool: WorkerPool) -> None:
    assert list(pool.map(abs, [-1, -2, -3])) == [1, 2, 3]
    pool.shutdown(wait=True)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(abs, 1)


def test_leaving_the_block_lets_running_and_waiting_jobs_end() -> None:
    with WorkerPool(1) as pool:
        jobs = [pool.submit(processes.slow_where, 0.2) for _ in range(2)]
    assert [job.done() for job in jobs] == [True, True]
    assert jobs[0].result() == jobs[1].result()


def test_an_error_comes_back_with_the_place_where_it_was_raised(pool: WorkerPool) -> None:
    with pytest.raises(ValueError, match="invalid literal") as caught:
        pool.submit(int, "x").result()
    assert "worker.py" in str(caught.value.__cause__)


def test_an_error_that_does_not_travel_comes_back_as_text(pool: WorkerPool) -> None:
    with pytest.raises(RuntimeError, match="TwoArguments: left"):
        pool.submit(processes.raise_two).result()


def test_a_job_that_calls_exit_has_an_answer_and_its_worker_goes_on(pool: WorkerPool) -> None:
    before = pool.submit(processes.where).result()
    with pytest.raises(SystemExit):
        pool.submit(sys.exit, 3).result()
    assert pool.submit(processes.where).result() == before


def test_what_a_worker_prints_does_not_mix_with_our_output(
    pool: WorkerPool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="intarsia"):
        pool.submit(processes.shout, "hello").result()
        assert eventually(lambda: sum("hello" in r.getMessage() for r in caplog.records) == 2)
    assert capfd.readouterr() == ("", "")


# ------------------------------------------------------------------------------------- lost workers


def test_a_job_whose_worker_dies_is_tried_once_more(
    pool: WorkerPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = pool.start(processes.exit_once, str(tmp_path / "once"), job_name="piece_3 by acme")
    assert job.result() > 0
    (line,) = lines(caplog)
    assert "ended with exit code 7 during piece_3 by acme, which is tried once more" in line


def test_a_job_that_takes_down_two_workers_fails(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorkerDied, match="piece_3 took down a compile worker, twice"):
        pool.start(os._exit, 3, job_name="piece_3").result()
    assert len(lines(caplog)) == 2
    assert pool.submit(abs, -1).result() == 1


def test_a_crash_in_native_code_leaves_its_stack_in_the_log(
    pool: WorkerPool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(WorkerDied, match="SIGSEGV"):
        pool.submit(*null_dereference()).result()
    assert "in string_at" in lines(caplog)[0]


def null_dereference() -> tuple[Any, ...]:
    import ctypes

    return ctypes.string_at, 0


def test_a_job_past_its_deadline_is_ended_with_its_children_and_leaves_its_stack(
    pool: WorkerPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pids"
    job = pool.start(
        processes.note_and_sleep, str(file), job_name="piece_3 by acme", job_deadline=1.0
    )
    with pytest.raises(WorkerTimeout, match="piece_3 by acme took longer than 1 s"):
        job.result()
    assert are_gone(read_pids(file))
    (line,) = lines(caplog)
    assert "in note_and_sleep" in line
    assert pool.submit(abs, -1).result() == 1


def test_a_job_that_holds_pythons_lock_is_ended_too(
    pool: WorkerPool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "pids"
    begun = time.monotonic()
    with pytest.raises(WorkerTimeout):
        pool.start(processes.note_and_hold, str(file), job_deadline=1.0).result()
    assert time.monotonic() - begun < 5
    assert are_gone(read_pids(file))
    assert "in note_and_hold" in lines(caplog)[0]


def test_workers_that_cannot_begin_say_so_to_every_job() -> None:
    pool = WorkerPool(2, initializer=processes.fail_to_begin)
    jobs = [pool.submit(abs, 1) for _ in range(3)]
    for job in jobs:
        with pytest.raises(NoWorker, match="no such device"):
            job.result()
    assert eventually(lambda: pool.live == 0)
    pool.close()


# ---------------------------------------------------------------------------- how many, how long


def test_there_are_at_most_as_many_workers_as_the_limit(pool: WorkerPool) -> None:
    jobs = [pool.submit(processes.slow_where, 0.1) for _ in range(8)]
    assert len({job.result() for job in jobs}) == 2
    assert pool.live == 2


def test_a_pool_without_room_has_one_worker() -> None:
    pool = WorkerPool(4, may_grow=lambda: False)
    jobs = [pool.submit(processes.slow_where, 0.05) for _ in range(4)]
    assert len({job.result() for job in jobs}) == 1
    pool.close()


def test_idle_workers_are_gone_within_a_second(pool: WorkerPool) -> None:
    pid = pool.submit(processes.where).result()
    assert are_gone([pid])
    assert pool.live == 0
    assert pool.submit(processes.where).result() != pid


def test_workers_stay_while_the_pool_is_held_and_go_afterwards(pool: WorkerPool) -> None:
    with pool.hold():
        pid = pool.submit(processes.where).result()
        time.sleep(1.0)
        assert pool.submit(processes.where).result() == pid
    assert are_gone([pid])


def test_warm_workers_wait_for_jobs(pool: WorkerPool) -> None:
    with pool.hold():
        pool.warm(2)
        assert eventually(lambda: len(pool.pids()) == 2)
        assert pool.submit(processes.where).result() in pool.pids()


def test_a_job_that_waits_can_be_taken_back_and_one_that_runs_can_be_stopped(
    tmp_path: Path,
) -> None:
    pool = WorkerPool(1)
    file = tmp_path / "pids"
    running = pool.submit(processes.note_and_sleep, str(file))
    waiting = pool.submit(abs, -1)
    pids = read_pids(file)
    assert waiting.cancel()
    assert not running.cancel()
    running.stop()
    with pytest.raises(CancelledError):
        running.result()
    assert are_gone(pids)
    assert pool.submit(abs, -1).result() == 1
    pool.close()


def test_closing_ends_what_runs_and_cancels_what_waits(tmp_path: Path) -> None:
    pool = WorkerPool(1)
    file = tmp_path / "pids"
    running, waiting = pool.submit(processes.note_and_sleep, str(file)), pool.submit(abs, -1)
    pids = read_pids(file)
    begun = time.monotonic()
    pool.close()
    assert time.monotonic() - begun < 1
    assert are_gone(pids)
    assert waiting.cancelled()
    assert not wait([running], 5).not_done
    with pytest.raises(CancelledError):
        running.result()


def test_a_worker_has_our_environment_and_the_priority_that_it_was_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SABOTEUR_MODE", "quiet")
    pool = WorkerPool(1, nice=7)
    assert pool.submit(processes.environment).result() == dict(os.environ)
    assert pool.submit(processes.niceness).result() == min(os.nice(0) + 7, 19)
    pool.close()


# ------------------------------------------------------------------------------- the end of a process


def run_script(body: str, file: Path, **keywords: Any) -> subprocess.Popen[str]:
    """Start a script that has a pool and no `if __name__ == "__main__"`."""
    head = """
        import os, sys, time
        from intarsia.compiling.pool import WorkerPool
        from intarsia.compiling.workers import workers
        from tests import processes
        print("begun", flush=True)
        file = sys.argv[1]
    """
    script = file.with_name("script.py")
    script.write_text(textwrap.dedent(head) + textwrap.dedent(body))
    paths = os.pathsep.join(str(ROOT / name) for name in ("core", "plugins", ""))
    return subprocess.Popen(
        [sys.executable, str(script), str(file)], env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE, text=True, **keywords,
    )  # fmt: skip


def test_a_process_ends_at_once_while_a_worker_is_busy(tmp_path: Path) -> None:
    file = tmp_path / "pids"
    script = run_script(
        "workers.background().submit(processes.note_and_sleep, file)\n"
        "processes.read_pids(__import__('pathlib').Path(file))\n"
        "print(time.monotonic(), flush=True)",
        file,
    )
    output, _ = script.communicate(timeout=50)
    begun, asked = output.split()  # the main module ran once: workers do not import it
    assert begun == "begun"
    assert script.returncode == 0
    assert time.monotonic() - float(asked) < 5
    assert are_gone(read_pids(file))


@pytest.mark.parametrize("job", ["note_and_sleep", "note_and_hold"])
def test_workers_do_not_outlive_a_process_that_is_killed(tmp_path: Path, job: str) -> None:
    file = tmp_path / "pids"
    script = run_script(f"WorkerPool(1).submit(processes.{job}, file)\ntime.sleep(1000)", file)
    worker, *started = read_pids(file)
    script.kill()
    script.communicate()
    assert are_gone([worker])
    for (
        pid
    ) in started:  # the kernel ends the worker before it can do that; a compiler soon ends itself
        os.kill(pid, signal.SIGKILL)


def test_the_child_of_a_fork_leaves_its_parents_workers_alone(tmp_path: Path) -> None:
    script = run_script(
        """
        pool = workers.background()
        lease = pool.hold()
        first = pool.submit(processes.where).result()
        child = os.fork()
        if not child:
            sys.exit(0 if workers.background() is not pool else 1)
        assert os.waitpid(child, 0)[1] == 0
        print(pool.submit(processes.where).result() == first)
        """,
        tmp_path / "unused",
    )
    output, _ = script.communicate(timeout=50)
    assert output.split() == ["begun", "True"]


# ------------------------------------------------------------------------------------------- planning


@pytest.mark.parametrize(
    ("tasks", "setting", "cores", "live", "expected"),
    [
        (0, None, 8, 0, Plan(0)),
        (4, None, 8, 0, Plan(0)),  # starting workers costs more than it saves
        (24, None, 1, 0, Plan(0)),
        (24, None, 2, 0, Plan(1)),  # and this process compiles too
        (24, None, 8, 0, Plan(7)),
        (4, None, 8, 3, Plan(3)),
        (2, None, 8, 3, Plan(0)),
        (24, 0, 8, 0, Plan(0, here=False)),
        (24, 3, 2, 0, Plan(3, here=False)),
        (1, 3, 2, 0, Plan(1, here=False)),
    ],
)
def test_who_compiles_depends_on_tasks_cores_and_workers_that_are_up(
    tasks: int, setting: int | None, cores: int, live: int, expected: Plan
) -> None:
    assert plan(tasks, setting, cores=cores, live=live) == expected


GIB = 1 << 30


def machine(root: Path, available: int, files: dict[str, str], groups: str) -> Path:
    """Write what Linux says of memory below a folder."""
    content = {
        "proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {available // 1024} kB\n",
        "proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
    }  # fmt: skip
    for name, text in content.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_free_memory_is_the_machines_or_what_a_control_group_leaves(tmp_path: Path) -> None:
    plain = machine(tmp_path / "plain", 8 * GIB, {}, "0::/\n")
    assert free_memory(plain) == 8 * GIB
    two = {
        "jobs/memory.max": f"{4 * GIB}\n", "jobs/memory.current": f"{3 * GIB}\n",
        "jobs/memory.stat": f"anon 5\ninactive_file {GIB}\n",
        "jobs/mine/memory.max": "max\n", "jobs/mine/memory.current": "5\n",
    }  # fmt: skip
    assert free_memory(machine(tmp_path / "two", 8 * GIB, two, "0::/jobs/mine\n")) == 2 * GIB
    one = {
        "memory/jobs/memory.limit_in_bytes": f"{3 * GIB}\n",
        "memory/jobs/memory.usage_in_bytes": f"{GIB}\n",
    }
    groups = "5:cpuset:/elsewhere\n4:memory:/jobs\n0::/\n"
    assert free_memory(machine(tmp_path / "one", 8 * GIB, one, groups)) == 2 * GIB


def test_workers_are_bounded_by_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "free_memory", lambda: planner.WORKER_BYTES - 1)
    assert not planner.has_room()
    monkeypatch.setattr(planner, "free_memory", lambda: None)
    assert planner.has_room()
