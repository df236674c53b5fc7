"""The files of avl-batch: which requests there are, in which order, and which have an answer."""

from __future__ import annotations

import asyncio
import codecs
import json
import tracemalloc
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avl_plugins.errors import AvlError
from avl_runtime.serve.batch.answers import Answers, Row
from avl_runtime.serve.batch.asking import Told
from avl_runtime.serve.batch.job import Job
from avl_runtime.serve.batch.pictures import Folder
from avl_runtime.serve.batch.questions import Questions
from avl_runtime.serve.batch.run import Asker, Reader, run
from avl_runtime.serve.limits import Limits

LONGEST = 1 << 16
RUN = {"questions": {"sha256": "0"}, "options": {"policy": None}}


class Echo:
    """Answers with what it was asked, and counts how often; from a number on it cannot."""

    def __init__(self, most: int = 1 << 30) -> None:
        self.asked: list[str] = []
        self._most = most

    @property
    def alive(self) -> bool:
        return len(self.asked) <= self._most

    async def __call__(self, url: str, body: bytes) -> Told:
        self.asked.append(json.loads(body)["messages"][0]["content"][-1]["text"])
        await asyncio.sleep(0)
        return Told(200, "req-1", body)


def lines_of(count: int) -> bytes:
    return b"".join(
        json.dumps({"custom_id": f"q{number}", "prompt": f"p{number}"}).encode() + b"\n"
        for number in range(count)
    )


def answered(folder: Path, source: Path, ask: Echo, resume: bool) -> Answers:
    with (
        closing(Questions(source, LONGEST)) as questions,
        closing(Answers(folder / "out", questions, RUN, resume)) as answers,
    ):
        asker = Asker(questions, Reader("model", Folder(folder, LONGEST), Limits()), ask)
        left = [int(place) for place in questions.order if not answers.answered[place]]
        asyncio.run(run(left, asker, answers.add, 3))
    return answers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with questions and all their answers."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "in").write_bytes(lines_of(7))
    answered(folder, folder / "in", Echo(), False)
    return folder


@given(st.data())
def test_wherever_it_is_cut_each_request_is_answered_once(whole: Path, data: Any) -> None:
    full = (whole / "out").read_bytes()
    end = data.draw(st.integers(0, len(full)))
    kept = full[: full.rfind(b"\n", 0, end) + 1]
    try:
        (whole / "out").write_bytes(full[:end])
        echo = Echo()
        assert answered(whole, whole / "in", echo, True).answered.all()
        found = (whole / "out").read_bytes()
    finally:
        (whole / "out").write_bytes(full)
    assert found.startswith(kept)
    names = [json.loads(line)["custom_id"] for line in found.splitlines()]
    assert sorted(names) == [f"q{number}" for number in range(7)]
    assert len(echo.asked) == 7 - kept.count(b"\n")


def test_a_model_that_stops_leaves_no_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(20))
    with pytest.raises(AvlError, match="found that it stopped"):
        answered(tmp_path, tmp_path / "in", Echo(5), False)
    written = (tmp_path / "out").read_bytes().splitlines()
    assert len(written) <= 5
    echo = Echo()
    assert answered(tmp_path, tmp_path / "in", echo, True).answered.all()
    assert len(echo.asked) == 20 - len(written)


def test_requests_about_a_picture_follow_one_another(tmp_path: Path) -> None:
    def chat(*parts: str) -> dict[str, Any]:
        content = [
            {"type": "image_url", "image_url": {"url": one}}
            if one.endswith(".png")
            else {"type": "text", "text": one}
            for one in parts
        ]
        body = {"messages": [{"role": "user", "content": content}]}
        return {"method": "POST", "url": "/v1/chat/completions", "body": body}

    lines = [
        {"images": ["b.png"], "prompt": "1"},
        {"prompt": "2"},
        chat("3", "a.png"),
        {"images": ["b.png", "a.png"], "prompt": "4"},
        chat("5", "b.png"),
        {"images": ["a.png"], "prompt": "6"},
        {"prompt": "2", "max_tokens": 7},
        chat("3", "a.png", "8"),
        {"images": ["b.png"], "prompt": "1", "seed": 9},
        {"nothing": 10},
    ]
    (tmp_path / "in").write_text("\n".join(json.dumps(one) for one in lines))
    with closing(Questions(tmp_path / "in", LONGEST)) as questions:
        found = [questions.number(place) for place in questions.order]
    # Pictures in the order in which they are first met, then what the prompts begin with.
    assert found == [1, 9, 4, 5, 2, 7, 10, 3, 8, 6]


