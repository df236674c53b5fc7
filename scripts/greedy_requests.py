"""The worker of greedy_tokens.py: asks a package fixed questions and notes tokens and logits.

    PYTHON greedy_requests.py JOB.json

Runs under the Python of any checkout, so it names nothing of avl but `avl_runtime.LVLM`.
"""

from __future__ import annotations

import json
import sys
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from avl_runtime import LVLM

# Greedy, whatever the checkpoint's generation settings; only options that were always there, and
# none that costs a step anything.
GREEDY: dict[str, Any] = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}
FRAMES = 8  # of the video
POLICIES = (
    "dense",
    "fastv",
    "fastv:keep=0.25",
    "fastv:layer=4,keep=0.1",
    "avl",
    "avl:keep=1.0,core=0.2",
    "avl:keep=0.25,core=0.25",
    "avl:core=0.1,refresh=8",
    "avl:refresh=1",
    "avl:text=0.6,text_min=4",
    "avl:text=0.3,text_min=2,heavy=0",
    "avl:text=0.5,text_min=4,heavy=1",
    "avl:prefill=0.7",
    "avl:keep=0.3,core=0.1,refresh=2,prefill=0.5,prefill_layer=4,text=0.6,text_min=8",
    "avl+fastv",
    "avl:keep=0.3,core=0.1,refresh=4,text=0.6,text_min=4+fastv:keep=0.75",
    "random",
    "random:keep=0.25,layer=4,seed=7",
    "random:of=avl",
    "random:of=avl,keep=0.25,core=0.1,refresh=2,seed=3",
)
# Of three layers that are split after the second.
OF_FAMILIES = (
    "dense",
    "fastv",
    "avl",
    "avl:core=0.1,refresh=8",
    "avl:text=0.5,text_min=4",
    "avl:prefill=0.7",
    "avl+fastv",
    "random:of=avl",
)


class Asker:
    """One model under one policy.

    Attributes:
        words: turn a prompt into words that the model's tokenizer has.
        tokens: new ones of a reply, at most.
    """

    def __init__(
        self,
        model: LVLM,
        policy: str,
        pictures: Mapping[str, Image.Image],
        words: Callable[[str], str],
        tokens: int,
    ) -> None:
        self._model = model
        self._policy = policy
        self._pictures = pictures
        self._words = words
        self._options = {**GREEDY, "max_new_tokens": tokens}

    def ask(
        self, prompt: str, names: Sequence[str] = (), video: bool = False, logits: bool = True
    ) -> list[Any]:
        """A single request."""
        images = [self._pictures[name] for name in names]
        return [
            self._model.generate(
                self._words(prompt),
                images=images,
                videos=[film(self._pictures["scene"])] if video else [],
                policy=self._policy,
                return_logits=logits,
                **self._options,
            )
        ]

    def chat(self) -> list[Any]:
        """Three turns; the last one looks back."""
        chat = self._model.chat(policy=self._policy)
        turns = [
            ("Describe the image.", ["scene"]),
            ("Read the text.", ["page"]),
            ("How many objects are there?", []),
        ]
        return [
            chat.send(
                self._words(prompt),
                images=[self._pictures[name] for name in names],
                return_logits=True,
                **self._options,
            )
            for prompt, names in turns
        ]

    def batch(self) -> list[Any]:
        """Prompts of different lengths together."""
        asked: list[tuple[str, list[str]]] = [
            ("Read the text.", ["page"]),
            ("What is this?", []),
            ("How many objects are there, and of which colour is each of them?", ["scene"]),
            ("Describe the images.", ["scene", "page"]),
        ]
        return list(
            self._model.generate_batch(
                [self._words(prompt) for prompt, _ in asked],
                images=[[self._pictures[name] for name in names] for _, names in asked],
                policy=self._policy,
                return_logits=True,
                **self._options,
            )
        )


REQUESTS: dict[str, Callable[[Asker], list[Any]]] = {
    "text": lambda asker: asker.ask("Which of these words is the third one?"),
    "page": lambda asker: asker.ask("Read the text.", ["page"]),
    # Without its logits a greedy reply may be found without computing all of them.
    "page-tokens-only": lambda asker: asker.ask("Read the text.", ["page"], logits=False),
    "scene": lambda asker: asker.ask("How many objects are there?", ["scene"]),
    "caption": lambda asker: asker.ask("Describe the image.", ["scene"]),
    "two-pictures": lambda asker: asker.ask("Read the text.", ["scene", "page"]),
    "three-pictures": lambda asker: asker.ask("Describe the images.", ["page", "scene", "page"]),
    "chat": Asker.chat,
    "batch": Asker.batch,
    "video": lambda asker: asker.ask("Describe the video.", video=True),
    "video-and-picture": lambda asker: asker.ask("Which is new?", ["page"], video=True),
}
VIDEOS = ("video", "video-and-picture")


def film(picture: Image.Image) -> list[Image.Image]:
    """A picture that turns."""
    return [picture.rotate(number * 360 / FRAMES) for number in range(FRAMES)]


def numbered(prompt: str) -> str:
    """A prompt in the words w20, w21, … of make_random.py's tokenizers."""
    return " ".join(f"w{20 + zlib.crc32(word.encode()) % 200}" for word in prompt.split())


def main() -> None:
    """Ask all; prints tokens by policy and request, and leaves logits in a file.

    The job's fields: package, policies, requests, pictures (paths by name), words ("plain" or
    "numbered"), tokens, threads, logits (the .npz to write: [T, V] float32 of each reply, named
    POLICY|REQUEST|NUMBER).
    """
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    model = LVLM.load(job["package"], backend="ort-cpu", threads=job["threads"])
    pictures = {name: Image.open(path).convert("RGB") for name, path in job["pictures"].items()}
    words = numbered if job["words"] == "numbered" else str
    found: dict[str, dict[str, list[list[int]]]] = {}
    logits: dict[str, NDArray[np.float32]] = {}
    for policy in job["policies"]:
        asker = Asker(model, policy, pictures, words, job["tokens"])
        found[policy] = {}
        for name in job["requests"]:
            results = REQUESTS[name](asker)
            found[policy][name] = [list(map(int, result.token_ids)) for result in results]
            for number, result in enumerate(results):
                if result.logits is not None:
                    logits[f"{policy}|{name}|{number}"] = result.logits
    np.savez(job["logits"], **logits)  # type: ignore[arg-type]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
