"""Writes the results of runs to tests/e2e/runs/: a .log as text, a .json as data."""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.bench.facts import gather
from scripts.e2e import engine
from scripts.e2e.settings import RUNS, Settings


def facts(module: str, settings: Settings) -> dict[str, Any]:
    """The machine, the versions, the settings."""
    found: dict[str, Any] = gather([f"python -m {module}", *sys.argv[1:]])
    return found | {"versions": engine.versions(), "settings": asdict(settings)}


def write(
    suffix: str, facts: Mapping[str, Any], text: str, table: Table, document: Mapping[str, Any]
) -> Path:
    """Both files; their path without `.log` and `.json`."""
    RUNS.mkdir(parents=True, exist_ok=True)
    path = RUNS / (datetime.now().strftime("%Y-%m-%dT%H-%M-%S") + suffix)
    with path.with_suffix(".log").open("w") as log:
        log.writelines(f"{key}: {value}\n" for key, value in facts.items())
        log.write(f"\n{text}\n")
        Console(file=log, width=160).print(table)
    content = json.dumps({"facts": facts, **document}, indent=1)
    path.with_suffix(".json").write_text(content + "\n")
    return path