def test_lines_are_not_held(tmp_path: Path) -> None:
    line = {"images": ["a.png"], "prompt": "x" * 4000}
    with (tmp_path / "in").open("w") as file:
        file.writelines(json.dumps(line | {"custom_id": str(one)}) + "\n" for one in range(4000))
    tracemalloc.start()
    try:
        with closing(Questions(tmp_path / "in", LONGEST)) as questions:
            most = tracemalloc.get_traced_memory()[1]
            assert json.loads(questions.line(3999) or b"")["custom_id"] == "3999"
            assert np.array_equal(questions.order, np.arange(4000))
    finally:
        tracemalloc.stop()
    assert most < 4 << 20 < (tmp_path / "in").stat().st_size / 3


def test_lines_that_are_no_requests_have_an_answer_too(tmp_path: Path) -> None:
    good = json.dumps({"custom_id": "good", "prompt": "p"})
    bad = [
        "nothing",
        "[1]",
        '{"prompt": NaN}',
        '{"custom_id": "twice", "prompt": "a", "prompt": "b"}',
        '{"custom_id": 5, "prompt": "a"}',
        '{"prompt": "a", "images": "a.png"}',
        '{"prompt": "a", "messages": []}',
        '{"custom_id": "url", "method": "POST", "url": "/v1/models", "body": {}}',
        '{"custom_id": "get", "method": "GET", "url": "/v1/responses", "body": {}}',
        '{"custom_id": "more", "method": "POST", "url": "/v1/responses", "body": {}, "x": 1}',
        '{"custom_id": "\\ud800", "prompt": "a", "stream": true}',
        "[" * 30_000,
        "x" * (LONGEST * 3),
    ]
    (tmp_path / "in").write_text("\n".join(["", good, "  ", *bad, ""]))
    echo = Echo()
    assert answered(tmp_path, tmp_path / "in", echo, False).failed == len(bad)
    rows = {row["custom_id"]: row for row in map(json.loads, (tmp_path / "out").open())}
    assert echo.asked == ["p"] and rows["good"]["error"] is None
    numbers = (4, 5, 6, 8, 9, 10, 15, 16)
    named = {"twice", "url", "get", "more", "\ud800"}
    assert rows.keys() == {"good"} | named | {f"line-{one}" for one in numbers}
    for name, row in rows.items():
        if name != "good":
            assert row["response"] is None and row["error"]["code"] == "invalid_line"
            assert "expected" in row["error"]["message"]


def test_a_byte_order_mark_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(codecs.BOM_UTF8 + lines_of(2))
    echo = Echo()
    assert not answered(tmp_path, tmp_path / "in", echo, False).failed
    rows = [json.loads(line)["custom_id"] for line in (tmp_path / "out").open()]
    assert sorted(echo.asked) == ["p0", "p1"] and sorted(rows) == ["q0", "q1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"custom_id": "a"}\n{}\n\n{"custom_id": "a"}\n', "'a' in lines 1 and 4"),
        ('{"custom_id": "line-2"}\n{}\n', "'line-2' in lines 1 and 2"),
        ("\n \n", "expected a request on each line, found none"),
    ],
)
def test_files_that_cannot_be_used(text: str, told: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_text(text)
    with pytest.raises(AvlError, match=told):
        Questions(tmp_path / "in", LONGEST)
    with pytest.raises(AvlError, match="expected a JSONL file"):
        Questions(tmp_path / "none", LONGEST)


def test_a_file_that_changes_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(3))
    with closing(Questions(tmp_path / "in", LONGEST)) as questions:
        assert questions.line(2) == lines_of(3).splitlines(keepends=True)[2]
        (tmp_path / "in").write_bytes(lines_of(2))
        with pytest.raises(AvlError, match="found it changed meanwhile"):
            questions.line(0)


