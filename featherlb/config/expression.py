"""Conditions on metrics, such as `rate(packets(result='dropped')) > 100`.

The language: numbers; the sum of a metric over its labels, by its name without `featherlb_` and
`_total`; the same for certain labels, `NAME(label='value')`; `rate(…)` of one of these, per second;
`+ - * /`, comparisons, `and`, `or`, `not`, brackets. Python parses it, and nothing else of Python
is known to it.
"""

import ast
import operator
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

WINDOW = 10.0
"""Seconds that a rate is taken over."""
_ARITHMETIC: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda one, other: one / other if other else 0.0,
}
_COMPARISONS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}
_LONGEST = 500
"""Characters."""

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""By metric, its labels and its value, of each of its samples."""


class UnknownMetricError(Exception):
    """There is no metric of this name."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that was parsed. `text` is what the operator has written."""

    text: str
    root: ast.expr = field(compare=False, repr=False)

    @classmethod
    def parse(
        cls,
        text: str,
        example: str = "rate(packets(result='dropped')) > 100",
        refine: Callable[[ast.expr], ast.expr] = lambda root: root,
    ) -> "Condition":
        """ValueError, with an `example`, if it is none. `refine` gives the expression its meaning,
        and may raise ValueError as well."""
        try:
            if len(text) > _LONGEST:
                raise ValueError
            root = ast.parse(text.strip(), mode="eval").body
            _check(root)
            root = refine(root)
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            why = f": {error}" if type(error) is ValueError and str(error) else ""
            raise ValueError(
                f"'{text:.60}' is no condition{why} (expected one such as {example})"
            ) from None
        return cls(text, root)

    def __str__(self) -> str:
        return self.text


class Watch:
    """A condition over time: its rates need what the metrics were before."""

    def __init__(self, condition: Condition) -> None:
        self._root = condition.root
        self._before: dict[str, deque[tuple[float, float]]] = {}

    def is_true(self, samples: Samples, now: float) -> bool:
        """Whether it is true of these, at this time (seconds); UnknownMetricError if it names one
        that isn't there."""
        return bool(self._value(self._root, samples, now))

    def _value(self, node: ast.expr, samples: Samples, now: float) -> float:
        def value(inner: ast.expr) -> float:
            return self._value(inner, samples, now)

        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Call(func=ast.Name(id="rate"), args=[inner]):
                return self._rate(ast.unparse(inner), value(inner), now)
            case ast.Call(func=ast.Name(id=name), keywords=keywords):
                labels = {
                    str(one.arg): one.value.value
                    for one in keywords
                    if isinstance(one.value, ast.Constant)
                }
                return _sum(samples, name, labels)
            case ast.Name(id=name):
                return _sum(samples, name, {})
            case ast.UnaryOp(op=ast.Not(), operand=inner):
                return not value(inner)
            case ast.UnaryOp(operand=inner):
                return -value(inner)
            case ast.BinOp(left=left, op=op, right=right):
                return _ARITHMETIC[type(op)](value(left), value(right))
            case ast.BoolOp(op=ast.And(), values=parts):
                return all(list(map(value, parts)))  # every rate has to be kept up to date
            case ast.BoolOp(values=parts):
                return any(list(map(value, parts)))
            case ast.Compare(left=first, ops=ops, comparators=others):
                values = [value(one) for one in (first, *others)]
                pairs = zip(ops, values, values[1:], strict=False)
                return all(_COMPARISONS[type(op)](one, other) for op, one, other in pairs)
        raise AssertionError(node)

    def _rate(self, what: str, value: float, now: float) -> float:
        """Per second, since the first look in the window; 0 after a counter has begun anew."""
        looks = self._before.setdefault(what, deque())
        while len(looks) > 1 and looks[1][0] <= now - WINDOW:
            looks.popleft()
        looks.append((now, value))
        since, before = looks[0]
        return max(0.0, value - before) / (now - since) if now > since else 0.0


def _sum(samples: Samples, name: str, labels: Mapping[str, object]) -> float:
    if name not in samples:
        raise UnknownMetricError(name)
    return sum(
        value
        for found, value in samples[name]
        if all(found.get(key) == wanted for key, wanted in labels.items())
    )


def _is_label(one: ast.keyword) -> bool:
    return bool(one.arg) and isinstance(one.value, ast.Constant) and type(one.value.value) is str


def _check(node: ast.expr) -> None:
    """ValueError unless the language has all of this."""
    for part in _parts(node):
        _check(part)


def _parts(node: ast.expr) -> Sequence[ast.expr]:
    """What an expression consists of; ValueError if the language has none of its kind."""
    match node:
        case ast.Constant(value=number) if type(number) in (int, float):
            return ()
        case ast.Name():
            return ()
        case ast.Call(func=ast.Name(id="rate"), args=[inner], keywords=[]):
            if isinstance(inner, ast.Name | ast.Call) and not _is_rate(inner):
                return (inner,)
        case ast.Call(func=ast.Name(id=name), args=[], keywords=[_, *_] as labels):
            if name != "rate" and all(map(_is_label, labels)):
                return ()
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=inner):
            return (inner,)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return left, right
        case ast.BoolOp(values=parts):
            return parts
        case ast.Compare(left=left, ops=ops, comparators=others):
            if all(type(op) in _COMPARISONS for op in ops):
                return left, *others
    raise ValueError(f"'{ast.unparse(node):.40}' is not understood")


def _is_rate(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "rate"
