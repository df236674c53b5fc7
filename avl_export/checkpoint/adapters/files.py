"""Files of a tokenizer or a processor that training left beside an adapter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from avl_export.checkpoint.checkpoint import TOKENIZER, Checkpoint
from avl_export.checkpoint.processor_files import differs, settings_of
from avl_export.checkpoint.templates import TOKENIZER_CONFIG, templates
from avl_plugins.errors import AvlError

GENERATION = "generation_config.json"
# What tools note of themselves, and how they call a tokenizer in training.
PASSING = ("transformers_version", "_from_model_config", "padding", "truncation")


def aside_note(adapter: Path, base: Checkpoint) -> str | None:
    """One line about files in the folder `adapter` that say otherwise than those of `base`.

    None where there are none, or where the base's are not at hand.
    """
    if base.built_in or adapter.resolve() == base.folder.resolve():
        return None
    own = replace(base, folder=adapter, stand_ins={})
    looks: tuple[Callable[[Checkpoint, Checkpoint], list[str]], ...] = (
        _tokens,
        _template,
        _processors,
        _generation,
    )
    found: list[str] = []
    for look in looks:
        found += look(own, base)
    found = list(dict.fromkeys(found))
    if not found:
        return None
    return (
        f"beside the adapter {', '.join(found)} {'says' if len(found) == 1 else 'say'} otherwise "
        "than the base's files, which count; to use what was trained with, copy it into a copy of "
        "the base and name that with --model"
    )


def _tokens(own: Checkpoint, base: Checkpoint) -> list[str]:
    names = [name for name in (TOKENIZER,) if _json_differs(own, base, name)]
    told, known = (_json(c, TOKENIZER_CONFIG) for c in (own, base))
    if any(_text(told[key]) != _text(known.get(key)) for key in told if _is_token(key)):
        names.append(TOKENIZER_CONFIG)
    return names


def _is_token(key: str) -> bool:
    return key.endswith("_token") or key == "additional_special_tokens"


def _text(value: Any) -> Any:
    return value.get("content") if isinstance(value, dict) else value


def _template(own: Checkpoint, base: Checkpoint) -> list[str]:
    theirs = next((one for one in templates(base) if one.text is not None), None)
    try:
        mine = next((one for one in templates(own) if one.text is not None), None)
    except AvlError:  # damaged, and not needed
        return []
    return [] if mine is None or (theirs and theirs.text == mine.text) else [mine.file]


def _processors(own: Checkpoint, base: Checkpoint) -> list[str]:
    names = []
    for kind in ("image", "video"):
        theirs = settings_of(base, kind)[:1]
        try:
            mine = settings_of(own, kind)[:1]
        except AvlError:
            continue
        if mine and theirs and differs(mine[0].values, theirs[0].values):
            names.append(mine[0].file)
    return names


def _generation(own: Checkpoint, base: Checkpoint) -> list[str]:
    return [GENERATION] if _json_differs(own, base, GENERATION) else []


def _json_differs(own: Checkpoint, base: Checkpoint, name: str) -> bool:
    here, there = own.folder / name, base.folder / name
    if not here.is_file() or (there.is_file() and here.read_bytes() == there.read_bytes()):
        return False
    told, known = (
        {key: value for key, value in _json(c, name).items() if key not in PASSING}
        for c in (own, base)
    )
    return told != known


def _json(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """The object in a file, of a damaged one nothing: the adapter's are not needed."""
    try:
        return checkpoint.read_json(name)
    except AvlError:
        return {}
