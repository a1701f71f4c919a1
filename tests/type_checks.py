"""Type checks of the package while tests run: what jaxtyping's import hook decorates everything with, made cheap.

jaxtyping binds the arguments of every call, checks them twice, and compiles its checks anew for every function that is
defined inside another one: half the time of the engine's tests. Here arguments and results are checked once. Axes are
compared within a call wherever a signature has tensors, and the checks of a function inside another one are those of
the types in its signature, which are compiled once.
"""

import dataclasses
import functools
import inspect
import re
import types
import typing

import jaxtyping
from beartype.door import die_if_unbearable

TENSOR = re.compile(r"\b(Bool|Float|Int|Shaped)\[")  # in an annotation
INNER = {}  # by the code of a function inside another one: its signature and types
SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
jaxtyped = jaxtyping.jaxtyped


def install():
    """Call it before the package is imported."""
    jaxtyping.jaxtyped = typed


def typed(decorated=None, *, typechecker):
    """A function whose calls are checked, or a data class whose making is."""
    if decorated is None:
        return functools.partial(typed, typechecker=typechecker)
    if inspect.isclass(decorated):
        if dataclasses.is_dataclass(decorated) and "__init__" in vars(decorated):
            decorated.__init__ = typed(decorated.__init__, typechecker=typechecker)
        return decorated
    checked = inner(decorated) if "<locals>" in decorated.__qualname__ else outer(decorated, typechecker)
    axes = bool(TENSOR.search(" ".join(map(str, decorated.__annotations__.values()))))

    @functools.wraps(decorated)
    def called(*arguments, **options):
        if jaxtyping.config.jaxtyping_disable:
            return decorated(*arguments, **options)
        if not axes:
            return checked(*arguments, **options)
        with jaxtyped("context"):
            return checked(*arguments, **options)

    return called


def outer(function, typechecker):
    at = (function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__)
    known = types.FunctionType(*at)
    known.__kwdefaults__, known.__qualname__ = function.__kwdefaults__, function.__qualname__
    known.__module__, known.__annotations__ = function.__module__, resolved(function)
    return typechecker(known)


def inner(function):
    if function.__code__ not in INNER:
        INNER[function.__code__] = (inspect.signature(function), resolved(function))
    signature, hints = INNER[function.__code__]

    def checked(*arguments, **options):
        for name, value in signature.bind(*arguments, **options).arguments.items():
            several = signature.parameters[name].kind in SEVERAL
            for one in (value.values() if isinstance(value, dict) else value) if several else (value,):
                die_if_unbearable(one, hints.get(name, typing.Any))
        made = function(*arguments, **options)
        die_if_unbearable(made, hints.get("return", typing.Any))
        return made

    return checked


def resolved(function):
    """Types by name; arguments of any function, and what is imported for static checkers alone, are anything."""
    found = {}
    for name, annotation in function.__annotations__.items():
        try:
            found[name] = eval(annotation, function.__globals__) if isinstance(annotation, str) else annotation
        except NameError:
            found[name] = typing.Any
        if isinstance(found[name], typing.ParamSpecArgs | typing.ParamSpecKwargs):
            found[name] = typing.Any
    return found
