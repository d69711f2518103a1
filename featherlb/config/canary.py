"""When the trial of a canary fails: a condition on what clients meet at it and at the other
backends of its service."""

import ast

from featherlb.config.expression import Condition

DEFAULT_CONDITION = "failures > 2 * others + 0.05"
METRICS = ("failures", "refused", "timeouts", "retransmissions", "resets", "latency")
OTHERS = "others"


def condition(text: str) -> Condition:
    """When a trial fails, such as `failures > 2 * others`: a comparison of a metric (`METRICS`) of
    the canary, where `others` is the same of the other backends, or several of them. ValueError,
    with what is expected, if it is none."""
    return Condition.parse(text, f"failures > 2 * {OTHERS}; of {', '.join(METRICS)}", _paired)


def _paired(node: ast.expr) -> ast.expr:
    """The expression with `others` as the other backends' metric; ValueError if it is no condition
    on metrics."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            return ast.BoolOp(op, [_paired(part) for part in parts])
        case ast.Compare():
            return _with_others(node)
    raise ValueError(f"'{ast.unparse(node):.40}' compares nothing")


def _with_others(node: ast.Compare) -> ast.expr:
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    if any(isinstance(part, ast.Call) for part in ast.walk(node)):
        raise ValueError("it is about one canary and has no labels or rates")
    if unknown := names - {*METRICS, OTHERS}:
        raise ValueError(f"there is no {min(unknown)}")
    metrics = names - {OTHERS}
    if len(metrics) != 1:
        raise ValueError(f"'{ast.unparse(node):.40}' is not about one metric")
    (metric,) = metrics

    class Renamed(ast.NodeTransformer):
        def visit_Name(self, name: ast.Name) -> ast.Name:
            return ast.Name(of_others(metric)) if name.id == OTHERS else name

    replaced = Renamed().visit(ast.parse(ast.unparse(node), mode="eval").body)
    assert isinstance(replaced, ast.expr)
    return replaced


def of_others(metric: str) -> str:
    """The name of the other backends' metric in a condition."""
    return f"{OTHERS}_{metric}"


def metrics_of(wanted: Condition) -> list[str]:
    """The metrics that a condition is about."""
    names = {part.id for part in ast.walk(wanted.root) if isinstance(part, ast.Name)}
    return [metric for metric in METRICS if metric in names]
