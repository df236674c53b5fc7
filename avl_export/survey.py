"""What can be refused before torch is imported, which takes seconds."""

from __future__ import annotations

from avl_export.checkpoint import (
    TOKENIZER,
    Checkpoint,
    find_checkpoint,
    folder_of,
    lacks_weights,
    open_weights,
)
from avl_export.families import check_supported
from avl_export.families.preprocessing import image_processor
from avl_export.options import Options, OptionsError
from avl_export.place import check_place, examine


def survey(options: Options) -> Checkpoint:
    """The checkpoint to export, with its weights where they are on this machine.

    Raises:
        AvlError: there is none, it is of a kind that cannot be exported, files are missing or
            damaged, or the package's place is taken.
    """
    folder = folder_of(options.model)
    if not options.dry_run:  # before anything is fetched
        check_place(options.out, options.force, [] if folder is None else [folder])
    checkpoint = find_checkpoint(options.model, options.revision, options.dry_run)
    check_supported(checkpoint)
    if options.dry_run:
        examine(options.out, [checkpoint.folder])
    else:
        check_place(options.out, options.force, [checkpoint.folder])
        _check_files(checkpoint)
    fetches = options.dry_run or checkpoint.hub_id is not None
    if not (fetches and lacks_weights(checkpoint)):
        checkpoint = open_weights(checkpoint)
    return checkpoint


def _check_files(checkpoint: Checkpoint) -> None:
    if TOKENIZER in checkpoint.missing:
        raise OptionsError(
            f"{checkpoint.folder}: expected {TOKENIZER}, found none; convert with transformers: "
            "AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        )
    image_processor(checkpoint)
