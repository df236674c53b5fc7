"""The page in a real Chromium: what a person does with it, against what `LVLM.generate` gives."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

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
MOST_MS = 120_000  # that something may take on a busy machine
expect.set_options(timeout=MOST_MS)
POLICY = "avl:keep=0.5,core=0.25,refresh=3"
LONGER = {"min_new_tokens": 1500}  # so that an answer does not end before it is stopped
DONE = "#results[aria-busy=false]"
PLACED = """([number, picture, rows, columns]) => {
  const canvas = document.querySelectorAll(".answer")[number].querySelectorAll("canvas")[picture];
  const [pen, found] = [canvas.getContext("2d"), []];
  for (let row = 0; row < rows; row++)
    for (let column = 0; column < columns; column++)
      found.push([...pen.getImageData(
        Math.round(((column + 0.5) * canvas.width) / columns),
        Math.round(((row + 0.5) * canvas.height) / rows), 1, 1).data].slice(0, 3));
  return found;
}"""
ROLES = {  # what a screen reader says of the page's controls
    "combobox": ("Model", "Policy", "Second policy"),
    "textbox": ("Question", "API key"),
    "button": ("Ask", "Dark", "Choose a picture", "Take picture 2 away", "Forget all"),
    "checkbox": ("compare with another", "marks"),
    "spinbutton": ("Tokens, at most",),
    "slider": ("Step", "Layer"),
}
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
    context.set_default_timeout(MOST_MS)
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


def data(image: Any, kind: str = "PNG") -> str:
    stream = io.BytesIO()
    image.save(stream, kind)
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


def grey(image: Any) -> Any:
    return image.convert("L").convert("RGB")


def said(model: LVLM, images: list[Any], policy: str, most: int = 24) -> Result:
    return model.generate(
        ONE.prompt, images, policy=policy, max_new_tokens=most, return_placements=True
    )


def answered(*choices: dict[str, Any], last: str = "[DONE]") -> dict[str, Any]:
    """A stream that the page is told instead of the server's."""
    whole = [{"index": 0, "delta": {"content": ""}, "finish_reason": None} | one for one in choices]
    events = [*(json.dumps({"choices": [one]}) for one in whole), *([last] if last else [])]
    body = "".join(f"data: {event}\n\n" for event in events)
    return {"body": body, "content_type": "text/event-stream"}


def instead(page: Any, **told: Any) -> None:
    page.unroute(f"**{CHAT}")
    page.route(f"**{CHAT}", lambda route: route.fulfill(**told))


STATE = {"prefill_ms": 1, "decode_ms": 0, "row_bytes": 1, "row_bytes_dense": 1, "placements": []}


def marked(page: Any, number: int, result: Result, step: int, layer: int) -> None:
    """The colour in the middle of each cell is that of its token's place in a layer."""
    at = [one for one in result.placements if one.step <= step][-1]
    core, parked = at.core[layer - 1], at.parked[layer - 1]
    shares = [round(100 * part.mean()) for part in (core, parked, ~(core | parked))]
    told = page.locator(".answer").nth(number).locator(".share").all_text_contents()
    for text, name, share in zip(told, ("core", "secondary", "minor"), shares, strict=True):
        found = re.fullmatch(rf"{name} (\d+) %", text)
        assert found and abs(int(found[1]) - share) <= 1, (text, shares)
    places, first = np.select([core, parked], [1, 2], 3), 0
    for picture, cells in enumerate(result.visuals):
        own = places[first : first + len(cells.index)][cells.index >= 0]
        first += len(cells.index)
        shown = cells.index[cells.index >= 0]
        red, _, blue = np.array(page.evaluate(PLACED, [number, picture, *cells.grid])).T[:, shown]
        # Of a grey picture: orange is more red than blue, blue the other way, dark neither.
        drawn = np.select([red > blue + 40, blue > red + 40], [1, 2], 3)
        assert np.array_equal(drawn, own)
        assert (np.maximum(red, blue)[own == 3] < 90).all()


