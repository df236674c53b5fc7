"""A model repository of Triton Inference Server with a package as a model of its Python backend.

Source: the documents "Model Repository" and "Model Configuration" of Triton Inference Server.
"""

from __future__ import annotations

import os
from pathlib import Path
from string import ascii_letters, digits
from typing import Final

from avl_plugins.errors import AvlError, shown
from avl_runtime.package.package import MANIFEST

CONFIG: Final = "config.pbtxt"
NAMED: Final = frozenset(f"{ascii_letters}{digits}-_.")  # what a model may be called
VERSION: Final = "1"
MODEL: Final = '''\
"""A package of avl; {config} says which, and how it is loaded."""

from avl_runtime.serve.inference_server.model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
# Inputs and outputs are called as those of the server's vLLM backend, so that its clients fit.
TEMPLATE: Final = """\
name: {name}
backend: "python"
max_batch_size: 0
model_transaction_policy {{ decoupled: true }}
input [
  {{ name: "text_input" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "image" data_type: TYPE_STRING dims: [ -1 ] optional: true }},
  {{ name: "stream" data_type: TYPE_BOOL dims: [ 1 ] optional: true }},
  {{ name: "sampling_parameters" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
]
output [
  {{ name: "text_output" data_type: TYPE_STRING dims: [ 1 ] }},
  {{ name: "finish_reason" data_type: TYPE_STRING dims: [ 1 ] }}
]
# Requests are decoded together inside of one instance.
instance_group [ {{ count: 1 kind: KIND_MODEL }} ]
# A path that is not absolute begins at the folder of this file.
parameters {{ key: "package" value: {{ string_value: {package} }} }}
parameters {{ key: "running" value: {{ string_value: "8" }} }}
parameters {{ key: "max_new_tokens" value: {{ string_value: "4096" }} }}
parameters {{ key: "policy" value: {{ string_value: "" }} }}
parameters {{ key: "backend" value: {{ string_value: "auto" }} }}
parameters {{ key: "kv" value: {{ string_value: "auto" }} }}
parameters {{ key: "kv_bytes" value: {{ string_value: "" }} }}
parameters {{ key: "cache_dir" value: {{ string_value: "" }} }}
parameters {{ key: "cache_limit" value: {{ string_value: "" }} }}
"""


class RepositoryError(AvlError):
    """A model repository cannot be written."""


def check_repository(folder: Path, name: str, package: Path) -> Path:
    """The folder of a model in a repository that can take it; nothing is written.

    Args:
        name: of the model.
        package: its folder, which may not be there yet.

    Raises:
        RepositoryError: the name is none, a file is in the way, such a model is there, the
            repository cannot be written, or it and a package would lie in one another.
    """
    if not name or not NAMED.issuperset(name) or name.strip(".") == "":
        raise RepositoryError(
            f"--triton: expected a model's name of letters, digits, - _ and ., found "
            f"{shown(name)}; name the package otherwise with --out"
        )
    model = folder / name
    try:
        taken = model.exists()
        place, own = folder.resolve(), package.resolve()
        above = next(one for one in (place, *place.parents) if os.path.lexists(one))
        held = next((one for one in (place, *place.parents) if _is_package(one, own)), None)
        found = _in_the_way(above)
    except (OSError, RuntimeError, ValueError) as error:
        raise _unwritten(folder, error) from None
    where = f"--triton {shown(folder)}"
    if held is not None:
        raise RepositoryError(
            f"{where}: expected a folder outside of packages, found it in {shown(held)}; name "
            "another"
        )
    if own.is_relative_to(place / name):
        raise RepositoryError(
            f"{where}: expected a package outside of {shown(model)}, which is made for its model, "
            f"found {shown(package)}; name another place for it with --out"
        )
    if taken:
        raise RepositoryError(
            f"{where}: expected a folder without a model {shown(name)}, found one; name another, "
            "or remove it"
        )
    if found is not None:
        raise RepositoryError(
            f"{where}: expected a folder to write the model in, found {found} at {shown(above)}; "
            "name another"
        )
    return model


def _is_package(folder: Path, package: Path) -> bool:
    return folder == package or (folder / MANIFEST).exists()


def _in_the_way(above: Path) -> str | None:
    """Why nothing can be written below a path that is there."""
    if not above.is_dir():
        return "a file"
    return None if os.access(above, os.W_OK | os.X_OK) else "one that may not be written"


def write_repository(folder: Path, name: str, package: Path) -> Path:
    """Add a model to a repository.

    Args:
        name: of the model.

    Returns:
        The folder of the model.

    Raises:
        RepositoryError: it cannot be written.
    """
    model = check_repository(folder, name, package)
    config = TEMPLATE.format(name=proto_text(name), package=proto_text(str(package.resolve())))
    try:
        (model / VERSION).mkdir(parents=True)
        (model / VERSION / "model.py").write_text(MODEL.format(config=CONFIG), encoding="utf-8")
        (model / CONFIG).write_text(config, encoding="utf-8")
    except OSError as error:
        raise _unwritten(model, error) from None
    return model


def proto_text(text: str) -> str:
    """A string of protobuf's text format; of other bytes than printable ASCII the octal number."""
    plain = {ord('"'): '\\"', ord("\\"): "\\\\"}
    data = text.encode("utf-8", "surrogateescape")
    found = [plain.get(one, chr(one) if 32 <= one < 127 else f"\\{one:03o}") for one in data]
    return f'"{"".join(found)}"'


def _unwritten(path: Path, error: Exception) -> RepositoryError:
    reason = getattr(error, "strerror", None) or error
    return RepositoryError(
        f"--triton: expected to write {shown(path)}, found: {shown(reason)}; name another folder"
    )
