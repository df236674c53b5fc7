"""Each field of a request is taken or refused, and nothing that a client sent is passed on."""

from __future__ import annotations

import asyncio
import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from avl_plugins.errors import AvlError
from avl_plugins.policies import parse
from avl_runtime.cli.serve import main, make_parser
from avl_runtime.serve.admission import Admission
from avl_runtime.serve.asked.content import Picture, pictures
from avl_runtime.serve.asked.fields import KNOWN, chat_request
from avl_runtime.serve.decoding import checked
from avl_runtime.serve.decoding.checked import TooManyPixelsError, decoded
from avl_runtime.serve.decoding.processes import Decoders
from avl_runtime.serve.errors import ApiError, told
from avl_runtime.serve.http.guard import (
    VARIABLE,
    ApiKeyError,
    Guard,
    is_loopback,
    keys,
    local_names,
)
from avl_runtime.serve.limits import Limits
from avl_runtime.serve.pictures import Pictures
from avl_runtime.serve.shelf import ShelfError, names
from avl_runtime.vision.load.images import ImageError
from avl_runtime.vision.load.sources import data_address
from support.server import data_url

LIMITS = Limits(text=100, parts=8, images=2, pixels=10_000, new_tokens=50)
HELLO = [{"role": "user", "content": "Hello."}]
URL = {"type": "image_url", "image_url": {"url": "data:,x"}}


def read(**fields: Any) -> Any:
    return chat_request({"model": "m", "messages": HELLO} | fields, LIMITS)


def test_what_is_taken() -> None:
    found = read(
        **{"max_completion_tokens": 7, "max_tokens": 7, "temperature": 0.5, "top_p": 0, "seed": 3},
        **{"stop": ["a", "b"], "logprobs": True, "top_logprobs": 4, "n": 2, "policy": "avl"},
        **{"logit_bias": {"42": -1}, "presence_penalty": 1, "user": "somebody", "stream": True},
        **{"stream_options": {"include_usage": True}, "response_format": {"type": "text"}},
        **{"tools": [], "store": False, "top_k": 5, "frequency_penalty": None},
    )
    options = found.options
    assert (options.max_new_tokens, options.temperature, options.seed) == (7, 0.5, 3)
    assert (options.stop, options.logprobs, options.top_k) == (("a", "b"), 4, 5)
    assert options.logit_bias == {42: -1} and 0 < options.top_p < 1e-6
    assert (found.choices, found.stream, found.usage, found.user) == (2, True, True, "somebody")
    assert found.policy == parse("avl")
    assert read().options.max_new_tokens == 50 and read().policy is None
    assert read(logprobs=True).options.logprobs == 0 and read().options.logprobs is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        *(({name: 1}, name) for name in sorted(KNOWN - {"n", "max_tokens", "temperature", "top_p"}
          - {"max_completion_tokens", "min_p", "seed", "top_k", "no_repeat_ngram_size"}
          - {"prompt_lookup", "presence_penalty", "frequency_penalty", "repetition_penalty"}
          - {"min_new_tokens"})),
        *(({name: value}, name) for name, value in [
            ("n", 0), ("n", 9), ("n", True), ("n", 1.5), ("max_tokens", 51), ("max_tokens", 0),
            ("temperature", -1), ("temperature", float("inf")), ("temperature", "0"),
            ("top_p", 1.5), ("seed", -1), ("seed", 1 << 63), ("stop", [1]), ("stop", ["a"] * 17),
            ("stop", "a" * 257), ("logit_bias", {"x": 1}), ("logit_bias", {"1": 101}),
            ("repetition_penalty", 0.001), ("tools", {}),
            ("tool_choice", "other"),
            ("modalities", ["text", "audio"]), ("top_logprobs", 2), ("messages", []),
            ("messages", HELLO * 9), ("stream_options", {"include_usage": True}), ("kv", 8),
            ("placements", "stream"), ("placements", "live"),
            ("policy", "a" * 300), ("policy", "avl:kep=1"), ("store", True),
            ("unknown", None), ("model", "m" * 300),
        ]),
        ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
        ({"stream": True, "stream_options": {"other": 1}}, "stream_options.other"),
        ({"min_new_tokens": 5, "max_tokens": 4}, "min_new_tokens"),
    ],
)  # fmt: skip
def test_what_is_refused(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(**fields)
    assert refused.value.status == 400 and refused.value.param == param
    assert "expected" in str(refused.value) and "found" in str(refused.value)
    assert refused.value.body["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("fields", [{"stop": 5}, {"messages": [{"role": "user", "content": 5}]}])
def test_where_a_text_would_do_too_this_is_said(fields: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="expected a text or a list, found 5"):
        read(**fields)


@pytest.mark.parametrize(
    ("message", "at"),
    [
        ({"role": "tool", "content": "x"}, ".tool_call_id"),
        ({"role": "tool", "content": "x", "tool_call_id": "a"}, ".tool_call_id"),
        ({"role": ["user"], "content": "x"}, ".role"),
        ({"content": "x"}, ".role"),
        ({"role": "user"}, ".content"),
        ({"role": "user", "content": []}, ".content"),
        ({"role": "user", "content": {"type": "text", "text": "x"}}, ".content"),
        ({"role": "user", "content": "x", "name": "me"}, ".name"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, ".tool_calls[0].function"),
        ({"role": "user", "content": "x", "other": 1}, ".other"),
        ({"role": "user", "content": "x" * 101}, ".content"),
        ({"role": "user", "content": [{"type": "text"}]}, ".content[0].text"),
        ({"role": "user", "content": ["x"]}, ".content[0].type"),
        ({"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]},
         ".content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "placeholders": True}]},
         ".content[0].placeholders"),
        ({"role": "assistant", "content": [{"type": "text", "text": "x", "special_tokens": True}]},
         ".content[0].special_tokens"),
        ({"role": "system", "content": [URL]}, ".content[0]"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": "data:,x"}]},
         ".content[0].image_url"),
        ({"role": "user", "content": [URL | {"path": "/etc/passwd"}]}, ".content[0].path"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": 1}}]},
         ".content[0].image_url.url"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,\xe4"}}]},
         ".content[0].image_url.url"),
        ({"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:,x", "detail": "least"}}]},
         ".content[0].image_url.detail"),
    ],
)  # fmt: skip
def test_messages_that_are_refused(message: dict[str, Any], at: str) -> None:
    with pytest.raises(ApiError) as refused:
        read(messages=[message])
    assert refused.value.param == f"messages[0]{at}"


