"""Read image processing and special tokens from a checkpoint's JSON files."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.processor_files import settings_of
from avl_export.checkpoint.supported import FamilyError
from avl_runtime.package.manifest import Tokens
from avl_runtime.vision.steps import ImageProcessing

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SIGLIP_MEAN = SIGLIP_STD = (0.5, 0.5, 0.5)
BILINEAR, BICUBIC = 2, 3


def image_processor(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Parameters of the image processor, and the path of the file that holds them.

    They are those of processor_config.json's image_processor, or of preprocessor_config.json.

    Raises:
        FamilyError: neither is there.
    """
    found = settings_of(checkpoint, "image")
    if not found:
        raise FamilyError(
            f"{checkpoint.folder}: expected preprocessor_config.json or processor_config.json "
            "with an image_processor, found neither; fetch them from the model's page"
        )
    return found[0].values, str(checkpoint.folder / found[0].file)


def image_processing(
    checkpoint: Checkpoint, image_size: int, *, pads_batches: bool = False
) -> ImageProcessing:
    """The steps of an image processor: SigLIP's if it is called so, or CLIP's.

    Args:
        pads_batches: whether do_pad only makes batches of pictures even, which changes nothing.

    Raises:
        FamilyError: there are no settings, or a step is none that the runtime can do.
    """
    raw, place = image_processor(checkpoint)
    if pads_batches:
        raw = {**raw, "do_pad": False}
    siglip = str(raw.get("image_processor_type")).startswith("SiglipImageProcessor")
    defaults = siglip_defaults(image_size) if siglip else clip_defaults(image_size)
    return processing_of(raw, place, defaults)


