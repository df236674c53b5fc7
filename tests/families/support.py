"""Small random checkpoints of any family, with transformers' own model and processor beside them.

A family's test file describes its variants as `Case`s and inherits its tests from
`shared.FamilyTests`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerFast

from avl_export.cli import main as avl_export
from avl_export.graph.trace import Traced
from avl_runtime import LVLM
from support.random_parts import byte_level_tokenizer, randomize
from support.traced import traced_once

CORPUS = (
    "USER: ASSISTANT: user assistant system [INST] [/INST] What is in the picture? Describe the "
    "image. Read the text. How many objects are there? You are a helpful assistant. Naïve façade."
)

Images = list[Image.Image]


def call_processor(
    processor: Any, text: str, images: Images, videos: list[Images], **options: Any
) -> Mapping[str, Any]:
    """The way in which most processors are called."""
    shown = {"images": images, "videos": videos}
    options |= {kind: sources for kind, sources in shown.items() if sources}
    return processor(text=text, return_tensors="pt", **options)


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One variant of a family, small.

    Attributes:
        name: tells variants apart in the names of tests.
        model: transformers' class, with `model.language_model` and `lm_head`.
        config: its configuration. Ids of special tokens are places in `special`.
        special: the special tokens in the order of their ids, from 0.
        template: the chat template, jinja.
        processor: makes transformers' processor around a tokenizer; it has an `image_processor`.
        eos, pad: two of the special tokens.
        bos: what the tokenizer writes in front of every text, or None.
        files: further JSON files in the folder, by name, or instead of what is saved by itself.
        encode: calls the processor, see `call_processor`.
    """

    name: str
    model: Any
    config: Any
    special: tuple[str, ...]
    template: str
    processor: Callable[[PreTrainedTokenizerFast], Any]
    eos: str = "<|im_end|>"
    pad: str = "<|endoftext|>"
    bos: str | None = None
    files: Mapping[str, Any] = field(default_factory=dict)
    encode: Callable[..., Mapping[str, Any]] = call_processor


