"""What commands write besides the text: reports, pictures, statistics."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from avl_plugins.errors import AvlError, shown
from avl_runtime.evaluate.certainty import Certainty
from avl_runtime.generate.results import Result, Stats, TokenLogprobs
from avl_runtime.machine.sizes import size_text

IMPOSSIBLE = -9999.0  # in the place of minus infinity, which JSON lacks; OpenAI's API says so too
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
STDOUT = Path("-")


class OutputError(AvlError):
    """A file cannot be written."""


def as_json(result: Result, certain: Certainty | None = None) -> dict[str, Any]:
    """The object that `--json` prints."""
    stats = result.stats
    told = {} if certain is None else {"certainty": _certainty(certain)}
    noted = {} if result.logprobs is None else {"logprobs": list(map(_logprobs, result.logprobs))}
    return {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
        "policy": stats.policy,
        "backend": stats.backend,
        "kernels": stats.kernels,
        "kv": stats.kv,
        "seed": stats.seed,
        "prompt_tokens": stats.prompt_tokens,
        "visual_tokens": stats.visual_tokens,
        "visual_tokens_read": stats.visual_tokens_read,
        "prefill_ms": stats.prefill_ms,
        "decode_ms_per_token": stats.decode_ms_per_token,
        "steps_again": stats.steps_again,
        "kv_bytes": stats.kv_bytes,
        "kv_bytes_dense": stats.kv_bytes_dense,
        "drafted": stats.drafted,
        "accepted": stats.accepted,
        "drafts": {
            one.source: {"drafted": one.drafted, "accepted": one.accepted} for one in stats.drafts
        },
        "peak_rss_bytes": stats.peak_rss_bytes,
        "device_bytes": None if stats.device_bytes is None else asdict(stats.device_bytes),
        **noted,
        **told,
    }


def _certainty(certain: Certainty) -> dict[str, float]:
    return {
        "confidence": certain.confidence,
        "score": certain.score,
        "divergence": certain.divergence,
        "entropy": certain.entropy,
    }


def certainty_line(certain: Certainty) -> str:
    """How sure an answer is of its pictures, for people."""
    return (
        f"certainty: {certain.confidence:.2f} (without most of the picture its tokens' "
        f"probabilities move by {certain.divergence:.3f} nats; entropy {certain.entropy:.3f} nats)"
    )


def _logprobs(token: TokenLogprobs) -> dict[str, Any]:
    told = asdict(token)
    for one in (told, *told["top"]):
        one["logprob"] = max(one["logprob"], IMPOSSIBLE)
    return told


def stats_lines(stats: Stats) -> str:
    """Speed and memory of a generation, for people."""
    lines = [
        ("policy", f"{stats.policy} on {stats.backend}"),
        (
            "prefill",
            f"{stats.prompt_tokens} tokens ({stats.visual_tokens} visual{_read(stats)}) in "
            f"{stats.prefill_ms:.0f} ms{_rate(stats.prompt_tokens, stats.prefill_ms)}",
        ),
        (
            "decode",
            f"{stats.new_tokens} tokens, {stats.decode_ms_per_token:.2f} ms a token"
            f"{_rate(1, stats.decode_ms_per_token)}"
            + (f", {stats.steps_again} steps computed again" if stats.steps_again else ""),
        ),
        (
            "KV cache",
            f"{size_text(stats.kv_bytes)} (dense: {size_text(stats.kv_bytes_dense)}"
            f"{_share(stats.kv_bytes, stats.kv_bytes_dense)})"
            + ("" if stats.kv is None else f", rows in {stats.kv}"),
        ),
        ("peak RSS", size_text(stats.peak_rss_bytes)),
    ]
    for one in stats.drafts:
        told = f"{one.drafted} tokens by {one.source}, {one.accepted} accepted"
        lines.insert(3, ("drafts", told + _share(one.accepted, one.drafted)))
    if stats.kernels is not None:
        lines.insert(1, ("kernels", stats.kernels))
    if stats.seed is not None:
        lines.insert(1, ("seed", str(stats.seed)))
    held = stats.device_bytes
    if held is not None:
        told = f"weights {size_text(held.weights)}, active {size_text(held.active)}, parked "
        told += f"{size_text(held.parked)}, scratch {size_text(held.scratch)}"
        if held.parked_on_host:
            told += f", parked on the host {size_text(held.parked_on_host)}"
        lines.append(("device", told))
    return "\n".join(f"{name + ':':10}{value}" for name, value in lines)


def check_picture(path: Path) -> None:
    """Refuse a picture file that could not be written, before any work is done for it.

    Raises:
        OutputError: the ending is unknown, or the folder is missing or not writable.
    """
    if path.suffix.lower() not in PICTURES:
        raise OutputError(f"{shown(path)}: expected a file name with {', '.join(PICTURES)}")
    check_file(path)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written, before any work is done for it.

    Raises:
        OutputError: the folder is missing or not writable, or the file is a folder.
    """
    if path == STDOUT:
        return
    folder = path.parent
    try:
        if path.is_dir():
            raise OutputError(f"{shown(path)}: expected a file, found a folder; name a file in it")
        fits = folder.is_dir() and os.access(folder, os.W_OK)
    except OSError as error:  # a name that is too long
        raise OutputError(
            f"{shown(path)}: expected a file in a writable folder, found: {error.strerror}"
        ) from None
    if not fits:
        found = (
            "one without permission to write; choose another"
            if folder.is_dir()
            else "none; make the folder first"
        )
        raise OutputError(f"{shown(path)}: expected a file in a writable folder, found {found}")