def video_processor(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Parameters of the video processor, and the path of the file that holds them.

    As in transformers, those of the image processor are taken where there are no others.

    Raises:
        FamilyError: there are none at all.
    """
    found = settings_of(checkpoint, "video")
    if not found:
        return image_processor(checkpoint)
    return found[0].values, str(checkpoint.folder / found[0].file)


def clip_defaults(image_size: int) -> dict[str, Any]:
    """What a CLIP processor does unless its settings say otherwise."""
    return {
        **tile_defaults(image_size),
        "size": {"shortest_edge": image_size},
        "do_center_crop": True,
        "crop_size": {"height": image_size, "width": image_size},
    }


def siglip_defaults(image_size: int) -> dict[str, Any]:
    """What a SigLIP processor does unless its settings say otherwise: it cuts nothing off."""
    return tile_defaults(image_size) | {"image_mean": SIGLIP_MEAN, "image_std": SIGLIP_STD}


def tile_defaults(side: int) -> dict[str, Any]:
    """What a processor without cropping does unless its settings say otherwise."""
    return {
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": BICUBIC,
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
    }


def processing_of(
    raw: Mapping[str, Any], place: str, defaults: Mapping[str, Any]
) -> ImageProcessing:
    """The steps that settings ask for.

    Args:
        raw: a processor's settings; null stands for the default.
        place: the file they come from.
        defaults: what transformers takes where they say nothing.

    Raises:
        FamilyError: a step is none that the runtime can do.
    """
    settings = {**defaults, **{name: value for name, value in raw.items() if value is not None}}
    if settings.get("do_pad"):
        raise FamilyError(
            f"{place}: expected resize, crop, rescale and normalize only, found do_pad; "
            "this version of avl cannot pad images"
        )
    resample = settings["resample"]
    if isinstance(resample, bool) or resample not in range(6):
        raise _unfit(place, "resample", "a Pillow filter from 0 to 5", resample)
    resize = settings["size"] if settings["do_resize"] else None
    crop = settings.get("crop_size") if settings["do_center_crop"] else None
    normalize = settings["do_normalize"]
    return ImageProcessing(
        convert_rgb=bool(settings["do_convert_rgb"]),
        resize=None if resize is None else _resize(resize, place),
        resample=resample,
        crop=None if crop is None else _height_width(crop, place, "crop_size"),
        rescale=_number(settings, place) if settings["do_rescale"] else None,
        mean=_channels(settings["image_mean"], place) if normalize else None,
        std=_channels(settings["image_std"], place) if normalize else None,
    )


def check_side(steps: ImageProcessing, side: int, place: str) -> None:
    """Refuse steps that make pictures of another size than a tower has learned positions for.

    Args:
        side: of the square pictures that the tower reads, in pixels.
        place: the file that the steps come from.

    Raises:
        FamilyError: they make others.
    """
    made = steps.resize if steps.crop is None else steps.crop
    if made != (side, side):
        raise FamilyError(
            f"{place}: expected pictures of {side} x {side}, the image_size of config.json, found "
            f"size {steps.resize} and crop_size {steps.crop}; fetch both files again"
        )


def special_tokens(checkpoint: Checkpoint, config: Any) -> Tokens:
    """Token ids as `generate` would use them: generation_config.json first, then config.json.

    Negative ids, as -1 in configurations of LLaMA's first generation, stand for none.

    Raises:
        FamilyError: no token ends a reply, or an id is no number.
    """
    generation = checkpoint.read_json("generation_config.json")
    text = config.text_config

    def find(name: str) -> list[int]:
        for value in (
            generation.get(name),
            checkpoint.config.get(name),
            getattr(text, name, None),
        ):
            given = value if isinstance(value, list) else [value]
            wrong = next((one for one in given if type(one) not in (int, type(None))), None)
            if wrong is not None:
                raise _unfit(str(checkpoint.folder), "bos, eos and pad ids", "token ids", wrong)
            found = [one for one in given if one is not None and one >= 0]
            if found:
                return found
        return []

    ends = find("eos_token_id")
    if not ends:
        raise FamilyError(
            f"{checkpoint.folder}: expected an eos_token_id in generation_config.json or "
            "config.json, found none; add it"
        )
    return Tokens(
        bos=next(iter(find("bos_token_id")), None),
        eos=tuple(ends),
        pad=next(iter(find("pad_token_id")), None),
    )


def token_text(checkpoint: Checkpoint, token: int) -> str:
    """The text of an added token, as tokenizer.json spells it.

    Raises:
        FamilyError: the tokenizer has no such added token.
    """
    added = checkpoint.read_json("tokenizer.json").get("added_tokens", [])
    for entry in added if isinstance(added, list) else []:
        if isinstance(entry, dict) and entry.get("id") == token:
            return str(entry.get("content"))
    raise FamilyError(
        f"{checkpoint.folder / 'tokenizer.json'}: expected token {token} of config.json among "
        "its added tokens, found none; fetch the checkpoint again, or convert its tokenizer with "
        "transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    )


def named_token(checkpoint: Checkpoint, name: str) -> str | None:
    """The text of a token that tokenizer_config.json names, as transformers' tokenizer has it."""
    settings = checkpoint.read_json("tokenizer_config.json")
    extra = settings.get("extra_special_tokens")
    found = settings.get(name) or (extra.get(name) if isinstance(extra, dict) else None)
    if isinstance(found, dict):
        found = found.get("content")
    return found if isinstance(found, str) and found else None


def known_token(checkpoint: Checkpoint, name: str) -> str:
    """As `named_token`, of a token without which transformers' processor does not work.

    Raises:
        FamilyError: tokenizer_config.json does not name it.
    """
    found = named_token(checkpoint, name)
    if found is None:
        raise FamilyError(
            f"{checkpoint.folder / 'tokenizer_config.json'}: expected {name}, as transformers' "
            "processor does, found none; fetch the checkpoint again"
        )
    return found


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
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise _unfit(place, "image_mean and image_std", "three numbers", value)
    red, green, blue = value
    return (float(red), float(green), float(blue))


def _number(settings: Mapping[str, Any], place: str) -> float:
    value = settings["rescale_factor"]
    if not _is_number(value):
        raise _unfit(place, "rescale_factor", "a number", value)
    return float(value)


def _is_number(value: Any) -> bool:
    # A whole number may be too long for a float.
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 53
    return whole or (isinstance(value, float) and math.isfinite(value))


def _unfit(place: str, name: str, expected: str, found: Any) -> FamilyError:
    return FamilyError(
        f"{place}: expected {name} to be {expected}, found {str(found)[:60]}; fix the file"
    )
