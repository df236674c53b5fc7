"""The page in a real Chromium: what a person does with it, against what `LVLM.generate` gives."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from avl_runtime import LVLM, Result
from support.server import CHAT, KEY, ONE, TWO, Running

playwright = pytest.importorskip(
    "playwright.sync_api", reason="no playwright here: scripts/page.sh installs it and runs this"
)
CHROMIUM = os.environ.get("AVL_CHROMIUM") or shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip(
        "no Chromium here: scripts/page.sh installs one and runs this; AVL_CHROMIUM names another",
        allow_module_level=True,
    )
expect = playwright.expect
POLICY = "avl:keep=0.5,core=0.25,refresh=3"
LONGER = {"min_new_tokens": 1500}  # so that an answer does not end before it is stopped
DONE = "#results[aria-busy=false]"
PLACED = """([number, rows, columns]) => {
  const canvas = document.querySelectorAll(".answer")[number].querySelector("canvas");
  const [pen, found] = [canvas.getContext("2d"), []];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      found.push([...pen.getImageData(
        Math.round(((column + 0.5) * canvas.width) / columns),
        Math.round(((row + 0.5) * canvas.height) / rows), 1, 1).data].slice(0, 3));
  return found;
}"""
FILES = """files => {
  const held = new DataTransfer();
  for (const [name, type, data] of files)
    held.items.add(new File([Uint8Array.from(atob(data), one => one.charCodeAt(0))], name, {type}));
  return held;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM)
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, server: Running) -> Iterator[Any]:
    """The page with its key; it must load nothing from elsewhere and log no fault."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    found = context.new_page()
    elsewhere, faults = [], []
    found.on(
        "request",
        lambda one: (
            None
            if one.url.startswith((f"{server.base}/", "blob:", "data:"))
            else elsewhere.append(one.url)
        ),
    )
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.on(
        "console",
        lambda one: (
            faults.append(one.text)
            if one.type == "error" and "Failed to load resource" not in one.text
            else None
        ),
    )
    found.goto(server.base)
    expect(found.locator("#error")).to_have_text("This server asks for an API key.")
    found.fill("#key", KEY)
    found.press("#key", "Tab")
    expect(found.locator("#model option")).to_have_count(1)
    yield found
    context.close()
    assert (elsewhere, faults) == ([], [])


def png(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def drop(page: Any, *files: tuple[str, str, str]) -> None:
    held = page.evaluate_handle(FILES, [list(one) for one in files])
    page.dispatch_event("#drop", "drop", {"dataTransfer": held})


def ask(page: Any, question: str, *policies: str, most: int = 24) -> None:
    page.fill("#question", question)
    page.fill("#policy", policies[0])
    page.set_checked("#compare", len(policies) > 1)
    if len(policies) > 1:
        page.fill("#other", policies[1])
    page.fill("#most", str(most))
    page.press("#question", "Enter")


def said(model: LVLM, one: Any, policy: str, most: int = 24) -> Result:
    return model.generate(
        one.prompt, [one.image], policy=policy, max_new_tokens=most, return_placements=True
    )


def marked(page: Any, number: int, result: Result, step: int, layer: int) -> None:
    """The colour in the middle of each cell is that of its token's place in a layer."""
    (cells,) = result.visuals
    at = [one for one in result.placements if one.step <= step][-1]
    core, parked = at.core[layer - 1], at.parked[layer - 1]
    shares = [round(100 * part.mean()) for part in (core, parked, ~(core | parked))]
    told = page.locator(".answer").nth(number).locator(".share").all_text_contents()
    for text, name, share in zip(told, ("core", "secondary", "minor"), shares, strict=True):
        found = re.fullmatch(rf"{name} (\d+) %", text)
        assert found and abs(int(found[1]) - share) <= 1, (text, shares)
    red, _, blue = np.array(page.evaluate(PLACED, [number, *cells.grid])).T
    shown = cells.index[cells.index >= 0]
    places = np.select([core, parked], [1, 2], 3)[cells.index >= 0]
    # Of a grey picture: orange is more red than blue, blue the other way, dark neither and dark.
    drawn = np.select([red > blue + 40, blue > red + 40], [1, 2], 3)
    assert np.array_equal(drawn[shown], places)
    assert (np.maximum(red, blue)[shown][places == 3] < 90).all()