def test_limits_of_all_messages_together() -> None:
    for messages in (
        [{"role": "user", "content": "x" * 60}] * 2,
        [{"role": "user", "content": [URL] * 3}],
        [{"role": "user", "content": [{"type": "text", "text": ""}] * 5}] * 2,
    ):
        with pytest.raises(ApiError) as refused:
            read(messages=messages)
        assert refused.value.param == "messages"


def test_our_own_answer_can_be_sent_back() -> None:
    answer = {"role": "assistant", "content": "Yes.", "refusal": None, "annotations": []}
    found = read(messages=[*HELLO, answer | {"tool_calls": None, "audio": None}, *HELLO])
    assert [(one.role, one.parts) for one in found.said][1] == ("assistant", ("Yes.",))
    assert read(messages=[{"role": "developer", "content": "x"}, *HELLO]).said[0].role == "system"


def bomb() -> bytes:
    """The beginning of a PNG whose header says that it is very large."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 1, 0, 0, 0, 0)
    check = struct.pack(">I", zlib.crc32(header))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + check
    return start + struct.pack(">I", 8) + b"IDAT"


def test_pictures_are_bytes_that_came(
    tmp_path: Path, decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No path, no address, no other format, no more pixels than are allowed."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (4, 4)).save("there.png")
    Image.new("RGB", (4, 4)).save("there.bmp")
    plain = "data:image/png;base64,"
    bare = data_url(Image.open("there.png")).removeprefix(plain)
    bmp = Path("there.bmp").read_bytes().hex("%")
    for url in (
        *("there.png", str(tmp_path / "there.png"), f"file://{tmp_path}/there.png", bare),
        *("http://127.0.0.1:9/x.png", "ftp://x/y", "image/png;base64," + bare, "", " "),
        *("data:", "data:image/png;base64,", plain + bare[:40], plain + "%%%", f"data:,%{bmp}"),
        *("data:image/svg+xml,<svg/>", "there.png#frame=0", "data:;base64,there.png"),
    ):
        with pytest.raises(ApiError) as refused:
            Pictures(LIMITS, decoders).load(Picture(url, "messages[0].content[0].image_url.url"))
        assert refused.value.param == "messages[0].content[0].image_url.url"
        assert str(tmp_path) not in str(refused.value)
    found = Pictures(LIMITS, decoders).load(Picture(f" {plain}{bare}".strip(), "x"))
    assert (found.size, found.mode) == ((4, 4), "RGB")


@pytest.mark.parametrize(
    ("detail", "size"), [("low", (512, 4)), ("high", (1024, 8)), ("original", (1024, 8))]
)
def test_few_details_are_enough_where_a_client_says_so(
    detail: str, size: tuple[int, int], decoders: Decoders
) -> None:
    url = {"url": data_url(Image.new("RGB", (1024, 8))), "detail": detail}
    content = [{"type": "image_url", "image_url": url}]
    asked = chat_request({"model": "m", "messages": [{"role": "user", "content": content}]}, LIMITS)
    (picture,) = pictures(asked.said)
    assert Pictures(LIMITS, decoders).load(picture).size == size


def test_pixels_are_counted_before_they_are_decoded(
    decoders: Decoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = data_url(Image.new("L", (80, 80)))
    pictures = Pictures(LIMITS, decoders)
    pictures.load(Picture(url, "x"))
    with pytest.raises(ApiError, match="at most 10000 pixels together"):
        pictures.load(Picture(url, "x"))
    hexed = "data:," + "".join(f"%{byte:02x}" for byte in bomb())
    with pytest.raises(ApiError, match="pixels together"):
        Pictures(LIMITS, decoders).load(Picture(hexed, "x"))
    loaded: list[object] = []
    monkeypatch.setattr(checked, "load_image", loaded.append)
    for data in (bomb(), data_address(url, LIMITS.body)):
        with pytest.raises(TooManyPixelsError):
            decoded(data, 80 * 80 - 1)
    assert loaded == []


def test_jpegs_of_many_scans_are_refused_before_they_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scans of a tiny picture, repeated; such bytes in a comment or behind it are none."""
    stream = io.BytesIO()
    Image.new("RGB", (16, 16)).save(stream, "JPEG", progressive=True)
    jpeg = stream.getvalue()
    last, own = jpeg.rindex(b"\xff\xda"), jpeg.count(b"\xff\xda")
    scan, scans = jpeg[last:-2], b"\xff\xda" * 200
    comment = jpeg[:2] + b"\xff\xfe" + struct.pack(">H", len(scans) + 2) + scans + jpeg[2:]
    loaded: list[bytes] = []
    monkeypatch.setattr(checked, "load_image", loaded.append)
    taken = [jpeg, jpeg[:-2] + scan * (100 - own) + jpeg[-2:], comment + scans]
    for data in taken:
        decoded(data, 256)
    empty = jpeg[:2] + b"\xff\xfe\x00\x02" * 10_000 + comment[2:]
    for data in (jpeg[:-2] + scan * (101 - own) + jpeg[-2:], comment[:-2] + scan * 101, empty):
        with pytest.raises(ImageError, match="at most 100 scans"):
            decoded(data, 256)
    assert loaded == taken


