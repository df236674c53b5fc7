"""Checkpoints on the Hugging Face hub: found in its cache, or fetched into it.

Only JSON, templates, tokenizer files and safetensors are ever asked for. First come the small
files, which decide whether the checkpoint can be exported; its weights follow, one by one. Whole
files stay in the cache, so that a stopped download goes on with the file it was at.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from avl_export.checkpoint.model_names import kinds
from avl_export.checkpoint.safetensors_header import CheckpointError
from avl_export.progress import COMMAND
from avl_plugins.errors import quoted, shown

SMALL = ("*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")
NESTED = ("*/*",)  # other formats and training leftovers lie in folders
SLACK = 64 << 20  # bytes left free beside downloaded weights


class HubError(CheckpointError):
    """A checkpoint could not be fetched from the hub."""


def is_hub_id(model: str) -> bool:
    """Whether `model` reads as ORG/NAME and not as a path."""
    return model.count("/") == 1 and model[0] not in "/.~" and not model.endswith("/")


def find(hub_id: str, revision: str | None) -> Path | None:
    """The snapshot of `hub_id` in the hub's cache, complete or not; None without config.json."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(hub_id, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def fetch_small(hub_id: str, revision: str | None) -> Path:
    """Fetch everything but the weights; returns the snapshot's folder.

    Raises:
        HubError: no such model or revision, no access, no connection, or no room.
    """
    from huggingface_hub import snapshot_download

    _say(f"fetching configuration and tokenizer of {hub_id}")
    with _explained(hub_id, revision), _no_bars():
        folder = snapshot_download(
            hub_id,
            revision=revision,
            allow_patterns=list(SMALL),
            ignore_patterns=list(NESTED),
        )
    return Path(folder)


def listing(hub_id: str, folder: Path) -> dict[str, int]:
    """Bytes of each file in the revision that `folder` is the snapshot of.

    Raises:
        HubError: see `fetch_small`.
    """
    from huggingface_hub import HfApi

    with _explained(hub_id, folder.name):
        info = HfApi().model_info(hub_id, revision=folder.name, files_metadata=True)
    return {entry.rfilename: entry.size or 0 for entry in info.siblings or ()}


def check_listed(hub_id: str, listed: Mapping[str, int], shards: Sequence[str]) -> None:
    """Refuse a repository that lacks one of `shards`.

    Raises:
        HubError: it does.
    """
    for name in shards:
        if name not in listed:
            raise _no_safetensors(hub_id, name, listed)


def fetch_weights(
    hub_id: str, folder: Path, shards: Sequence[str], nbytes: Mapping[str, int]
) -> None:
    """Fetch `shards` into the snapshot `folder`, one after the other.

    Args:
        nbytes: what `listing` says.

    Raises:
        HubError: see `check_listed` and `fetch_small`; or the disk lacks room.
    """
    from huggingface_hub import hf_hub_download

    check_listed(hub_id, nbytes, shards)
    needed = sum(nbytes[name] for name in shards) + SLACK
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HubError(
            f"{hub_id}: expected {needed} free bytes in {folder.parent.parent} for its weights, "
            f"found {free}; free some space or point HF_HOME to another disk"
        )
    for number, name in enumerate(shards, 1):
        _say(f"fetching {name} ({nbytes[name] / 1e9:.1f} GB, {number} of {len(shards)})")
        with _explained(hub_id, folder.name):
            hf_hub_download(hub_id, name, revision=folder.name)


def _no_safetensors(hub_id: str, name: str, listed: Mapping[str, int]) -> HubError:
    top = [n for n in listed if "/" not in n]
    pickles = [n for n in top if n.endswith((".bin", ".pt", ".pth"))]
    if not pickles or any(n.endswith(".safetensors") for n in top):
        for kind in kinds([n for n in top if not n.endswith(".bin.index.json")]):
            return HubError(
                f"{hub_id}: expected {name}, found {kind.what} ({shown(kind.name)}) on the hub; "
                f"{kind.advice}"
            )
        return HubError(
            f"{hub_id}: expected {name}, found no such file on the hub; choose another model"
        )
    return HubError(
        f"{hub_id}: expected .safetensors weights, found only {pickles[0]}, which can run code "
        "when read; choose a model in safetensors, or convert it where you trust it with "
        "save_pretrained(safe_serialization=True)"
    )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the client's bars away while some small files are fetched."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


def _say(line: str) -> None:
    """On a terminal the hub's client adds bars of its own."""
    print(f"{COMMAND.get()}: {line}", file=sys.stderr, flush=True)


@contextmanager
def _explained(hub_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the hub's client raises into one sentence each."""
    try:
        yield
    except Exception as error:
        explained = _explain(error, hub_id, revision)
        if explained is None:
            raise
        raise explained from None


def _explain(error: BaseException, hub_id: str, revision: str | None) -> HubError | None:
    """What went wrong, None for an error of our own making."""
    from huggingface_hub import constants, errors

    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and cause is not None:
        return _explain(cause, hub_id, revision)  # the client wraps what it met
    site, manual = constants.ENDPOINT, f"run 'hf download {hub_id}' elsewhere and pass the folder"
    text = None
    if isinstance(error, errors.GatedRepoError):
        text = (
            f"a model open to you, found a gated one; accept its terms at {site}/{hub_id} and "
            "run 'hf auth login'"
        )
    elif isinstance(error, errors.RevisionNotFoundError):
        text = (
            f"a branch, tag or commit, found no {quoted(revision)}; see {site}/{hub_id}/tree/main"
        )
    elif isinstance(error, errors.RepositoryNotFoundError):
        text = (
            f"a checkpoint folder or a model at {site}, found neither; check the name, or run "
            "'hf auth login' for a private model"
        )
    elif isinstance(error, errors.HfHubHTTPError) and error.response.status_code in {401, 403}:
        text = (
            f"access at {site}, found it refused (HTTP {error.response.status_code}); run "
            "'hf auth login' with a token that may read this model"
        )
    elif isinstance(error, errors.HfHubHTTPError):
        text = (
            f"an answer from {site}, found HTTP {error.response.status_code}; try again later, or "
            + manual
        )
    elif isinstance(error, errors.HFValidationError):
        text = "a hub id ORG/NAME, found none; check the name"
    elif isinstance(error, errors.OfflineModeIsEnabled) or constants.is_offline_mode():
        text = (
            f"it whole in the hub's cache ({constants.HF_HUB_CACHE}) as HF_HUB_OFFLINE is set, "
            f"found it absent or incomplete; unset it, or {manual}"
        )
    elif type(error).__module__.partition(".")[0].startswith("httpx"):
        # The client lets errors of its HTTP library through.
        text = (
            f"a connection to {site}, found {type(error).__name__}; check the network and run "
            f"this again, or {manual}"
        )
    elif isinstance(error, errors.FileMetadataError):
        text = f"a hub at {site}, found none there; check HF_ENDPOINT and proxies, or {manual}"
    elif isinstance(error, OSError):
        reason = error.strerror or " ".join(str(error).split())[:120]
        text = (
            f"to fetch it into {constants.HF_HUB_CACHE}, found {reason}; free some space there or "
            "point HF_HOME to another place"
        )
    return None if text is None else HubError(f"{hub_id}: expected {text}")
