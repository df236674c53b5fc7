"""Pictures that requests name by path."""

from __future__ import annotations

import base64
from pathlib import Path

from avl_plugins.errors import quoted
from avl_runtime.serve.batch.lines import Object, Piece, pieces
from avl_runtime.serve.errors import refused
from avl_runtime.vision.load.sources import ADDRESS, SourceError, file_below, read_file


class Folder:
    """A folder, out of which no path leads.

    Args:
        most: bytes of a picture.
    """

    def __init__(self, folder: Path, most: int) -> None:
        self._folder, self._most = folder, most

    def put_into(self, body: Object) -> None:
        """Replace the paths of a body by what the files hold, as `data:` addresses.

        Raises:
            ApiError: there is no such file in the folder, or it cannot be read.
        """
        for piece in pieces(body):
            if piece.holder is not None and is_path(piece.value):
                data = base64.b64encode(self._read(piece)).decode()
                piece.holder[piece.key] = f"data:;base64,{data}"

    def _read(self, piece: Piece) -> bytes:
        path = file_below(self._folder, piece.value)
        if path is None:
            raise refused(
                f"{piece.name}: expected a picture in the folder of the questions, or in that of "
                f"--images, found {quoted(piece.value)}; put it there",
                piece.name,
            )
        try:
            return read_file(path, "an image", self._most)
        except SourceError as error:
            raise refused(f"{piece.name}: {error}", piece.name) from None


def is_path(address: str) -> bool:
    """Whether what names a picture is a path: neither `data:` nor an address with a scheme."""
    return address[:5].lower() != "data:" and ADDRESS.match(address) is None