def test_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("first-key-0123456789\n\nsecond-key-0123456789\n")
    monkeypatch.setenv(VARIABLE, "third-key-0123456789")
    found = keys(file)
    assert len(found) == 3 and keys(None) == ("third-key-0123456789",)
    guard = Guard(found, None)
    for key in found:
        guard.check({"authorization": f"Bearer {key}"})
    for wrong in ({}, {"authorization": found[0]}, {"authorization": "Bearer third-key"}):
        with pytest.raises(ApiError) as refused:
            guard.check(wrong)
        assert refused.value.status == 401 and "key-" not in str(refused.value)
    for text in ("short", "with äöü which is no ascii", " \n", "x" * (1 << 17)):
        file.write_text(text)
        with pytest.raises(ApiKeyError, match="expected"):
            keys(file)
    file.write_text("first-key-0123456789\nshort\n")
    with pytest.raises(ApiKeyError, match="found another as number 3; make one") as told:
        keys(file)
    assert "short" not in str(told.value)
    file.write_text(" \n")
    with pytest.raises(ApiKeyError, match="empty; make one with: python"):
        keys(file)
    with pytest.raises(ApiKeyError, match="No such file or directory; name another"):
        keys(tmp_path / "none")


@pytest.mark.parametrize("where", ["--api-key", VARIABLE])
def test_everybody_is_answered_or_who_has_a_key(
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    key, file = "first-key-0123456789", tmp_path / "keys"
    words = ["none.avl", "--open"]
    if where == VARIABLE:
        monkeypatch.setenv(VARIABLE, key)
    else:
        file.write_text(key)
        words += [where, str(file)]
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert f"--open: expected no API key beside it, found {where};" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--timeout", "expected more than 0 seconds, found '0'"),
        ("--prefix-cache", "expected a whole number of at least 1, auto or off, found '0'"),
    ],
)
def test_none_at_all_is_no_limit(
    option: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        make_parser().parse_args(["tiny.avl", option, "0"])
    assert told in capsys.readouterr().err


def test_names_of_this_machine() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_loopback, ("::", "10.0.0.1", "192.168.0.1", "localhost.x", "")))
    guard = Guard((), local_names("127.0.0.1"))
    guard.check({"host": "LOCALHOST:8000"})
    with pytest.raises(ApiError):
        guard.check({"host": "attacker.example:8000"})
    Guard((), None).check({"host": "any.example"})


