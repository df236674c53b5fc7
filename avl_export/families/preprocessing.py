"""Read image processing, special tokens and the chat template from a checkpoint's JSON files."""

from __future__ import annotations

from typing import Any

from avl_export.checkpoint import Checkpoint
from avl_export.families.base import FamilyError
from avl_runtime.package import ImageProcessing, Tokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = 3


def image_processing(checkpoint: Checkpoint, image_size: int) -> ImageProcessing:
    """The steps of preprocessor_config.json, or of processor_config.json's image_processor.

    Raises:
        FamilyError: neither is there, or a step is none that the runtime can do.
    """
    raw = checkpoint.read_json("processor_config.json").get("image_processor")
    where = "processor_config.json"
    if not isinstance(raw, dict):
        raw, where = checkpoint.read_json("preprocessor_config.json"), "preprocessor_config.json"
    if not raw:
        raise FamilyError(
            f"{checkpoint.folder}: expected preprocessor_config.json or processor_config.json "
            "with an image_processor, found neither; fetch them from the model's page"
        )
    place = f"{checkpoint.folder / where}"
    if raw.get("do_pad"):
        raise FamilyError(
            f"{place}: expected resize, crop, rescale and normalize only, found do_pad; "
            "this version of avl cannot pad images"
        )
    default = {"height": image_size, "width": image_size}
    crop = raw.get("crop_size", default) if raw.get("do_center_crop", True) else None
    resize = raw.get("size", {"shortest_edge": image_size}) if raw.get("do_resize", True) else None
    normalize = raw.get("do_normalize", True)
    resample = raw.get("resample", BICUBIC)
    if isinstance(resample, bool) or resample not in range(6):
        raise _unfit(place, "resample", "a Pillow filter from 0 to 5", resample)
    return ImageProcessing(
        convert_rgb=bool(raw.get("do_convert_rgb", True)),
        resize=None if resize is None else _resize(resize, place),
        resample=resample,
        crop=None if crop is None else _height_width(crop, place, "crop_size"),
        rescale=float(raw.get("rescale_factor", 1 / 255)) if raw.get("do_rescale", True) else None,
        mean=_channels(raw.get("image_mean", CLIP_MEAN), place) if normalize else None,
        std=_channels(raw.get("image_std", CLIP_STD), place) if normalize else None,
    )


def special_tokens(checkpoint: Checkpoint, config: Any) -> Tokens:
    """Token ids as `generate` would use them: generation_config.json first, then config.json."""
    generation = checkpoint.read_json("generation_config.json")
    text = config.text_config

    def find(name: str) -> Any:
        return next(
            (
                value
                for value in (
                    generation.get(name),
                    checkpoint.config.get(name),
                    getattr(text, name, None),
                )
                if value is not None
            ),
            None,
        )

    eos = find("eos_token_id")
    if eos is None:
        raise FamilyError(
            f"{checkpoint.folder}: expected an eos_token_id in generation_config.json or "
            "config.json, found none; add it"
        )
    ends = eos if isinstance(eos, list) else [eos]
    bos, pad = find("bos_token_id"), find("pad_token_id")
    for token in (*ends, bos, pad):
        if token is not None and (not isinstance(token, int) or token < 0):
            raise _unfit(str(checkpoint.folder), "bos, eos and pad ids", "token ids", token)
    return Tokens(bos=bos, eos=tuple(ends), pad=pad, image=config.image_token_id)


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The template where transformers looks for it, most specific first."""
    jinja = checkpoint.folder / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        found = checkpoint.read_json(name).get("chat_template")
        if isinstance(found, list):
            named = {str(t.get("name")): t.get("template") for t in found if isinstance(t, dict)}
            found = named.get("default")
        if isinstance(found, str):
            return found
    return None


def _resize(value: Any, place: str) -> int | tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, dict) and isinstance(value.get("shortest_edge"), int):
        if value.get("longest_edge") is not None:
            raise _unfit(place, "size", "shortest_edge, or height and width", value)
        return int(value["shortest_edge"])
    return _height_width(value, place, "size")


def _height_width(value: Any, place: str, name: str) -> tuple[int, int]:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    if isinstance(value, dict):
        height, width = value.get("height"), value.get("width")
        if isinstance(height, int) and isinstance(width, int):
            return (height, width)
    raise _unfit(place, name, "height and width", value)


def _channels(value: Any, place: str) -> tuple[float, float, float]:
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise _unfit(place, "image_mean and image_std", "three numbers", value)
    red, green, blue = value
    return (float(red), float(green), float(blue))


def _unfit(place: str, name: str, expected: str, found: Any) -> FamilyError:
    return FamilyError(
        f"{place}: expected {name} to be {expected}, found {str(found)[:60]}; fix the file"
    )
