"""Processes that train one network together, of which one is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spatialscope_dist.engine.cluster import ClusterSettings
from spatialscope_dist.engine.events import Events
from spatialscope_dist.engine.pool import Pool
from spatialscope_dist.expression.process_exchange import Meeting, PeerLost
from spatialscope_dist.options import TrainOptions
from spatialscope_dist.stages import train
from spatialscope_dist.store.documents import read_json
from tests.stages.test_expression_stages import DECOMPOSE, TRAIN, Small, context_of, small  # noqa: F401

LONGER = TRAIN.model_copy(update={"networks": ("counts",), "max_steps": 600, "checkpoint_every_steps": 30})


def wait_for(file: Path, *, seconds: float = 90) -> None:
    latest = time.monotonic() + seconds
    while not file.exists():
        assert time.monotonic() < latest, f"{file} was never written"
        time.sleep(0.01)


def run_one(folders: Small, output: Path, rank: int, *, options: TrainOptions, answers) -> None:
    meeting = Meeting(output / "meeting", rank, 2)
    arguments = {"reference": folders.reference, "output": output, "options": options, "seed": 0, "meeting": meeting}
    answers.put((rank, train.train_with_others(**arguments)))


def test_train_with_others__one_left_alone_says_so_at_once(small, tmp_path):  # noqa: F811
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    jobs = [
        context.Process(
            target=run_one,
            args=(small, tmp_path, rank),
            kwargs={"options": LONGER.model_copy(update={"max_steps": 100_000}), "answers": answers},
        )
        for rank in (0, 1)
    ]
    for job in jobs:
        job.start()
    wait_for(tmp_path / "checkpoint_counts.json")
    jobs[1].kill()
    killed = time.monotonic()
    rank, reached = answers.get(timeout=60)
    assert rank == 0
    assert "gone" in reached["peer_lost"]
    assert time.monotonic() - killed < 20
    jobs[0].join(30)
    assert jobs[0].exitcode == 0


def test_meeting__who_comes_twice_sends_all_home(tmp_path):
    first, second = Meeting(tmp_path / "m", 0, 2), Meeting(tmp_path / "m", 1, 2)
    with ThreadPoolExecutor(2) as threads:
        for arrived in [threads.submit(meeting.start) for meeting in (first, second)]:
            arrived.result(timeout=10)
        waiting = threads.submit(second.meet, "counts")
        with pytest.raises(PeerLost, match="process 0 died and was started again"):
            first.start()
        with pytest.raises(PeerLost, match="another process is gone"):
            waiting.result(timeout=10)
    with pytest.raises(PeerLost, match=r"processes \[1\] did not come within 0.1 s"):
        Meeting(tmp_path / "other", 0, 2).meet("start", patience_s=0.1)


@pytest.mark.local_cluster
def test_run__a_process_that_is_killed_changes_no_byte(small, tmp_path):  # noqa: F811
    pool = Pool(ClusterSettings(2, 2 << 30), Events())
    try:
        context = context_of(small, tmp_path, pool, DECOMPOSE)
        options = context.study.options
        trained = LONGER.model_copy(update={"processes": 2})
        study = context.study.model_copy(update={"options": options.model_copy(update={"train": trained})})
        context = type(context)(study, context.place, context.ledger, pool, pool.events, context.facts)
        output = context.place.output("train", "study", "key")
        output.mkdir(parents=True)
        with ThreadPoolExecutor(1) as thread:
            running = thread.submit(train.run, context, "study", output)
            wait_for(output / "checkpoint_counts.json")
            steps = read_json(output / "checkpoint_counts.json")["step"]
            os.kill(_workers(pool)[0], signal.SIGKILL)
            running.result(timeout=120)
    finally:
        pool.close()
    assert steps < LONGER.max_steps
    train.train_model(reference=small.reference, output=tmp_path / "alone", options=LONGER, seed=0)
    for name in ("weights.safetensors", "model.json", "checkpoint_counts.safetensors"):
        assert (output / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert not list(output.glob(".meeting_*"))


def _workers(pool: Pool) -> list[int]:
    """Return the process ids of the workers."""
    with pool.workers.borrowed("torch", gpu=True) as client:
        return list(client.run(os.getpid).values())


def train_alone(folders: Small, output: Path, options: TrainOptions) -> None:
    train.train_model(reference=folders.reference, output=output, options=options, seed=0)


def test_train_model__killed_and_started_again_gives_the_same_bytes(small, tmp_path):  # noqa: F811
    job = multiprocessing.get_context("spawn").Process(target=train_alone, args=(small, tmp_path / "killed", LONGER))
    job.start()
    wait_for(tmp_path / "killed" / "checkpoint_counts.json")
    job.kill()
    job.join(30)
    assert job.exitcode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.json").exists()
    for name in ("killed", "whole"):
        train_alone(small, tmp_path / name, LONGER)
    for name in ("weights.safetensors", "model.json", "checkpoint_counts.safetensors"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
