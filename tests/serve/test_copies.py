"""A package on a machine that does not see its folder."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from avl_export.cli import main as export
from avl_runtime import LVLM
from avl_runtime.cli.batch import main
from avl_runtime.package.package import MANIFEST, load_package
from avl_runtime.serve.batch import copies
from avl_runtime.serve.batch.copies import Listed, Source, copied
from avl_runtime.serve.batch.run import BatchError
from support.server import ONE


@pytest.fixture(params=["linked", "whole"])
def package(request: pytest.FixtureRequest, tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A package that links to its checkpoint, or holds all weights itself."""
    checkpoint, folder = tmp_path / "theirs" / "model", tmp_path / "theirs" / "tiny.avl"
    shutil.copytree(tiny_checkpoint, checkpoint)
    more = ["--copy"] if request.param == "whole" else []
    words = ["--model", str(checkpoint), "--out", str(folder), "--no-check", *more]
    assert export(words) == 0
    return folder


def test_a_copy_answers_when_the_package_is_gone(
    package: Path, tiny: LVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies, "PIECE", 50_000)
    source, asked = Source(package), 0
    listed = source.listed()

    def fetch(number: int, start: int) -> bytes:
        nonlocal asked
        asked += 1
        return source.piece(number, start)

    copy = copied(tmp_path / "ours", listed, fetch)
    assert asked >= sum(size for _, size in listed.files) / copies.PIECE
    assert copied(tmp_path / "ours", listed, lambda *_: b"") == copy, "there is one already"
    shutil.rmtree(package.parent)
    assert load_package(copy).weights_folder.is_relative_to(tmp_path / "ours")
    with LVLM.load(copy) as model:
        found = model.generate(ONE.prompt, [ONE.image], max_new_tokens=8)
    assert found.token_ids == tiny.generate(ONE.prompt, [ONE.image], max_new_tokens=8).token_ids


@pytest.mark.parametrize("more", [b"", b"too much"])
def test_a_package_that_changes_is_not_copied(
    tiny_package: Path, tmp_path: Path, more: bytes
) -> None:
    source = Source(tiny_package)
    listed, last = source.listed(), len(source.listed().files) - 1
    size = listed.files[last][1]

    def fetch(number: int, start: int) -> bytes:
        piece = source.piece(number, start)
        if number == last and start + len(piece) == size:
            return piece + more if more else piece[:0]
        return piece

    with pytest.raises(BatchError, match="changed while it was copied, begin again with --resume"):
        copied(tmp_path / "ours", listed, fetch)
    left = [one.name for one in (tmp_path / "ours").iterdir() if one.suffix != ".lock"]
    assert not left


def test_a_worker_that_died_while_it_copied(tiny_package: Path, tmp_path: Path) -> None:
    source = Source(tiny_package)
    listed = source.listed()
    dead = tmp_path / f".{listed.sha256[:32]}.partial-4194305"  # more than Linux gives numbers
    (dead / "package").mkdir(parents=True)
    copied(tmp_path, listed, source.piece)
    assert not dead.exists()


def test_where_there_is_no_room(
    tiny_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: usage(1 << 20))
    with pytest.raises(BatchError, match=r"expected room for .* found 1.00 MiB"):
        copied(tmp_path, Source(tiny_package).listed(), Source(tiny_package).piece)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BatchError, match="expected a folder that can be written"):
        copied(tmp_path / "file", Listed("0" * 64, False, ()), lambda *_: b"")


def test_weights_that_have_changed_are_told_before_ray_begins(
    tiny_package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package, questions = tmp_path / "tiny.avl", tmp_path / "questions.jsonl"
    shutil.copytree(tiny_package, package)
    manifest = json.loads((package / MANIFEST).read_text())
    manifest["weights"]["shards"][0]["size"] += 1
    (package / MANIFEST).write_text(json.dumps(manifest))
    questions.write_text('{"prompt": "Hello."}\n')
    words = [str(package), str(questions), "--out", str(tmp_path / "answers.jsonl")]
    assert main([*words, "--ray", "--copy-to", str(tmp_path / "copies")]) == 1
    told = capsys.readouterr().err
    assert "the checkpoint has changed since export, export again" in told and "ray" not in told
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--copy-to", "/copies"], "--copy-to is for a cluster"),
        (["--copy-to", "copies", "--ray"], "expected a path from / on"),
    ],
)
def test_options_that_do_not_fit(
    words: list[str], told: str, tiny_package: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(tiny_package), "questions.jsonl", "--out", "answers.jsonl", *words])
    assert told in capsys.readouterr().err
