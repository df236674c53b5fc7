"""A file of questions to a file of answers."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

from avl_runtime.package.package import load_package
from avl_runtime.serve.batch.answers import Answers, Row
from avl_runtime.serve.batch.job import Job, together
from avl_runtime.serve.batch.progress import Count
from avl_runtime.serve.batch.questions import Questions
from avl_runtime.serve.batch.run import Asker, Take, run
from avl_runtime.serve.batch.workers import Cluster, answered


def answer_file(
    job: Job, source: Path, out: Path, resume: bool, quiet: bool, cluster: Cluster | None = None
) -> Count:
    """Answer all requests of a file that have no answer yet.

    Args:
        source: JSONL; `-` is stdin.
        out: JSONL that answers are added to.
        resume: go on with a file that has answers.
        quiet: tell no progress.
        cluster: whose workers answer; None for this process.

    Raises:
        AvlError: it cannot be begun, or not be gone on with.
    """
    load_package(job.package)  # before a long file is read
    with (
        closing(Questions(source, job.limits.body)) as questions,
        closing(Answers(out, questions, job.follows_from(questions), resume)) as answers,
        closing(Count(len(questions), answers.done, answers.failed, quiet)) as count,
    ):

        def take(place: int, row: Row) -> None:
            answers.add(place, row)
            count.add(row)

        left = questions.order[~answers.answered[questions.order]]
        if len(left) and cluster is not None:
            answered(job, questions, left, take, cluster)
        elif len(left):
            asyncio.run(_answered(job, questions, left.tolist(), take))
        return count


async def _answered(job: Job, questions: Questions, left: list[int], take: Take) -> None:
    async with job.asking() as ask:
        asker = Asker(questions, job.reader(questions.path), ask)
        await run(left, asker, take, together(job.limits.running))
