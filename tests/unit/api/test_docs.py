"""docs/api.md describes the schema and the routes: all of them, and nothing else."""

import inspect
import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from featherlb.api import schema
from featherlb.api.handlers import routes

PAGE = (Path(__file__).parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
BASES = (BaseModel, schema.Answer, schema.Question)
MODELS = {
    name: model
    for name, model in inspect.getmembers(schema, inspect.isclass)
    if issubclass(model, BaseModel) and model not in BASES
}


def test_every_model_has_a_section() -> None:
    assert set(re.findall(r"^### (\w+)$", PAGE, re.MULTILINE)) == MODELS.keys()


@pytest.mark.parametrize("name", MODELS)
def test_every_field_is_documented(name: str) -> None:
    section = PAGE.split(f"\n### {name}\n")[1].split("\n### ")[0]
    rows = re.findall(r"^\| `(\w+)` \| .+? \| (.*) \|$", section, re.MULTILINE)
    assert rows == [
        (field.serialization_alias or key, field.description or "")
        for key, field in MODELS[name].model_fields.items()
    ]


def test_every_route_is_documented() -> None:
    documented = set(re.findall(r"^\| `(GET|POST|DELETE) (\S+)` \|", PAGE, re.MULTILINE))
    served = {(method, path.replace("{number}", "NUMBER")) for method, path in routes()}
    assert documented == served


def test_links_lead_somewhere() -> None:
    anchors = {name.lower() for name in MODELS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", PAGE)) <= anchors