def test_a_dropped_picture_under_two_policies(page: Any, tiny: LVLM, server: Running) -> None:
    one = dataclasses.replace(ONE, image=ONE.image.convert("L").convert("RGB"))
    drop(page, ("a.png", "image/png", png(one.image)))
    expect(page.locator("#pictures li")).to_have_count(1)
    ask(page, one.prompt, POLICY, "fastv")
    page.wait_for_selector(DONE)
    results = [said(tiny, one, policy) for policy in (POLICY, "fastv")]
    for number, result in enumerate(results):
        answer = page.locator(".answer").nth(number)
        assert answer.locator(".text").text_content() == result.text
        figures = answer.locator(".figures").text_content()
        assert figures.startswith(f"{len(result.token_ids)} tokens · prompt ")
        assert "tokens/s" in figures and "ended by" in figures
        page.fill("#layer", "3")
        expect(page.locator("#layer-told")).to_have_text("3 of 6")
        steps = len(result.token_ids) - 1
        for step in (steps, 4, 0):
            page.fill("#step", str(step))
            expect(page.locator("#step-told")).to_have_text(re.compile(rf"^{step} of \d+"))
            expect(answer.locator("canvas")).to_have_attribute(
                "aria-label", re.compile(rf"step {step}, layer 3: core")
            )
            marked(page, number, result, step, 3)
    expect(page.locator("#status")).to_contain_text(results[0].text)
    pieces = []
    for step in range(len(results[0].token_ids)):
        page.fill("#step", str(step))
        expect(page.locator(".answer canvas").first).to_have_attribute(
            "aria-label", re.compile(rf"step {step}, layer 3: core")
        )
        pieces.append(page.locator(".answer .text mark").first.text_content())
    assert "".join(pieces) == results[0].text and max(map(len, pieces)) < 4
    # Kept in the browser: there again without the server.
    page.reload()
    expect(page.locator("#history li")).to_have_count(1)
    page.route(f"**{CHAT}", lambda route: route.abort())
    page.locator("#history .open").click()
    expect(page.locator(".answer .text").nth(1)).to_have_text(results[1].text)
    page.click("#forget")
    expect(page.locator("#earlier")).to_be_hidden()


def test_an_answer_that_is_stopped(page: Any, server: Running) -> None:
    """Its rows are freed, and another policy answers then."""

    def longer(route: Any) -> None:
        route.continue_(post_data=json.dumps(route.request.post_data_json | LONGER))

    page.route(f"**{CHAT}", longer)
    ask(page, "Go on.", "dense", most=1500)
    expect(page.locator("#stop")).to_be_enabled()
    expect(page.locator(".figures")).to_contain_text("tokens/s")
    page.keyboard.press("Escape")
    expect(page.locator(".figures")).to_contain_text("stopped")
    server.until(avl_running=0, avl_places_taken=0)
    page.unroute(f"**{CHAT}")
    page.set_input_files(
        "#file",
        {"name": "b.png", "mimeType": "image/png", "buffer": base64.b64decode(png(TWO.image))},
    )
    ask(page, TWO.prompt, "avl", most=4)
    page.wait_for_selector(DONE)
    expect(page.locator(".answer h2")).to_have_text("avl")
    expect(page.locator("#history li")).to_have_count(2)


def test_what_is_wrong_is_told(page: Any) -> None:
    drop(page, ("x.txt", "text/plain", "AAAA"))
    expect(page.locator("#error")).to_contain_text("expected a picture, found x.txt")
    ask(page, "Hello.", "nothing", "dense", most=2)
    expect(page.locator(".answer .wrong").nth(0)).to_contain_text("expected a policy")
    expect(page.locator(".answer .figures").nth(1)).to_contain_text("2 tokens")
    page.route(f"**{CHAT}", lambda route: route.abort())
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_contain_text("is avl-serve running?")
    page.fill("#key", "another")
    page.press("#key", "Tab")
    expect(page.locator("#error")).to_contain_text("expected an API key of this server")


def test_markup_in_answers_is_text(page: Any) -> None:
    """Of an answer, a policy, an error and a question."""
    markup = "<img src=x onerror=\"document.title='wrong'\"><script>document.title='wrong'</script>"
    opening = {"index": 0, "delta": {"content": ""}, "finish_reason": None, "avl": {"visuals": []}}
    state = {"tokens": 1, "prefill_ms": 1, "decode_ms": 0, "row_bytes": 1, "row_bytes_dense": 1}
    piece = {"index": 0, "delta": {"content": markup}, "avl": state | {"placements": []}}
    last = {"index": 0, "delta": {}, "finish_reason": "stop", "avl": {"policy": markup}}
    events = [json.dumps({"choices": [one]}) for one in (opening, piece, last)]
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"])
    told = {"body": body, "content_type": "text/event-stream"}
    page.route(f"**{CHAT}", lambda route: route.fulfill(**told))
    ask(page, markup, "dense")
    expect(page.locator(".answer .text")).to_have_text(markup)
    expect(page.locator(".answer h2")).to_have_text(markup)
    expect(page.locator("#history b")).to_have_text(markup)
    broken = {"body": json.dumps({"error": {"message": markup}}), "status": 400}
    page.unroute(f"**{CHAT}")
    page.route(f"**{CHAT}", lambda route: route.fulfill(**broken))
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_have_text(markup)
    assert page.title() == "avl" and page.locator("main img[src='x'], main script").count() == 0


def test_a_pasted_picture_on_a_dark_phone(page: Any) -> None:
    """Nothing is wider than the screen; the colours follow the system until a button says else."""
    page.set_viewport_size({"width": 360, "height": 740})
    held = page.evaluate_handle(FILES, [["c.png", "image/png", png(TWO.image)]])
    page.evaluate(
        "held => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held}))", held
    )
    expect(page.locator("#pictures li")).to_have_count(1)
    expect(page.locator(".camera")).to_be_visible()
    ask(page, TWO.prompt, "avl", "dense", most=3)
    page.wait_for_selector(DONE)
    expect(page.locator("#history li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == "rgb(20, 23, 28)"
    page.click("#theme")
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.get_by_label("Take picture 1 away").click()
    expect(page.locator("#pictures li")).to_have_count(0)
