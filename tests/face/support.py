"""Manifests and packages around the avl-tiny checkpoint, without an export."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers import processors as post

from avl_runtime.package.manifest import (
    FORMAT_VERSION,
    Dims,
    Embedding,
    FileEntry,
    ImageEncoder,
    Manifest,
    Tokens,
    Weights,
)
from avl_runtime.package.package import Package
from avl_runtime.prompts.processor import Processor
from avl_runtime.vision.fixed import FixedImage
from avl_runtime.vision.steps import ImageProcessing

MODEL = Path(__file__).parents[2] / "avl_export" / "models" / "avl-tiny"

LLAVA_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] != 'system' %}"
    "{{ message['role'].upper() + ': '}}{% endif %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '<image>\n' }}{% endfor %}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ content['text'] + ' '}}{% endfor %}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] + ' '}}{% endgeneration %}{% endfor %}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
CHATML_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}"
    "{{ '</s>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% endif %}"
)


def image_processing(**changes: object) -> ImageProcessing:
    """avl-tiny's, read from the checkpoint, with changes."""
    raw = json.loads((MODEL / "processor_config.json").read_text())["image_processor"]
    values = {
        "convert_rgb": True,
        "resize": raw["size"]["shortest_edge"],
        "resample": raw["resample"],
        "crop": (raw["crop_size"]["height"], raw["crop_size"]["width"]),
        "rescale": raw["rescale_factor"],
        "mean": tuple(raw["image_mean"]),
        "std": tuple(raw["image_std"]),
    }
    return ImageProcessing(**{**values, **changes})  # type: ignore[arg-type]


def manifest(
    template: str | None = None,
    tokens: Tokens | None = None,
    tokenizer: bytes = b"",
    image_token: int = 3,
) -> Manifest:
    """What the face reads of a manifest; the graphs it names do not exist."""
    return Manifest(
        format_version=FORMAT_VERSION,
        producer="test",
        family="llava",
        model="avl-tiny",
        dtype="fp32",
        dims=Dims(192, 512, 6, 6, 3, 32, 386, 2048, 1),
        image=ImageEncoder(
            "vision.onnx",
            "<image>",
            image_token,
            FixedImage("fixed", image_processing(), (12, 12), 144),
        ),
        video=None,
        segments=(),
        embedding=Embedding("model.safetensors", 0, "F16", (386, 192)),
        quantization=None,
        tokens=tokens or Tokens(1, (2,), 0),
        chat_template=template,
        default_policy="dense",
        weights=Weights(None, ()),
        files=(FileEntry("tokenizer.json", len(tokenizer), hashlib.sha256(tokenizer).hexdigest()),),
        engines=(),
    )


def tiny_processor(template: str | None = "tiny") -> Processor:
    """avl-tiny's processor; `template` replaces its chat template."""
    if template == "tiny":
        template = (MODEL / "chat_template.jinja").read_text()
    data = (MODEL / "tokenizer.json").read_bytes()
    return Processor.from_package(Package(MODEL, manifest(template, tokenizer=data)))


def sentencepiece_tokenizer(*, legacy: bool) -> Tokenizer:
    """A tokenizer built as Llama's: BPE over whole texts, bytes for what it does not know."""
    pieces = ["<unk>", "<s>", "</s>", "<image>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", *"abcdefghijklmnoprstuwyzABENRSTU:.,?\n", "é", "日", "本"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "a"), ("U", "S"), ("E", "R")]
    merges += [("▁", "US"), ("▁US", "ER"), ("▁", "▁"), ("o", "n"), ("日", "本")]
    pieces += [left + right for left, right in merges]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    if legacy:
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.add_special_tokens(
        [AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>", "<image>")]
    )
    tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer
