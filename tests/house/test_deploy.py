"""The files in deploy/ name commands, options and files that there are."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

from avl_runtime.cli.serve import make_parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def test_the_unit_starts_a_server_that_stops_in_time() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read(DEPLOY / "avl-serve.service")
    service = unit["Service"]
    command, *words = shlex.split(service["ExecStart"])
    parsed = make_parser().parse_args(words)
    assert command.endswith("/avl-serve") and parsed.host == "127.0.0.1"
    assert float(service["TimeoutStopSec"]) > parsed.grace + 10
    for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp", "ProtectHome", "LockPersonality"):
        assert service[name] == "yes"
    assert service["CapabilityBoundingSet"] == "" and service["ProtectSystem"] == "strict"


def test_the_image_is_made_of_files_that_there_are() -> None:
    lines = (DEPLOY / "Dockerfile").read_text().splitlines()
    copied = [
        word
        for line in lines
        if line.startswith("COPY ") and "--from" not in line
        for word in line.split()[1:-1]
    ]
    assert len(copied) > 5 and all((ROOT / name).exists() for name in copied)
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied)
    # What building a wheel reads beside the packages.
    named = re.findall(r'"([\w.]+)"', (ROOT / "pyproject.toml").read_text().partition("sdist")[2])
    assert {"hatch_build.py", "README.md", "LICENSE", "NOTICE"} <= set(copied) & set(named)
    last = len(lines) - lines[::-1].index("FROM ${PYTHON}")
    (user,) = [line.split()[1] for line in lines[last:] if line.startswith("USER ")]
    assert user == "10001:10001"
    entry = [line for line in lines[last:] if line.startswith("ENTRYPOINT")]
    assert entry == ['ENTRYPOINT ["avl-serve"]']
