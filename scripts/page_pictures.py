#!/usr/bin/env python
"""Draw docs/page.png and docs/page-phone.png: the server's page, which avl-tiny answers.

    .venv/bin/python scripts/page_pictures.py

Needs a Chromium that is called chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parents[1]
COLOURS = 256
START = "import sys; from avl_runtime.cli.start import serve; sys.exit(serve())"
EXPORT = "import sys; from avl_export.start import main; sys.exit(main())"


@contextmanager
def served() -> Iterator[str]:
    """The address of a server of avl-tiny."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder) / "avl-tiny.avl"
        told = [sys.executable, "-c", EXPORT, "--model", "avl-tiny", "--out", str(package)]
        subprocess.run(told, check=True, capture_output=True)
        process = subprocess.Popen(
            [sys.executable, "-c", START, str(package), "--port", "0"],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        try:
            for line in process.stderr:
                found = re.search(r"(http://127\.0\.0\.1:\d+/)$", line.strip())
                if found is not None:
                    yield found[1]
                    break
        finally:
            process.terminate()
            process.communicate()


def ask(page: Page, address: str, picture: str, question: str, policies: list[str]) -> None:
    """Ask about a picture of samples/, and wait for the answers."""
    page.goto(address)
    page.set_input_files("#file", ROOT / "samples" / picture)
    page.fill("#question", question)
    page.fill("#policy", policies[0])
    if len(policies) > 1:
        page.check("#compare")
        page.fill("#other", policies[1])
    page.click("#ask")
    page.wait_for_selector("#results[aria-busy=false]")


def keep(shot: bytes, name: str) -> None:
    """Write a picture with few colours."""
    image = Image.open(io.BytesIO(shot)).convert("RGB")
    few = image.quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(ROOT / "docs" / name, optimize=True)


def main() -> int:
    """Draw both; returns the exit status."""
    chromium = shutil.which("chromium")
    if chromium is None:
        print("expected a Chromium, found none; run scripts/page.sh --pictures", file=sys.stderr)
        return 1
    with served() as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium)
        wide = browser.new_page(viewport={"width": 1180, "height": 1000})
        ask(wide, address, "page.png", "Read the text.", ["avl:keep=0.5,core=0.3", "fastv"])
        keep(wide.screenshot(full_page=True), "page.png")
        phone = browser.new_context(
            viewport={"width": 400, "height": 860},
            color_scheme="dark",
            has_touch=True,
            is_mobile=True,
        ).new_page()
        ask(phone, address, "scene.png", "Describe the image.", ["avl:keep=0.5,core=0.2"])
        phone.fill("#layer", "3")
        phone.fill("#step", "12")
        keep(phone.screenshot(full_page=True), "page-phone.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
