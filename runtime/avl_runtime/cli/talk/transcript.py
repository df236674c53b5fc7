"""Conversations as JSON files, in the format of transformers' messages.

A picture or a video is a part with the `path` or `url` that it came from; a picture that came from
neither, as from stdin, is a `data:` address.
"""

from __future__ import annotations

import base64
import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from avl_plugins.errors import AvlError, shown
from avl_runtime.cli.output import OutputError
from avl_runtime.cli.talk.sources import ADDRESSES, Sources
from avl_runtime.vision.load.images import load_image
from avl_runtime.vision.load.videos import load_video

MOST_BYTES = 512 << 20
KINDS = ("image", "video")
KEYS = ("path", "url", "image", "video", "base64")


class TranscriptError(AvlError):
    """A file holds no conversation that can be taken up."""


def write_messages(path: Path, messages: Sequence[dict[str, Any]], sources: Sources) -> None:
    """Write messages whole or not at all; a file that is there is replaced.

    Raises:
        OutputError: the file cannot be written.
        TranscriptError: a video came from no file.
    """
    said = [
        {**message, "content": [_named(part, sources) for part in message["content"]]}
        for message in messages
    ]
    text = json.dumps(said, ensure_ascii=False, indent=1) + "\n"
    name = ""
    try:
        with tempfile.NamedTemporaryFile(
            "w", dir=path.parent, prefix=f".{path.stem[:60]}-", delete=False, encoding="utf-8"
        ) as file:
            name = file.name
            file.write(text)
        # A conversation is private; a file that is replaced keeps its rights.
        if path.exists():
            Path(name).chmod(path.stat().st_mode & 0o777)
        Path(name).replace(path)
    except OSError as error:
        raise OutputError(f"{shown(path)}: expected to write it, found: {error.strerror}") from None
    finally:
        if name:
            Path(name).unlink(missing_ok=True)


def read_messages(path: Path, sources: Sources) -> list[dict[str, Any]]:
    """Messages of a file with all pictures and videos loaded; relative paths are beside it.

    Raises:
        TranscriptError: the file cannot be read or holds no messages.
        ImageError, VideoError: a picture or a video cannot be loaded.
    """
    said = _parsed(path)
    if isinstance(said, dict):
        said = said.get("messages")
    if not isinstance(said, list) or not said or not all(map(_is_message, said)):
        raise TranscriptError(
            f'{shown(path)}: expected messages, [{{"role": …, "content": …}}, …], found '
            "something else; /save writes them"
        )
    return [{**message, "content": _content(message["content"], path, sources)} for message in said]


def _parsed(path: Path) -> Any:
    try:
        if path.is_dir():
            raise TranscriptError(f"{shown(path)}: expected a file, found a folder; name one in it")
        if not path.is_file():
            raise TranscriptError(f"{shown(path)}: expected a file, found none; check the name")
        if path.stat().st_size > MOST_BYTES:
            raise TranscriptError(f"{shown(path)}: expected at most {MOST_BYTES >> 20} MiB")
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TranscriptError(
            f"{shown(path)}: expected to read it, found: {error.strerror}"
        ) from None
    except (ValueError, RecursionError):
        raise TranscriptError(
            f"{shown(path)}: expected JSON, found something else; /save writes it"
        ) from None


def _is_message(message: object) -> bool:
    return isinstance(message, dict) and isinstance(message.get("content"), (str, list))


def _content(content: str | list[Any], path: Path, sources: Sources) -> list[Any]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_loaded(part, path, sources) for part in content]


def _loaded(part: Any, path: Path, sources: Sources) -> Any:
    """A part with its picture or video; others stay as they are, whoever reads them refuses."""
    if not isinstance(part, dict) or part.get("type") not in KINDS:
        return part
    kind = part["type"]
    source = next((part[key] for key in KEYS if isinstance(part.get(key), str)), None)
    if source is None:
        raise TranscriptError(
            f"{shown(path)}: expected the path or url of each {kind}, found none in one; "
            f'write {{"type": "{kind}", "path": …}}'
        )
    if "base64" not in part and not source.lower().startswith((*ADDRESSES, "file:")):
        source = str(path.parent.absolute() / Path(source).expanduser())
    loaded = load_image(source) if kind == "image" else load_video(source)
    if "base64" not in part:
        sources.note(loaded, source)
    return {"type": kind, kind: loaded}


def _named(part: dict[str, Any], sources: Sources) -> dict[str, Any]:
    """A part with the source of its picture or video in its place."""
    kind = part["type"]
    if kind not in KINDS:
        return part
    source = sources.of(part[kind])
    if source is not None:
        return {"type": kind, "url" if source.lower().startswith(ADDRESSES) else "path": source}
    if not isinstance(part[kind], Image.Image):
        raise TranscriptError(f"expected each {kind} from a file, found one that is not")
    buffer = io.BytesIO()
    part[kind].save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return {"type": kind, "url": f"data:image/png;base64,{data}"}
