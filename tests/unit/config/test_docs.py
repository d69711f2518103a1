"""docs/config.md documents the schema: every key, no other, and the right defaults."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from featherlb.config import schema
from featherlb.config.file import parse
from featherlb.config.types import Config
from featherlb.core.pools.schedulers import canonical_name

PAGE = (Path(__file__).parents[3] / "docs" / "config.md").read_text(encoding="utf-8")
SECTIONS = {
    "The file": schema.ServicesFile,
    "A service": schema.ServiceEntry,
    "A backend": schema.BackendEntry,
    "Health checks": schema.HealthEntry,
    "Passive health": schema.PassiveHealthEntry,
    "Persistence": schema.PersistenceEntry,
    "Open flows": schema.MaxFlowsEntry,
    "New flows": schema.MaxNewEntry,
    "Preference": schema.PreferenceEntry,
    "Another backend": schema.RedispatchEntry,
    "Flight recorder": schema.RecorderEntry,
    "Timeouts": schema.TimeoutsEntry,
    "The API": schema.ApiEntry,
    "A cluster": schema.ClusterEntry,
}
SERVICE = "services:\n- vip: 10.0.0.10:80\n"
WRITTEN = {
    "The file": SERVICE + "{key}: {value}\n",
    "A service": SERVICE + "  {key}: {value}\n",
    "A backend": SERVICE + "  backends: [{{address: 'a:1', {key}: {value}}}]\n",
    "Health checks": SERVICE + "  health: {{type: http, {key}: {value}}}\n",
    "Passive health": SERVICE + "  passive_health: {{{key}: {value}}}\n",
    "Persistence": SERVICE + "  persistence: {{{key}: {value}}}\n",
    "Open flows": SERVICE + "  max_flows: {{limit: 5, {key}: {value}}}\n",
    "New flows": SERVICE + "  max_new: {{rate: 5/s, {key}: {value}}}\n",
    "Preference": SERVICE + "  prefer: {{labels: {{zone: a}}, {key}: {value}}}\n",
    "Another backend": SERVICE + "  redispatch: {{{key}: {value}}}\n",
    "Flight recorder": SERVICE + "recorder: {{{key}: {value}}}\n",
    "A cluster": SERVICE + "cluster: {{node: a, listen: '10.0.0.1:1', {key}: {value}}}\n",
    "Timeouts": SERVICE + "timeouts: {{{key}: {value}}}\n",
}
"""Where a key of each section stands in a file."""


def rows(section: str) -> dict[str, str]:
    """Key to default, from the section's table."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE))


def without(section: str) -> Config:
    """The configuration that results if the key is left out."""
    more = {
        "A backend": "  backends: ['a:1']\n",
        "Health checks": "  health: {type: http}\n",
        "Passive health": "  passive_health: {}\n",
        "Persistence": "  persistence: {}\n",
        "Open flows": "  max_flows: 5\n",
        "New flows": "  max_new: 5/s\n",
        "Preference": "  prefer: {labels: {zone: a}}\n",
        "Another backend": "  redispatch: {}\n",
        "A cluster": "cluster: {node: a, listen: '10.0.0.1:1'}\n",
    }
    return parse(SERVICE + more.get(section, ""), "f")


@pytest.mark.parametrize(("section", "model"), SECTIONS.items())
def test_every_key_is_documented_and_no_other(section: str, model: type[BaseModel]) -> None:
    assert list(rows(section)) == list(model.model_fields)


@pytest.mark.parametrize(("section", "model"), SECTIONS.items())
def test_required_keys_are_marked(section: str, model: type[BaseModel]) -> None:
    required = [key for key, default in rows(section).items() if default == "required"]
    assert required == [key for key, field in model.model_fields.items() if field.is_required()]


@pytest.mark.parametrize(
    ("section", "key", "default"),
    [
        (section, key, default.strip("`"))
        for section in SECTIONS
        for key, default in rows(section).items()
        if default.startswith("`") and default != '`""`'
    ],
)
def test_a_documented_default_changes_nothing(section: str, key: str, default: str) -> None:
    written = parse(WRITTEN[section].format(key=key, value=default), "f")
    assert written == without(section)


def test_the_empty_hash_key_is_the_default() -> None:
    assert rows("The file")["hash_key"] == f'`"{Config().hash_key}"`'


def test_the_first_example_is_right() -> None:
    example = PAGE.split("```yaml\n")[1].split("```")[0]
    assert parse(example, "f").services[0].name == "web"


def test_the_table_of_strategies_is_right() -> None:
    table = re.findall(r"^\| `strategy: (\w+)` \| `scheduler: ([\w-]+)`", PAGE, re.MULTILINE)
    assert table == [(name, canonical_name(name)) for name in ("roundrobin", "random", "iphash")]
