#!/usr/bin/env python
"""Damage manifests, pictures and safetensors headers for minutes: only AvlError may come of it.

    .venv/bin/python scripts/fuzz.py build/avl-tiny.avl --minutes 10 --json benchmarks/fuzz.json

Takes files that are right, changes them (bytes cut, repeated, overwritten; JSON values replaced,
moved and removed) and reads them. Hypothesis draws and shrinks. Each reader runs in a process of
its own, so that a crash of a library is found too: the input that did it stays in --keep. Exits
with 1 if anything was found.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from avl_export.checkpoint.safetensors_header import read_header
from avl_plugins.errors import AvlError
from avl_runtime.bench.surroundings import machine
from avl_runtime.package.package import MANIFEST, load_package
from avl_runtime.prompts.processor import Processor
from avl_runtime.tasks import sample
from avl_runtime.vision.load.images import load_image

ROUND = 300  # examples between two looks at the clock
SLOW_S = 10.0  # an input that takes longer is a finding too
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")
MODES = ("RGB", "P", "LA", "L")

Document = bytes
Read = Callable[[Path], object]


def edited(documents: list[Document]) -> st.SearchStrategy[Document]:
    """One of `documents` with some of its bytes changed."""
    place = st.floats(0, 1, exclude_max=True)
    edit = st.tuples(
        st.sampled_from(("put", "insert", "cut", "copy")), place, st.binary(max_size=9)
    )

    def apply(document: Document, edits: list[tuple[str, float, bytes]]) -> Document:
        data = bytearray(document)
        for kind, where, added in edits:
            at = int(where * len(data))
            if kind == "put":
                data[at : at + len(added)] = added
            elif kind == "insert":
                data[at:at] = added
            elif kind == "cut":
                del data[at : at + 1 + len(added) ** 3]
            else:
                data[at:at] = data[at : at + 8 * len(added)]
        return bytes(data)

    return st.builds(apply, st.sampled_from(documents), st.lists(edit, max_size=6))


def odd_values() -> st.SearchStrategy[Any]:
    """What JSON can hold and a reader may not expect."""
    numbers = st.sampled_from((0, -1, 1, 2**31, 2**63, 2**64, 10**40, 1e308, -0.5, 0.5))
    texts = st.sampled_from(("", "\0", "../x", "/etc/passwd", "a" * 5000, "{{ 1 // 0 }}", "\ud800"))
    plain = st.one_of(st.none(), st.booleans(), numbers, texts, st.text(max_size=5))
    return st.recursive(
        plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
        max_leaves=5,
    )


def changed(document: Any) -> st.SearchStrategy[Any]:
    """JSON with some values replaced, removed or put in each other's place."""
    change = st.tuples(st.sampled_from(("replace", "remove", "move")), st.randoms(), odd_values())

    def apply(changes: list[tuple[str, Any, Any]]) -> Any:
        tree = json.loads(json.dumps(document))
        for kind, draw, value in changes:
            places = list(_places(tree))
            if not places:
                break
            holder, key = draw.choice(places)
            if kind == "remove":
                del holder[key]
            elif kind == "move":
                other, name = draw.choice(places)
                holder[key] = json.loads(json.dumps(other[name]))
            else:
                holder[key] = value
        return tree

    return st.builds(apply, st.lists(change, min_size=1, max_size=4))


def _places(tree: Any) -> Any:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield tree, key
        if isinstance(value, dict | list):
            yield from _places(value)


def manifests(package: Path) -> st.SearchStrategy[Document]:
    """Manifests like the package's."""
    text = (package / MANIFEST).read_bytes()
    spelled = changed(json.loads(text)).map(lambda tree: json.dumps(tree).encode())
    return st.one_of(spelled, edited([text]))


def pictures() -> st.SearchStrategy[Document]:
    """Pictures in every format and some modes."""
    drawn = sample("caption", "held-out", 0).image.resize((24, 20))
    documents = []
    for kind in FORMATS:
        for mode in MODES:
            file = io.BytesIO()
            try:
                drawn.convert(mode).save(file, kind)
            except (OSError, KeyError):  # not every format has every mode
                continue
            documents.append(file.getvalue())
    return edited(documents)