class Made:
    """A case as a checkpoint folder, and what is made of it, each on first use.

    The folder is as on the hub: config.json, generation_config.json, model.safetensors,
    tokenizer.json, tokenizer_config.json, preprocessor_config.json, chat_template.jinja.
    """

    def __init__(self, case: Case, folder: Path) -> None:
        self.case = case
        self.options: tuple[str, ...] = ()
        self.folder = folder / case.name
        self.graphs: dict[Any, Traced] = {}
        write_checkpoint(case, self.folder)

    def exported_with(self, *options: str) -> Made:
        """The same checkpoint, as avl-export makes a package of it with further options."""
        other = copy.copy(self)
        other.options = options
        for name in ("package", "model"):
            other.__dict__.pop(name, None)
        return other

    @functools.cached_property
    def package(self) -> Path:
        """Exported in float32, and checked against transformers by avl-export itself."""
        out = self.folder.parent / f"{self.case.name}{''.join(self.options)}.avl"
        with traced_once(self.graphs):
            command = ["--model", str(self.folder), "--out", str(out), "--check"]
            assert avl_export([*command, *self.options]) == 0
        return out

    @functools.cached_property
    def model(self) -> LVLM:
        """The package, loaded."""
        return LVLM.load(self.package, backend="ort-cpu", threads=1)

    @functools.cached_property
    def reference(self) -> Any:
        """transformers' model, float32, eager attention."""
        return self.case.model.from_pretrained(
            self.folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @functools.cached_property
    def exact(self) -> Any:
        """The same in float64."""
        return self.case.model.from_pretrained(
            self.folder, dtype=torch.float64, attn_implementation="eager"
        ).eval()

    @functools.cached_property
    def processor(self) -> Any:
        """transformers' processor."""
        return self.case.processor(make_tokenizer(self.case))

    @property
    def visual(self) -> tuple[int, ...]:
        """Ids of image and video tokens."""
        ids = [getattr(self.case.config, f"{kind}_token_id", None) for kind in ("image", "video")]
        return tuple(token for token in ids if token is not None)

    def encode(
        self,
        prompt: str,
        images: Sequence[Image.Image] = (),
        videos: Sequence[Sequence[Image.Image]] = (),
    ) -> dict[str, Tensor]:
        """One user turn as transformers' model takes it."""
        content = [{"type": "image"} for _ in images] + [{"type": "video"} for _ in videos]
        content.append({"type": "text", "text": prompt})
        return self.encode_messages([{"role": "user", "content": content}], images, videos)

    def encode_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image] = (),
        videos: Sequence[Sequence[Image.Image]] = (),
    ) -> dict[str, Tensor]:
        """A conversation as transformers' model takes it."""
        text = self.processor.apply_chat_template(list(messages), add_generation_prompt=True)
        # As transformers' own apply_chat_template(tokenize=True) does.
        special = self.case.bos is None or not text.startswith(self.case.bos)
        films = [list(video) for video in videos]
        return dict(
            self.case.encode(self.processor, text, list(images), films, add_special_tokens=special)
        )

    def generate(self, inputs: Mapping[str, Tensor], steps: int) -> tuple[list[int], np.ndarray]:
        """Greedy tokens and their logits [steps, V]."""
        with torch.inference_mode():
            out = self.reference.generate(
                **inputs,
                max_new_tokens=steps,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        return new.tolist(), torch.cat(out.logits).float().numpy()


def write_checkpoint(case: Case, folder: Path) -> None:
    """Write a case's folder.

    Special tokens never win greedy decoding, so a run has exactly as many steps as it asks for.
    """
    torch.manual_seed(0)
    model = case.model(case.config).eval()
    randomize(model, len(case.special))
    ids = {"eos_token_id": case.special.index(case.eos)}
    ids["pad_token_id"] = case.special.index(case.pad)
    if case.bos is not None:
        ids["bos_token_id"] = case.special.index(case.bos)
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer(case)
    tokenizer.save_pretrained(folder)
    case.processor(tokenizer).image_processor.save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(case.template, encoding="utf-8")
    for name, content in case.files.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def make_tokenizer(case: Case) -> PreTrainedTokenizerFast:
    """Byte-level BPE with the case's special tokens, its vocabulary filled with words."""
    named = {"image_token_id": "image_token", "video_token_id": "video_token"}
    extra = {
        name: case.special[token]
        for key, name in named.items()
        if (token := getattr(case.config, key, None)) is not None
    }
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_level_tokenizer(
            CORPUS, case.special, case.bos, case.config.get_text_config().vocab_size
        ),
        bos_token=case.bos,
        eos_token=case.eos,
        pad_token=case.pad,
        extra_special_tokens=extra,
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        chat_template=case.template,
    )


def without_checks(processor_class: Any) -> Any:
    """A processor class that takes any object as a part.

    transformers insists on a video processor of its own, and its own need torchvision.
    """

    class Unchecked(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    return Unchecked


def picture(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """An RGB picture of `size` (width, height): noise in coarse blocks."""
    rng = np.random.default_rng(seed)
    width, height = size
    blocks = rng.integers(0, 256, (height // 6 + 2, width // 6 + 2, 3), dtype=np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BILINEAR)


def clip(frames: int, size: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """A video: its frames, all different."""
    return [picture(size, 1000 * seed + number) for number in range(frames)]


def refused(made: Made, folder: Path, changes: Mapping[str, Mapping[str, Any]]) -> str:
    """The line with which avl-export refuses a checkpoint whose JSON files are changed.

    Args:
        folder: an empty one, for the changed copy.
        changes: file name -> keys with new values.
    """
    copy = folder / "changed"
    shutil.copytree(made.folder, copy)
    for name, values in changes.items():
        content = json.loads((copy / name).read_text(encoding="utf-8"))
        (copy / name).write_text(json.dumps(content | values), encoding="utf-8")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = avl_export(["--model", str(copy), "--out", str(folder / "x.avl"), "--dry-run"])
    assert status == 1, said.getvalue()
    lines = said.getvalue().strip().splitlines()
    assert len(lines) == 1
    return lines[0]
