"""What MODEL is where it is no checkpoint: misspelt, a file, a folder of something else.

A path is never taken for a hub id: nothing is asked of the network for what lies, or was meant to
lie, on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from avl_export.checkpoint.aliases import BUNDLED, HUB_IDS, names
from avl_plugins.errors import shown

MADE_FROM = "choose the repository in safetensors that it was made from"
GGUF = "*.gguf"
TRUST = "save it with save_pretrained(safe_serialization=True) where you trust it"
# What holds models of other kinds, by names of files in lower case, and what to do.
KINDS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    ((GGUF,), "a GGUF model", "pass the file, and its encoder's with --mmproj"),
    (("*.ggml",), "a GGML model", MADE_FROM),
    (("avl.json",), "an avl package", "run it with avl-run"),
    (("*.onnx", "*.ort"), "an ONNX graph", MADE_FROM),
    (("*.engine", "*.plan", "*.trt"), "an engine", MADE_FROM),
    (("openvino*.xml",), "an OpenVINO model", MADE_FROM),
    (("*.tflite", "*.task", "*.litertlm", "*.mlmodel"), "a model for phones", MADE_FROM),
    (
        ("model_index.json",),
        "a diffusion pipeline",
        "choose a vision-language model in transformers' layout",
    ),
    (
        ("consolidated*.safetensors", "consolidated*.pth", "params.json"),
        "a model in its maker's own layout",
        "choose the repository for transformers, which has a config.json",
    ),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.bin.index.json"),
        "a pickle, which can run code when read",
        TRUST,
    ),
    (("*.h5", "*.msgpack"), "weights for TensorFlow or Flax", "choose weights in safetensors"),
    (("*.zip", "*.tar", "*.tar.*", "*.tgz", "*.7z"), "an archive", "pass the folder in it"),
)
PARTS = ("*.safetensors", "*.json")  # files that lie in a checkpoint
ENDINGS = (*PARTS, *(one for patterns, _, _ in KINDS for one in patterns if one.startswith("*.")))
DRIVE = re.compile(r"[A-Za-z]:[\\/]")
ADDRESS = re.compile(r"(?:https?://(?:www\.)?|hf://)([^/]+)/([^/]+)/([^/?#]+)")
CLOSE = 0.6  # how alike a name must be to be suggested


def is_path(model: str) -> bool:
    """Whether `model` reads as a path: as no ORG/NAME, or as one where a folder ORG is at hand."""
    first, _, rest = model.partition("/")
    return (
        model.startswith(("/", "~", "./", "../"))
        or model in {".", ".."}
        or "\\" in model
        or model.endswith("/")
        or model.count("/") > 1
        or DRIVE.match(model) is not None
        or any(fnmatchcase(model.lower(), pattern) for pattern in ENDINGS)
        or (bool(rest) and _is_folder(Path(first)))
    )


def misfit(model: str) -> str:
    """What to say of a MODEL that is no folder, no alias and no hub id."""
    address = ADDRESS.match(model)
    if address is not None:
        return (
            f"{shown(model)}: expected a checkpoint folder, an alias or a hub id ORG/NAME, found "
            f"an address; pass {shown('/'.join(address.groups()[1:]))}"
        )
    if not is_path(model):
        near = _nearest(model, [*BUNDLED, *HUB_IDS, *_folders(Path())])
        advice = f"is it {shown(near)}?" if near else "check the name"
        return (
            f"{shown(model)}: expected a checkpoint folder, an alias ({names()}) or a hub id "
            f"ORG/NAME, found none; {advice}"
        )
    path = expanded(model)
    if is_file(path):
        what, advice = "a file", "pass the folder of a checkpoint"
        if any(fnmatchcase(path.name.lower(), part) for part in PARTS):
            what, advice = "a file of one", "pass the folder that holds it whole"
        for kind in kinds([path.name]):
            what, advice = kind.what, kind.advice
        return f"{shown(model)}: expected a checkpoint folder, found {what}; {advice}"
    named = path.name.lower()
    file = next((end for end in ENDINGS if fnmatchcase(named, end)), None)
    whole = "a checkpoint folder, a GGUF file" if file == GGUF else "a checkpoint folder"
    return (
        f"{shown(model)}: expected {whole} or a hub id ORG/NAME, found no such "
        f"{'folder' if file is None else 'file'}; {_advice(path, model, file)}"
    )


def broken_link(folder: Path, *names: str) -> str | None:
    """The first of `names` in `folder` that is a link to no file, as a cleared cache has them."""
    return next((n for n in names if (folder / n).is_symlink() and not is_file(folder / n)), None)


def no_config(where: str | Path, there: Collection[str] | None = None) -> str:
    """What to say of a folder or a repository without config.json.

    Args:
        there: names of the files of a repository.
    """
    expected = f"{shown(where)}: expected a Hugging Face checkpoint with config.json"
    if there is None:
        there = entries(Path(where))
        if broken_link(Path(where), "config.json"):
            return f"{expected}, found a link that leads to no file; fetch the checkpoint again"
    for kind in kinds(there):
        return f"{expected}, found {kind.what} ({shown(kind.name)}); {kind.advice}"
    folder = Path(where)
    inner = [name for name in _folders(folder) if is_file(folder / name / "config.json")]
    snapshots = sorted(folder.glob("snapshots/*/config.json")) if _is_folder(folder) else []
    if snapshots:
        return f"{expected}, found a folder of the hub's cache; pass {shown(snapshots[-1].parent)}"
    if inner:
        named = shown(", ".join(inner))
        return f"{expected}, found that in {named}; pass the folder inside that is meant"
    found = f"none among {shown(', '.join(sorted(there)))}" if there else "an empty folder"
    return f"{expected}, found {found}; pass the folder that holds it"


@dataclass(frozen=True, slots=True)
class Kind:
    """What a file is, by its name, and what to do."""

    name: str
    what: str
    advice: str


def kinds(there: Collection[str]) -> Iterator[Kind]:
    """What files of these names are, if that is known: one, the first of `KINDS`."""
    for patterns, what, advice in KINDS:
        for name in sorted(there, key=lambda name: ("mmproj" in name.lower(), name)):
            if any(fnmatchcase(name.lower(), pattern) for pattern in patterns):
                yield Kind(name, what, advice)
                return


def _advice(path: Path, model: str, file: str | None) -> str:
    """The nearest there is, and how to say that nothing on this machine was meant.

    Args:
        file: how names of such files end, None for a folder.
    """
    hub = ", or add --revision main if a model of the hub is meant" if _is_id(model) else ""
    turned = expanded(model.replace("\\", "/"))
    if "\\" in model and _is_folder(turned):
        return f"is it {shown(turned)}?"
    parts = [*reversed(path.parents), path]
    missing = next((part for part in parts if not _is_folder(part)), path)
    there = _folders(missing.parent)
    if missing == path and file is not None:
        there = [one for one in entries(path.parent) if fnmatchcase(one.lower(), file)]
    near = _nearest(missing.name, there)
    if near is None:
        return f"there is no {shown(missing.name, 60)} in {shown(missing.parent.absolute())}{hub}"
    rest = path.relative_to(missing).as_posix() if path != missing else ""
    whole = missing.parent / near / rest
    found = whole if _is_folder(whole) or is_file(whole) else missing.parent / near
    return f"is it {shown(found)}?{hub}"


def _nearest(name: str, known: Collection[str]) -> str | None:
    """The one of `known` that is most like `name`, in whatever case; None if none is."""
    lower = {one.lower(): one for one in known}
    near = get_close_matches(name.lower(), lower, 1, CLOSE)
    return lower[near[0]] if near else None


def entries(folder: Path) -> list[str]:
    """Names of what lies in `folder`; [] where there is none or nothing may be read."""
    try:
        return sorted(one.name for one in folder.iterdir())
    except (OSError, ValueError):
        return []


def _folders(folder: Path) -> list[str]:
    return [name for name in entries(folder) if _is_folder(folder / name)]


def _is_id(model: str) -> bool:
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", model) is not None


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Whether there is a file, without an error for what no path can be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def expanded(model: str) -> Path:
    """`model` as a path, without an error for a home that nobody has."""
    try:
        return Path(model).expanduser()
    except RuntimeError:  # the home of nobody
        return Path(model)