def test_dropped_pictures_under_two_policies(page: Any, tiny: LVLM, server: Running) -> None:
    images = [grey(ONE.image), grey(TWO.image)]
    # The second one's format is none that the server takes; the page makes it into one.
    drop(
        page,
        ("a.png", "image/png", data(images[0])),
        ("b.bmp", "image/bmp", data(images[1], "BMP")),
    )
    expect(page.locator("#pictures li")).to_have_count(2)
    ask(page, ONE.prompt, POLICY, "fastv")
    page.wait_for_selector(DONE)
    results = [said(tiny, images, policy) for policy in (POLICY, "fastv")]
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
            expect(answer.locator("canvas").last).to_have_attribute(
                "aria-label", re.compile(rf"step {step}, layer 3: core")
            )
            marked(page, number, result, step, 3)
    expect(page.locator("#status")).to_contain_text(results[0].text)
    for role, names in ROLES.items():
        for name in names:
            expect(page.get_by_role(role, name=name, exact=True)).to_be_visible()
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
        {"name": "b.png", "mimeType": "image/png", "buffer": base64.b64decode(data(TWO.image))},
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
    busy = {"error": {"message": "expected a free place"}}
    instead(page, body=json.dumps(busy), status=429, headers={"Retry-After": "5"})
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_have_text("expected a free place (in 5 seconds)")
    half = {"delta": {"content": "Half"}, "avl": STATE | {"tokens": 1}}
    instead(page, **answered(half, last=""))
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_contain_text("found the connection closed")
    instead(page, **answered(half, last=json.dumps(busy)))
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_have_text("expected a free place")
    expect(page.locator(".answer .text")).to_have_text("Half")
    page.unroute(f"**{CHAT}")
    page.route(f"**{CHAT}", lambda route: route.abort())
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_contain_text("is avl-serve running?")
    page.fill("#key", "another")
    page.press("#key", "Tab")
    expect(page.locator("#error")).to_contain_text("expected an API key of this server")


def test_markup_in_answers_is_text(page: Any) -> None:
    """Of an answer, a policy, an error and a question."""
    markup = "<img src=x onerror=\"document.title='wrong'\"><script>document.title='wrong'</script>"
    instead(
        page,
        **answered(
            {"avl": {"visuals": []}},
            {"delta": {"content": markup}, "avl": STATE | {"tokens": 1}},
            {"finish_reason": "stop", "avl": {"policy": markup}},
        ),
    )
    ask(page, markup, "dense")
    expect(page.locator(".answer .text")).to_have_text(markup)
    expect(page.locator(".answer h2")).to_have_text(markup)
    expect(page.locator("#history b")).to_have_text(markup)
    instead(page, body=json.dumps({"error": {"message": markup}}), status=400)
    ask(page, "Hello.", "dense")
    expect(page.locator(".answer .wrong")).to_have_text(markup)
    assert page.title() == "avl" and page.locator("main img[src='x'], main script").count() == 0


def test_a_pasted_picture_on_a_dark_phone(page: Any) -> None:
    """Nothing is wider than the screen; the colours follow the system until a button says else."""
    page.set_viewport_size({"width": 360, "height": 740})
    held = page.evaluate_handle(FILES, [["c.png", "image/png", data(TWO.image)]])
    page.evaluate(
        "held => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held}))", held
    )
    expect(page.locator("#pictures li")).to_have_count(1)
    expect(page.locator(".camera")).to_be_visible()
    ask(page, TWO.prompt, "avl", "dense", most=3)
    page.wait_for_selector(DONE)
    expect(page.locator("#history li")).to_have_count(1)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    body, colour = page.locator("body"), "background-color"
    expect(body).to_have_css(colour, "rgb(255, 255, 255)")
    page.emulate_media(color_scheme="dark")
    expect(body).to_have_css(colour, "rgb(20, 23, 28)")
    page.click("#theme")
    expect(body).to_have_css(colour, "rgb(255, 255, 255)")
    page.get_by_label("Take picture 1 away").click()
    expect(page.locator("#pictures li")).to_have_count(0)


