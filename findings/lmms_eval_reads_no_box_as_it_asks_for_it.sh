#!/usr/bin/env bash
# lmms-eval's RefCOCO tasks (refcoco_bbox_rec and those of RefCOCO+ and RefCOCOg) ask a model for a box
# "in the format (top-left x, top-left y, bottom-right x, bottom-right y)". They read the answer with a
# pattern that knows square brackets alone: a model that answers as it was asked, between round ones,
# gets IoU 0 and accuracy 0 for exactly right boxes, as one does that answers nothing. So it is with
# numbers that begin with their point in square brackets. Nothing is said of it.
#
# Guess before running: the right box in the format that the prompt gives has IoU 1.
# Found with lmms-eval 0.7.3: IoU 0; between square brackets 1.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q --disable-pip-version-check --no-deps lmms-eval==0.7.3
"$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import importlib.util
import io
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

# The tasks' files name datasets in an annotation alone: an empty stand-in saves its dependencies.
sys.modules["datasets"] = ModuleType("datasets")
sys.modules["datasets"].Dataset = object
tasks = Path(importlib.util.find_spec("lmms_eval").origin).parent / "tasks"
answers = {"as asked for": "(0.25, 0.25, 0.5, 0.75)", "square brackets": "[0.25, 0.25, 0.5, 0.75]",
           "no zero": "[.25, .25, .5, .75]", "no answer": ""}
print("lmms-eval", version("lmms_eval"))
for name in ("refcoco", "refcoco+", "refcocog"):
    # As lmms-eval itself loads a task's functions: from the file beside its YAML.
    spec = importlib.util.spec_from_file_location("utils_rec", tasks / name / "utils_rec.py")
    task = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(task)
    doc = {"answer": "the cup", "question_id": "1", "bbox": [0.25, 0.25, 0.5, 0.75]}
    prompt = task.refcoco_bbox_rec_doc_to_text(doc)
    assert "format (top-left x, top-left y, bottom-right x, bottom-right y)" in prompt
    scores = {}
    for form, answer in answers.items():
        result = task.refcoco_bbox_rec_process_result(doc, [answer])
        with contextlib.redirect_stdout(io.StringIO()):
            scores[form] = task.refcoco_bbox_rec_iou([result["refcoco_IoU"]])
    print(f"{name}: IoU {scores}")
    assert scores == {"as asked for": 0, "square brackets": 1, "no zero": 0, "no answer": 0}
PYTHON
echo "as described"
