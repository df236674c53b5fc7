"""What a package says about texts: its tokenizer, special tokens, template and defaults."""

from __future__ import annotations

from dataclasses import dataclass, replace

from PIL import Image

from avl_export.checkpoint.checkpoint import TOKENIZER, Checkpoint
from avl_export.checkpoint.generation_config import generation_defaults
from avl_export.checkpoint.supported import FamilyError
from avl_export.checkpoint.templates import template_note, templates
from avl_export.checkpoint.tokenizer import PackagedTokenizer, packaged_tokenizer
from avl_export.families import Family
from avl_plugins.errors import quoted
from avl_runtime.package.generation_defaults import GenerationDefaults
from avl_runtime.package.manifest import Tokens
from avl_runtime.prompts.chat_template import ChatTemplate, TemplateError
from avl_runtime.prompts.messages import said_by
from avl_runtime.vision import Kind


@dataclass(frozen=True, slots=True)
class Texts:
    """Everything about texts that an export writes.

    Attributes:
        tokenizer: None in a dry run that goes on without tokenizer.json.
        tokens: as in the manifest.
        generation: defaults of requests.
        notes: lines that people shall read.
    """

    tokenizer: PackagedTokenizer | None
    tokens: Tokens
    generation: GenerationDefaults
    notes: tuple[str, ...]


def read_texts(checkpoint: Checkpoint, family: Family) -> Texts:
    """Read them and see that they fit the model.

    Raises:
        CheckpointError: tokenizer.json is damaged.
        FamilyError: the chat template is, or what every prompt holds has tokens beyond the matrix.
    """
    defaults, left_out = generation_defaults(checkpoint)
    traits = family.traits
    tokens, notes = traits.tokens, [left_out]
    if traits.chat_template is None or templates(checkpoint):  # else the family knows one
        notes.append(template_note(checkpoint))
    tokenizer, rows = None, family.decoder.dims.vocab_size
    if TOKENIZER not in checkpoint.missing:
        tokenizer = packaged_tokenizer(checkpoint)
        if traits.bare:
            tokenizer = tokenizer.bare()
        find = tokenizer.tokenizer.token_to_id
        names = tokenizer.names
        tokens = replace(
            tokens,
            bos=find(names["bos_token"]) if "bos_token" in names else None,
            pad=find(names["pad_token"]) if "pad_token" in names else None,
            names=tuple(names.items()),
        )
        _check_prompts(checkpoint, family, tokenizer, rows)
        notes += [tokenizer.note, _beyond_note(family, tokenizer, rows)]
    return Texts(tokenizer, tokens, defaults, tuple(note for note in notes if note))


def _check_prompts(
    checkpoint: Checkpoint, family: Family, tokenizer: PackagedTokenizer, rows: int
) -> None:
    """Refuse a model that lacks tokens of every prompt, or of every picture."""
    visual, tokens = _visual(family), tokenizer.tokenizer
    for text in _written(checkpoint, family, tokenizer):
        for token in tokens.encode(text).ids:
            if token >= rows and token not in visual:
                raise FamilyError(
                    f"{checkpoint.folder}: expected prompts of tokens below {rows}, which the "
                    f"embedding matrix has, found {quoted(tokens.id_to_token(token))} (token "
                    f"{token}) in all of them; fetch weights and tokenizer of one version"
                )


def _written(checkpoint: Checkpoint, family: Family, tokenizer: PackagedTokenizer) -> list[str]:
    """What a prompt and a picture consist of besides the user's text."""
    image = family.traits.image
    placed = image.layout.prepare(
        Image.new("RGB", (64, 64)), tokenizer.tokenizer.id_to_token(image.token) or ""
    ).replacement
    if family.traits.chat_template is None:
        return [placed]
    placeholders: dict[Kind, str] = {"image": image.placeholder}
    if family.traits.video is not None:
        placeholders["video"] = family.traits.video.placeholder
    file = next((one.file for one in templates(checkpoint) if one.text is not None), "")
    try:
        template = ChatTemplate(family.traits.chat_template, tokenizer.names, placeholders)
    except TemplateError as error:
        raise FamilyError(f"{checkpoint.folder / file}: {error}") from None
    try:
        return [placed, template.render([said_by("user", "a")])]
    except TemplateError:
        return [placed]  # it wants more than a text, such as a system prompt


def _beyond_note(family: Family, tokenizer: PackagedTokenizer, rows: int) -> str | None:
    visual, vocabulary = _visual(family), tokenizer.tokenizer.get_vocab(with_added_tokens=True)
    beyond = sorted(
        (token, text) for text, token in vocabulary.items() if token >= rows and token not in visual
    )
    if not beyond:
        return None
    return (
        f"the tokenizer has {len(beyond)} tokens that the model lacks, as {quoted(beyond[0][1])}: "
        "prompts with them will be refused"
    )


def _visual(family: Family) -> set[int]:
    traits = family.traits
    return {traits.image.token} | ({traits.video.token} if traits.video is not None else set())
