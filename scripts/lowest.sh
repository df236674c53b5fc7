#!/usr/bin/env bash
# Runs the tests on the oldest versions that pyproject.toml allows, in build/lowest. Arguments go to
# pytest: ./scripts/lowest.sh tests/runtime. Versions and outcome are written to
# build/lowest/result.json, of which benchmarks/lowest.json is a copy. A bound must name a release,
# and all of them must go together: pip says so otherwise.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

readonly PLACE="$ROOT/build/lowest"
PYTHON_FOUND="$(find_python)"
mkdir -p "$PLACE"
"$PYTHON_FOUND" - "$ROOT/pyproject.toml" >"$PLACE/pins.txt" <<'PYTHON'
import re, sys, tomllib
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
extras = project["optional-dependencies"]
wanted = list(project["dependencies"])
for name, requirements in extras.items():
    if name not in ("dev", "tensorrt"):  # tools may be newer; TensorRT needs a GPU
        wanted += requirements
for text in wanted:
    found = re.fullmatch(r"([\w.-]+)>=([\w.]+)(;.*)?", text)
    if found is None:
        sys.exit(f"error: expected a requirement such as name>=1.2, found {text}")
    print(f"{found[1]}=={found[2]}{found[3] or ''}")
PYTHON
sort -u -o "$PLACE/pins.txt" "$PLACE/pins.txt"
[[ -x "$PLACE/env/bin/python" ]] || "$PYTHON_FOUND" -m venv "$PLACE/env"
"$PLACE/env/bin/python" -m pip install -q -c "$PLACE/pins.txt" -e "$ROOT[dev]" ||
    fail "pip could not install these versions together; see its message above"
cd "$ROOT"
export PATH="$PLACE/env/bin:$PATH"
status=0
OMP_NUM_THREADS=1 python -m pytest --junitxml "$PLACE/result.xml" "$@" || status=$?
python - "$PLACE" <<'PYTHON'
import json, platform, re, sys, time
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

place = Path(sys.argv[1])
suite = ElementTree.parse(place / "result.xml").getroot().find("testsuite")
names = [re.split("==", line)[0] for line in (place / "pins.txt").read_text().split("\n") if line]
record = {
    "date": time.strftime("%Y-%m-%d"),
    "python": platform.python_version(),
    "versions": {name: version(name) for name in names},
    **{kind: int(suite.get(kind)) for kind in ("tests", "failures", "errors", "skipped")},
    "seconds": round(float(suite.get("time"))),
}
(place / "result.json").write_text(json.dumps(record, indent=2) + "\n")
PYTHON
exit "$status"