def test_names_of_models(tmp_path: Path) -> None:
    assert names(["a/tiny.avl", "big=b/x.avl", "./c"]) == {
        "tiny": Path("a/tiny.avl"),
        "big": Path("b/x.avl"),
        "c": Path("./c"),
    }
    assert list(names(["a/b=c.avl"])) == ["b=c"]
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert names([str(loop)]) == {"loop": loop}
    for wrong in (["a/x.avl", "b/x.avl"], ["=x"], ["x="], [""]):
        with pytest.raises(ShelfError, match="expected"):
            names(wrong)


def test_what_is_told_of_an_error(tmp_path: Path) -> None:
    assert told(ValueError("secret")).status == told(AvlError("secret")).status == 500
    assert "secret" not in str(told(ValueError("secret")))
    from avl_runtime.prompts.messages import PromptError

    assert told(PromptError("expected a prompt")).status == 400
    assert told(PromptError(f"expected {tmp_path}/x"), (tmp_path,)).status == 500


def test_places_are_had_in_order() -> None:
    """Whoever is cancelled while it waits, or just as it is let in, leaves its places to others."""

    async def tried() -> None:
        admission = Admission(2, 3)
        order: list[int] = []
        gate = asyncio.Event()

        async def run(number: int, count: int) -> None:
            async with admission.places(count):
                order.append(number)
                await gate.wait()

        tasks = [asyncio.create_task(run(number, count)) for number, count in enumerate((1, 2, 1))]
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting) == (1, 2)  # the third does not overtake
        tasks[1].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert (admission.running, admission.waiting, order) == (2, 0, [0, 2])
        waiting = asyncio.create_task(run(3, 2))
        await asyncio.sleep(0)
        for task in (tasks[0], tasks[2]):
            task.cancel()
        await asyncio.wait([tasks[0], tasks[2]])
        waiting.cancel()  # it has been let in, and does not know yet
        await asyncio.wait([waiting])
        assert (admission.running, admission.waiting) == (0, 0)
        held = [asyncio.create_task(run(number, 2)) for number in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(ApiError) as full:
            await admission.places(1).__aenter__()
        assert full.value.status == 429
        admission.stop()
        gate.set()
        done = await asyncio.gather(*held, return_exceptions=True)
        assert done[0] is None and all(isinstance(one, ApiError) for one in done[1:])
        assert (admission.running, admission.waiting) == (0, 0)

    asyncio.run(tried())