def headers(package: Path) -> st.SearchStrategy[Document]:
    """Safetensors files with the header of the package's own weights, and little else."""
    manifest = load_package(package)
    shard = manifest.weights_folder / manifest.manifest.weights.shards[0].path
    with shard.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        full = json.loads(file.read(length))
    few = dict(list(full.items())[:6])
    ends = [entry["data_offsets"][1] for name, entry in few.items() if name != "__metadata__"]

    def whole(header: Any, size: int) -> Document:
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + bytes(size)

    sizes = st.sampled_from((0, 1, min(4096, max(ends))))
    spelled = st.builds(whole, changed(few), sizes)
    return st.one_of(spelled, edited([whole(few, 64), whole({}, 0)]))


def read_package(folder: Path) -> None:
    """All that reading a package does before its graphs are loaded."""
    package = load_package(folder)
    package.check_shards()
    processor = Processor.from_package(package)
    processor.encode("Read.", [sample("caption", "held-out", 0).image])


def targets(package: Path, scratch: Path) -> Mapping[str, tuple[Any, Path, Read]]:
    """Name -> inputs, where they are written, and what reads them."""
    copy = scratch / "package"
    if not copy.exists():
        shutil.copytree(package, copy)
    image, weights = scratch / "image", scratch / "model.safetensors"
    return {
        "manifest": (manifests(package), copy / MANIFEST, lambda path: read_package(path.parent)),
        "images": (pictures(), image, load_image),
        "safetensors": (headers(package), weights, read_header),
    }


def fuzz(package: Path, name: str, minutes: float, first_seed: int, scratch: Path) -> None:
    """Read one kind of file again and again; leaves the report as FOLDER/NAME.json."""
    inputs, path, read = targets(package, scratch)[name]
    report: dict[str, Any] = {"inputs": 0, "refused": 0, "slowest_s": 0.0, "findings": []}

    def one(document: Document) -> None:
        path.write_bytes(document)
        begun = time.monotonic()
        try:
            read(path)
        except AvlError as error:
            report["refused"] += 1
            if "\n" in str(error):
                raise AssertionError(f"expected one line, found {error!r}") from error
        finally:
            spent = time.monotonic() - begun
            report["inputs"] += 1
            report["slowest_s"] = round(max(report["slowest_s"], spent), 3)
        if spent > SLOW_S:
            raise AssertionError(f"expected an answer within {SLOW_S} s, found {spent:.1f}")

    number, end = first_seed, time.monotonic() + 60 * minutes
    while time.monotonic() < end:
        run = seed(number)(given(inputs)(one))
        checks = list(HealthCheck)
        run = settings(
            max_examples=ROUND, deadline=None, database=None, suppress_health_check=checks
        )(run)
        try:
            run()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            error.__notes__ = []  # the whole input, which the seed gives again
            said = traceback.format_exception(error)[-12:]
            finding = {"seed": number, "error": repr(error)[:300], "trace": "".join(said)}
            known = {one["error"] for one in report["findings"]}
            if finding["error"] not in known:
                report["findings"].append(finding)
        number += 1
    (scratch / f"{name}.json").write_text(json.dumps(report))


def main(arguments: list[str] | None = None) -> int:
    """Run; returns 1 if anything but AvlError came up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path)
    parser.add_argument("--minutes", type=float, default=10, help="shared by all kinds of files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that crashed a process")
    parser.add_argument("--json", type=Path)
    parsed = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    with TemporaryDirectory(prefix="avl-fuzz-") as place:
        scratch = Path(place)
        kinds = targets(parsed.package, scratch)
        for name, (_, path, _) in kinds.items():
            share = parsed.minutes / len(kinds)
            process = get_context("spawn").Process(
                target=fuzz, args=(parsed.package, name, share, parsed.seed, scratch)
            )
            process.start()
            process.join()
            result = scratch / f"{name}.json"
            if process.exitcode == 0 and result.is_file():
                found[name] = json.loads(result.read_text())
                continue
            error = f"the process ended with {process.exitcode}"
            found[name] = {"findings": [{"error": error}]}
            if parsed.keep:
                parsed.keep.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, parsed.keep / f"{name}.crash")
    report = {
        "minutes": parsed.minutes,
        "seed": parsed.seed,
        "files": found,
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(report, indent=2)
    if parsed.json:
        parsed.json.write_text(text + "\n", encoding="utf-8")
    print(text)
    return int(any(one["findings"] for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