def test_answers_that_are_not_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(3))
    answered(tmp_path, tmp_path / "in", Echo(), False)
    out = tmp_path / "out"
    full = out.read_bytes()

    def refused(told: str, run: Any = RUN, resume: bool = True) -> None:
        before = out.read_bytes()
        with (
            closing(Questions(tmp_path / "in", LONGEST)) as questions,
            pytest.raises(AvlError, match=told),
        ):
            Answers(out, questions, run, resume)
        assert out.read_bytes() == before

    refused("expected no answers yet", resume=False)
    refused("questions with sha256 '0', found '1'", RUN | {"questions": {"sha256": "1"}})
    refused("policy None, found 'avl'", RUN | {"options": {"policy": "avl"}})
    for more in (full[: full.find(b"\n") + 1], b"{}\n", b"[]\n", b'{"custom_id": "x"}\n', b"1\n"):
        out.write_bytes(full + more)
        refused("found another line 4")
    out.write_bytes(full)
    out.write_bytes(full + b"my notes")
    refused("found another line at its end")
    # As a stopped run leaves it, and as somebody's own file, without an end of line.
    out.write_bytes(full[:20])
    refused("expected no answers yet", resume=False)
    out.write_bytes(b"my notes")
    refused("expected no answers yet", resume=False)
    refused("found another line at its end")
    (tmp_path / "out.run").unlink()
    refused("which says what it answers")


@pytest.mark.parametrize("before", [None, b""])
def test_a_start_that_fails_leaves_what_was_there(before: bytes | None, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(3))
    if before is not None:
        (tmp_path / "out").write_bytes(before)
    (tmp_path / "out.run").mkdir()
    there = {*tmp_path.iterdir()}
    with pytest.raises(AvlError, match="name another file for the answers"):
        answered(tmp_path, tmp_path / "in", Echo(), False)
    assert {*tmp_path.iterdir()} == there
    (tmp_path / "out.run").rmdir()
    with pytest.raises(AvlError, match="found that it stopped"):
        answered(tmp_path, tmp_path / "in", Echo(0), False)
    assert {*tmp_path.iterdir()} == there - {tmp_path / "out.run"} | (
        set() if before is None else {tmp_path / "out.run"}
    )


def test_a_full_disk(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    (tmp_path / "in").write_bytes(lines_of(20))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(AvlError, match=r"expected room for an answer, .*--resume"):
            answered(tmp_path, tmp_path / "in", Echo(), False)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "out").stat().st_size == 2000
    assert answered(tmp_path, tmp_path / "in", Echo(), True).answered.all()


def test_no_more_are_under_way_than_there_are(tmp_path: Path) -> None:
    most = 0

    class Counting:
        async def row(self, place: int) -> Row:
            nonlocal most
            most = max(most, len(asyncio.all_tasks()))
            return Row(b"", False, 0)

    taken: list[int] = []
    asyncio.run(run([0, 1, 2], Counting(), lambda place, row: taken.append(place), 1 << 20))
    assert taken == [0, 1, 2] and most <= 4


@pytest.mark.parametrize("name", [one.name for one in fields(Limits)])
def test_which_limits_answers_follow_from(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(1))
    (tmp_path / "avl.json").write_text("{}")
    with closing(Questions(tmp_path / "in", LONGEST)) as questions:
        found = [
            Job("tiny", tmp_path, {}, limits).follows_from(questions)
            for limits in (Limits(), replace(Limits(), **{name: 3}))
        ]
    assert (found[0] == found[1]) == (
        name in ("bodies", "running", "queue", "body_seconds", "connections")
    )


def test_what_else_answers_follow_from(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(lines_of(1))
    (tmp_path / "avl.json").write_text("{}")
    job = Job("tiny", tmp_path, {"policy": None, "threads": 1, "kv": "auto"}, Limits())
    others = [
        replace(job, name="other"),
        replace(job, images=tmp_path / "other"),
        replace(job, hosts=("a.example",)),
        replace(job, loading={**job.loading, "policy": "avl"}),
        replace(job, loading={**job.loading, "kv": "fp16"}),
    ]
    same = [
        replace(job, images=tmp_path),
        replace(job, loading={**job.loading, "threads": 2, "prefix_cache": 5}),
    ]
    with closing(Questions(tmp_path / "in", LONGEST)) as questions:
        first = job.follows_from(questions)
        assert json.loads(json.dumps(first)) == first
        assert all(one.follows_from(questions) == first for one in same)
        assert all(one.follows_from(questions) != first for one in others)