def test_a_grid_that_lies_on_a_part_of_the_picture(page: Any) -> None:
    """The middle of a wide picture is seen, with bars above and below; a token is an overview's."""
    wide = Image.new("RGB", (200, 100), "white")
    drop(page, ("wide.png", "image/png", data(wide)))
    visual = {"grid": [2, 2], "seen": [0.25, -0.5, 0.75, 1.5], "cells": [-1, 0, 1, 2, 3]}
    core, parked = (
        {"shape": [1, 5], "bits": base64.b64encode(bytes([bits])).decode()}
        for bits in (0b11000000, 0b00100000)
    )
    placed = {"step": 0, "core": core, "parked": parked}
    instead(
        page,
        **answered(
            {"avl": {"visuals": [visual]}},
            {"delta": {"content": "x"}, "avl": STATE | {"tokens": 1, "placements": [placed]}},
            {"finish_reason": "stop"},
        ),
    )
    ask(page, "Hello.", "avl")
    page.wait_for_selector(DONE)
    expect(page.locator(".share")).to_have_text(["core 40 %", "secondary 20 %", "minor 40 %"])
    # Four columns and four rows of half a picture's height: the union of picture and grid.
    drawn = np.array(page.evaluate(PLACED, [0, 0, 4, 4])).reshape(4, 4, 3)
    assert (drawn[1:3, 0] == drawn[1:3, 3]).all() and len(set(drawn[1, 0])) == 1  # not seen: grey
    assert (drawn[1:3, 0] > 100).all() and (drawn[1:3, 0] < 200).all()
    assert drawn[1, 1, 0] > drawn[1, 1, 2] + 100 and drawn[1, 2, 2] > drawn[1, 2, 0] + 100
    assert (drawn[2, 1:3] < 90).all()  # dropped
    assert drawn[0, 1, 0] > drawn[0, 1, 2] and (drawn[0, 1] < 150).all()  # a bar, orange


def test_what_a_prompt_dropped_early_is_marked(page: Any) -> None:
    """Violet before the decoder, a corner between layers, dark in the cache."""
    drop(page, ("white.png", "image/png", data(Image.new("RGB", (100, 100), "white"))))
    visual = {"grid": [2, 2], "seen": [0, 0, 1, 1], "cells": [0, 1, 2, 3]}
    visual |= {"dropped_before": [0, 2, -1, -1]}
    core, none = (
        {"shape": [1, 4], "bits": base64.b64encode(bytes([bits])).decode()}
        for bits in (0b00010000, 0)
    )
    placed = {"step": 0, "core": core, "parked": none}
    instead(
        page,
        **answered(
            {"avl": {"visuals": [visual]}},
            {"delta": {"content": "x"}, "avl": STATE | {"tokens": 1, "placements": [placed]}},
            {"finish_reason": "stop"},
        ),
    )
    ask(page, "Hello.", "fastv")
    page.wait_for_selector(DONE)
    told = ["dropped before the decoder 25 %", "dropped between layers 25 %"]
    expect(page.locator(".early")).to_have_text(told)
    drawn = np.array(page.evaluate(PLACED, [0, 0, 20, 20])).reshape(20, 20, 3).astype(int)
    violet, dark, orange = drawn[5, 5], drawn[15, 5], drawn[15, 15]
    assert violet[2] > violet[0] > violet[1] and violet[2] > 100
    assert (dark < 90).all() and orange[0] > orange[2] + 100
    assert (drawn[5, 15] < 90).all()  # dropped, as one can see
    teal = drawn[9, 10]
    assert teal[1] > 140 and teal[0] < 40
    assert (drawn[19, 0] < 90).all()  # no corner where all layers read


def test_what_is_kept_is_bounded(page: Any) -> None:
    """In number and in bytes: the oldest go, and one that is too large is not kept at all."""
    found = page.evaluate(
        """async () => {
          const {keep, heads, body, forget} = await import("/page/history.js");
          const one = bytes => ({pictures: [new Blob([new Uint8Array(bytes)])], runs: []});
          for (let i = 0; i < 27; i++) await keep({question: `q${i}`, policies: []}, one(1));
          const many = (await heads()).map(head => head.question);
          await keep({question: "large", policies: []}, one(60e6));
          const few = (await heads()).map(head => head.question);
          await keep({question: "too large", policies: []}, one(65e6));
          await keep({question: "also large", policies: []}, one(30e6));
          const left = await heads();
          const size = (await body(left[0].id)).pictures[0].size;
          await forget();
          return [many, few, left.map(head => head.question), size, (await heads()).length];
        }"""
    )
    newest = [f"q{number}" for number in range(26, 2, -1)]
    assert found == [newest, ["large", *newest[:-1]], ["also large"], 30e6, 0]