def check_apart(written: Iterable[Path | None], read: Iterable[str | Path | None] = ()) -> None:
    """Refuse a file that is written and also read or written another time.

    Args:
        written: files to write; None stands for an option left out.
        read: files that are read; what names no file, as an address, is no file to lose.

    Raises:
        OutputError: two of them are the same file, links followed.
    """
    taken = [_real(path) for path in read if path is not None]
    for path in written:
        if path is None or path == STDOUT:
            continue
        real = _real(path)
        if real in taken and not Path(real).is_char_device():  # as /dev/null
            raise OutputError(
                f"{shown(path)}: expected a file of its own to write, found one that is read or "
                "written as well; name another"
            )
        taken.append(real)


def _real(path: str | Path) -> str:
    try:
        return os.path.realpath(path)
    except ValueError:  # a name that no file can have
        return str(path)


def write_text(path: Path, text: str) -> None:
    """Write a text file, or to stdout for `-`.

    Raises:
        OutputError: it cannot be written.
    """
    if path == STDOUT:
        print(text, end="", flush=True)
        return
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{shown(path)}: expected to write it, found: {error.strerror}") from None


def save_picture(image: Image.Image, path: Path) -> None:
    """Write a picture whole or not at all.

    Raises:
        OutputError: it cannot be written.
    """
    name = ""
    try:
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix, delete=False
        ) as file:
            name = file.name
            image.save(file, Image.registered_extensions()[path.suffix.lower()])
        # Temporary files are private; a picture gets the rights any new file gets.
        mask = os.umask(0)
        os.umask(mask)
        Path(name).chmod(0o666 & ~mask)
        Path(name).replace(path)
    except OSError as error:
        raise OutputError(f"{shown(path)}: expected to write it, found: {error.strerror}") from None
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def _read(stats: Stats) -> str:
    fewer = stats.visual_tokens_read < stats.visual_tokens
    return f", {stats.visual_tokens_read} of them read" if fewer else ""


def _rate(count: int, milliseconds: float) -> str:
    return f", {count * 1000 / milliseconds:.1f} tokens/s" if milliseconds > 0 else ""


def _share(part: int, whole: int) -> str:
    return f", {100 * part / whole:.0f} %" if whole else ""
