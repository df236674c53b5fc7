"""Which of a checkpoint's files holds its chat template, in the order of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avl_export.checkpoint.checkpoint import Checkpoint
from avl_export.checkpoint.safetensors_header import FETCH_AGAIN
from avl_export.checkpoint.supported import FamilyError

PROCESSOR = "processor_config.json"
LEGACY = "chat_template.json"
JINJA = "chat_template.jinja"
MORE = "additional_chat_templates"  # a folder of NAME.jinja
TOKENIZER_CONFIG = "tokenizer_config.json"
DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Template:
    """A template and the file it comes from; None where that has only others, by the names."""

    text: str | None
    file: str
    others: tuple[str, ...] = ()


def templates(checkpoint: Checkpoint) -> list[Template]:
    """All that a checkpoint has, those first that transformers takes.

    Its processors read processor_config.json, then chat_template.json, then chat_template.jinja;
    without any, tokenizer_config.json has the tokenizer's. Of several by name `default` counts.

    Raises:
        FamilyError: a file is no text in UTF-8.
    """
    found = [_of(checkpoint.read_json(name), name) for name in (PROCESSOR, LEGACY)]
    found.append(_jinja(checkpoint))
    found.append(_of(checkpoint.read_json(TOKENIZER_CONFIG), TOKENIZER_CONFIG))
    return [one for one in found if one is not None]


def chat_template(checkpoint: Checkpoint) -> str | None:
    """The template that counts, None if there is none.

    Raises:
        FamilyError: there are some, and none is the default.
    """
    found = templates(checkpoint)
    first = next((one for one in found if one.text is not None), None)
    if first is None and found:
        raise FamilyError(
            f"{checkpoint.folder / found[0].file}: expected a chat template named {DEFAULT}, found "
            f"{', '.join(found[0].others)[:80]}; put the one to use into {JINJA}"
        )
    return None if first is None else first.text


def template_note(checkpoint: Checkpoint) -> str | None:
    """One line about templates that are not used, or about there being none."""
    found = templates(checkpoint)
    first = next((one for one in found if one.text is not None), None)
    if first is None:
        if any(not name.endswith(".safetensors") for name in checkpoint.missing):
            return None  # a dry run: what is not here may well have one
        return (
            "the checkpoint has no chat template: a prompt is taken as it stands, with a "
            f"placeholder for each picture in front; put a {JINJA} into its folder for one"
        )
    aside = [
        one.file
        for one in found
        if one is not first and one.text is not None and one.text != first.text
    ]
    aside += [f"{one.file} ({', '.join(one.others)[:80]})" for one in found if one.others]
    if not aside:
        return None
    return (
        f"the chat template is read from {first.file}, as transformers does; left aside: "
        f"{', '.join(aside)}"
    )


def _of(settings: dict[str, Any], file: str) -> Template | None:
    value = settings.get("chat_template")
    if isinstance(value, list):
        value = {
            str(one.get("name")): one.get("template") for one in value if isinstance(one, dict)
        }
    if isinstance(value, dict):
        default, others = value.get(DEFAULT), tuple(name for name in value if name != DEFAULT)
        return Template(default if isinstance(default, str) else None, file, others)
    return Template(value, file) if isinstance(value, str) and value else None


def _jinja(checkpoint: Checkpoint) -> Template | None:
    if checkpoint.built_in:
        return None
    folder = checkpoint.folder
    more = sorted(folder.glob(f"{MORE}/*.jinja"))
    others = tuple(path.stem for path in more if path.stem != DEFAULT)
    for path in (folder / JINJA, folder / MORE / f"{DEFAULT}.jinja"):
        if path.is_file():
            return Template(_read(path), str(path.relative_to(folder)), others)
    return Template(None, MORE, others) if others else None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise FamilyError(
            f"{path}: expected a chat template in UTF-8, found {str(error)[:80]}; {FETCH_AGAIN}"
        ) from None
