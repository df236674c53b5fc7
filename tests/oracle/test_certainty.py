"""How sure a reply is of its pictures: against transformers' own distributions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from avl_plugins.policies import parse
from avl_runtime import LVLM
from avl_runtime.cli.run import main as avl_run
from avl_runtime.evaluate.certainty import Certainty, CertaintyError, certainty, certainty_of
from oracle.hf_oracle import Rules, run
from support.random_llava import draw_images, draw_shape
from support.reference import encode, load_reference

PROMPT = "What is in the picture?"
STEPS = 6
SEED = 1


@pytest.fixture(scope="module")
def made(random_checkpoint, load: Callable[..., LVLM]) -> tuple[LVLM, Path]:
    checkpoint = random_checkpoint(SEED)
    return load(checkpoint), checkpoint


def mostly_grey(image: Image.Image, side: int, drawn: list[int]) -> Image.Image:
    """A square picture with its mean in those of `side` x `side` cells that are drawn."""
    found, size = image.copy(), image.width // side
    mean = tuple(round(float(np.asarray(image)[..., c].mean())) for c in range(3))
    for cell in drawn:
        found.paste(mean, (cell % side * size, cell // side * size, (cell % side + 1) * size,
                           (cell // side + 1) * size))  # fmt: skip
    return found


def test_it_is_that_of_transformers(made: tuple[LVLM, Path]) -> None:
    model, checkpoint = made
    shape = draw_shape(SEED)
    images = draw_images(3, 2, shape.image_size)
    got = model.generate(PROMPT, images, max_new_tokens=STEPS, policy="dense", return_logits=True)
    side = model.processor.encode(PROMPT, images).media[0].cells.grid[0]
    assert images[0].width % side == 0
    rng = np.random.default_rng(0)
    count = round(0.8 * side * side)
    grey = [mostly_grey(one, side, rng.permutation(side * side)[:count].tolist()) for one in images]
    both = []
    for shown in (images, grey):
        inputs = encode(checkpoint, PROMPT, shown)
        reference = load_reference(checkpoint)
        found = run(reference, inputs, Rules(), len(got.token_ids), follow=got.token_ids)
        both.append(torch.tensor(found.logits).double().log_softmax(-1))
    seeing, blind = both
    divergence = float((seeing.exp() * (seeing - blind)).sum(-1).mean())
    entropy = float(-(seeing.exp() * seeing).sum(-1).mean())
    want = model, PROMPT, images, got, parse("dense")
    told = certainty(*want)
    assert told.divergence == pytest.approx(divergence, rel=1e-3) and divergence > 1e-3
    assert told.entropy == pytest.approx(entropy, rel=1e-4)
    assert told.score == pytest.approx(math.log(divergence / entropy), abs=1e-2)
    assert told.confidence == pytest.approx(1 / (1 + math.exp(-told.score)))
    assert certainty(*want, seed=1) != told == certainty(*want)


def test_what_does_not_look_is_not_certain() -> None:
    rows = np.random.default_rng(0).standard_normal((5, 30)).astype(np.float32)
    told = certainty_of(rows, rows)
    assert told.divergence == 0 < told.entropy and told.confidence < 1e-5
    sure = np.full((5, 30), -200, np.float32)
    sure[:, 3] = 200
    assert certainty_of(sure, rows).confidence > 0.99999
    assert Certainty(0, 0).confidence == 0.5


def test_under_a_policy_and_on_the_command_line(
    made: tuple[LVLM, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, _ = made
    image = draw_images(3, 1, draw_shape(SEED).image_size)[0]
    image.save(tmp_path / "one.png")
    command = [str(model.package.folder), PROMPT, "--image", str(tmp_path / "one.png")]
    command += ["--backend", "ort-cpu", "--threads", "1", "--max-new-tokens", str(STEPS)]
    command += ["--policy", "avl:keep=0.3,core=0.1", "--temperature", "0", "--certainty"]
    assert avl_run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["certainty"]
    asked = {"policy": "avl:keep=0.3,core=0.1", "max_new_tokens": STEPS, "temperature": 0}
    got = model.generate(PROMPT, [image], return_logits=True, **asked)
    want = certainty(model, PROMPT, [image], got, parse("avl:keep=0.3,core=0.1"))
    assert told["divergence"] == pytest.approx(want.divergence, rel=1e-5)
    assert told["confidence"] == pytest.approx(want.confidence, rel=1e-5)
    assert avl_run(command) == 0
    assert f"certainty: {want.confidence:.2f} (" in capsys.readouterr().err
    for rest in ([*command[:2], "--certainty"], [*command, "--video", "x.mp4"]):
        with pytest.raises(SystemExit):
            avl_run(rest)
        assert "--certainty masks pictures: expected --image" in capsys.readouterr().err


def test_what_there_must_be(made: tuple[LVLM, Path]) -> None:
    model, _ = made
    image = draw_images(3, 1, draw_shape(SEED).image_size)[0]
    got = model.generate(PROMPT, [image], max_new_tokens=1)
    with pytest.raises(CertaintyError, match="a result with logits, found none"):
        certainty(model, PROMPT, [image], got, parse("dense"))
    with pytest.raises(CertaintyError, match="a question about pictures"):
        certainty(model, PROMPT, [], got, parse("dense"))
    chat = model.chat()
    for _ in range(2):
        got = chat.send(PROMPT, [image], max_new_tokens=1, return_logits=True)
    with pytest.raises(CertaintyError, match="2 pictures and videos, found 1 pictures"):
        certainty(model, PROMPT, [image], got, parse("dense"))
