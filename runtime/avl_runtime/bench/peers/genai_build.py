"""Build the text decoder of a checkpoint with onnxruntime-genai's own model builder, offline.

Arguments: CHECKPOINT FOLDER fp32|int4|int8; writes FOLDER/model and FOLDER/config.json.
"""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

from avl_runtime.bench.peers.text_model import write_text_model


def main(checkpoint: Path, folder: Path, precision: str) -> None:
    """Write the text model, build it, and remove it again."""
    text = folder / "text"
    write_text_model(checkpoint, text)
    sys.argv[1:] = ["-i", str(text), "-o", str(folder / "model"), "-p", precision, "-e", "cpu"]
    sys.argv += ["-c", str(folder / "cache")]
    runpy.run_module("onnxruntime_genai.models.builder", run_name="__main__", alter_sys=True)
    shutil.copy(text / "config.json", folder / "config.json")
    shutil.rmtree(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
