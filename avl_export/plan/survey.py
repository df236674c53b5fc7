"""What can be refused before torch is imported, which takes seconds."""

from __future__ import annotations

from dataclasses import replace

from avl_export.checkpoint.adapters.choice import Choice, adapted_name, choose
from avl_export.checkpoint.adapters.config import read_config
from avl_export.checkpoint.adapters.files import aside_note
from avl_export.checkpoint.checkpoint import (
    TOKENIZER,
    Checkpoint,
    find_checkpoint,
    folder_of,
    lacks_weights,
    open_weights,
)
from avl_export.checkpoint.gguf.open import names_gguf, open_gguf
from avl_export.checkpoint.supported import check_supported
from avl_export.checkpoint.weight_files import ADAPTER_CONFIG
from avl_export.families.processors.preprocessing import image_processor
from avl_export.options import Options, OptionsError
from avl_export.plan.place import check_place, examine


def survey(options: Options) -> Checkpoint:
    """The checkpoint to export, with its weights where they are on this machine.

    Raises:
        AvlError: there is none, it is of a kind that cannot be exported, files are missing or
            damaged, or the package's place is taken.
    """
    choice = choose(options.model, options.lora)
    folders = [] if choice.adapter is None else [choice.adapter]
    folder = folder_of(choice.model)
    if not options.dry_run:  # before anything is fetched
        check_place(options.out, options.force, folders if folder is None else [*folders, folder])
    checkpoint = _find(options, choice)
    check_supported(checkpoint.folder, checkpoint.config)
    if checkpoint.hub_id is not None and (checkpoint.folder / ADAPTER_CONFIG).is_file():
        raise OptionsError(
            f"{choice.model[:160]}: expected a model alone on the hub, found {ADAPTER_CONFIG} "
            "beside it; fetch all of it with 'hf download' and pass its folder, whose adapter then "
            "is merged"
        )
    if choice.adapter is not None:
        read_config(choice.adapter)
        lines = (choice.note, *checkpoint.notes, aside_note(choice.adapter, checkpoint))
        checkpoint = replace(
            checkpoint,
            name=adapted_name(checkpoint.name, choice.adapter),
            notes=tuple(line for line in lines if line is not None),
            adapter=choice.adapter,
        )
    if options.dry_run:
        examine(options.out, [checkpoint.folder])
    else:
        check_place(options.out, options.force, [checkpoint.folder])
        _check_files(checkpoint)
    fetches = options.dry_run or checkpoint.hub_id is not None
    if not checkpoint.tensors and not (fetches and lacks_weights(checkpoint)):
        checkpoint = open_weights(checkpoint)
    return checkpoint


def _find(options: Options, choice: Choice) -> Checkpoint:
    if not names_gguf(choice.model):
        revision = options.revision or choice.revision
        return find_checkpoint(choice.model, revision, options.dry_run)
    if options.revision is not None:
        raise OptionsError(
            "--revision: expected a hub id with it, found a GGUF file; leave --revision out"
        )
    return open_gguf(choice.model, options.mmproj, options.config, options.dry_run)


def _check_files(checkpoint: Checkpoint) -> None:
    if TOKENIZER in checkpoint.missing:
        raise OptionsError(
            f"{checkpoint.folder}: expected {TOKENIZER}, found none; convert with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    image_processor(checkpoint)
