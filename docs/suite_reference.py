"""Write docs/suites.md from the models that suite files are checked with.

python docs/suite_reference.py
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_core.run.suite import Suite

PLACE = Path(__file__).parent / "suites.md"
HEAD = """\
# Suite files

<!-- Written by `python docs/suite_reference.py`; edit the descriptions in bench_core/run/suite.py. -->

A suite is a TOML file that states which networks, strategies and operating points make a board. Run it with
`exitbench run FILE.toml`. Unknown keys and wrong values are refused with the file, the key and a remedy. The built-in
suites are in `bench_core/suites/`; this is a small one:

```toml
{example}
```

Keys without a default are required.
"""
EXAMPLE = """\
schema = "exitbench.suite/1"
name = "mine"
operating_points = ["iso-accuracy:0.5", "budget:0.5"]

[[workloads]]
name = "direct"
dataset = "fashion-mnist"
model = "small-conv"
timesteps = 4
recipe = { epochs = 6, learning_rate = 0.1, shift = 1, flip = true }

[[workloads]]
name = "converted"
dataset = "fashion-mnist"
model = "small-conv"
timesteps = 16
recipe = { epochs = 6, learning_rate = 0.1 }
conversion = { converter = "qcfs", parameters = { levels = 4 } }

[[strategies]]
name = "*"

[[strategies]]
name = "topk-cutoff"
parameters = { search = "bins" }"""
SECTIONS = {
    "Suite": "The file",
    "WorkloadSpec": "`[[workloads]]`",
    "Recipe": "`recipe` of a workload",
    "Trunk": "`trunk` of a recipe",
    "RegularizerSpec": "`regularizer` of a recipe",
    "ConversionSpec": "`conversion` of a workload",
    "StrategySpec": "`[[strategies]]`",
    "CostModelSpec": "`cost_models`, as tables",
    "LatencySpec": "`[latency]`",
    "ShiftSpec": "`[shift]`",
}
_LIMITS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {}",
}
_NAMES = {"integer": "integer", "number": "number", "string": "text", "boolean": "true or false"}


def reference() -> str:
    """Return the page."""
    schema = Suite.model_json_schema(by_alias=True)
    models = {"Suite": schema, **schema["$defs"]}
    parts = [HEAD.format(example=EXAMPLE)]
    for name, title in SECTIONS.items():
        model = models[name]
        rows = list(_rows(model, models["Recipe"] if name == "Trunk" else None))
        parts += [
            f"## {title}\n\n{_prose(model['description'])}\n\n| key | type | default | meaning |\n|---|---|---|---|"
        ]
        parts += [*rows, ""]
        if name == "Trunk":
            parts += ["All keys of a recipe apply as well.", ""]
    return "\n".join(parts).rstrip() + "\n"


def _rows(model: dict[str, Any], base: dict[str, Any] | None) -> Iterator[str]:
    """Yield a row for each key of a model that ``base`` does not have."""
    for key, field in model["properties"].items():
        if base is not None and key in base["properties"]:
            continue
        default = "" if key in model.get("required", ()) else _written(field.get("default"))
        yield f"| `{key}` | {_type(field)} | {default} | {_prose(field['description'])} |"


def _prose(text: str) -> str:
    """Return a docstring's paragraphs as markdown, each on one line."""
    return "\n\n".join(" ".join(part.split()) for part in text.replace("``", "`").split("\n\n"))


def _written(default: object) -> str:
    if default is None or isinstance(default, dict):
        return "none" if default is None else "see below" if default else "`{}`"
    return f"`{json.dumps(default)}`"


def _type(field: dict[str, Any]) -> str:
    """Return a type with its limits, in words."""
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if values := field.get("enum") or [field[key] for key in ("const",) if key in field]:
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    if field.get("type") == "array":
        item = _type(field["items"])
        many = item.replace("text", "texts").replace("table", "tables").replace("integer", "integers")
        return f"list of {many}{_limits(field)}"
    if "$ref" in field or field.get("type") == "object":
        return "table"
    return f"{_NAMES[field['type']]}{_limits(field)}"


def _limits(field: dict[str, Any]) -> str:
    found = [text.format(field[limit]) for limit, text in _LIMITS.items() if limit in field]
    return f" ({', '.join(found)})" if found else ""


if __name__ == "__main__":
    PLACE.write_text(reference(), encoding="utf-8")
