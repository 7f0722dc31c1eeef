"""What the fields of settings and events mean: the text below each in its class, read when somebody asks for it.

Pydantic can read it itself (`use_attribute_docstrings`), but does so when a class is made: a quarter of a second of
every start of a command, for pages and templates that are rarely made.
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise

from pydantic import BaseModel


@cache
def descriptions_of(model: type[BaseModel], /) -> Mapping[str, str]:
    """Return what the fields of a model mean, by name; fields without a text are left out.

    Raises
    ------
    OSError
        The source of the class is not there.

    Examples
    --------
    >>> from opticstream.config import DeploymentSettings
    >>> descriptions_of(DeploymentSettings)["poll_s"]
    'Time between two checks of the raw folder, in seconds.'
    """
    found: dict[str, str] = {}
    for one in reversed(model.__mro__):
        if not issubclass(one, BaseModel) or not one.__module__.startswith("opticstream."):
            continue
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(one))).body
        assert isinstance(definition, ast.ClassDef)
        for field, text in pairwise(definition.body):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(meaning))):
                    found[name] = inspect.cleandoc(meaning)
    return {name: meaning for name, meaning in found.items() if name in model.model_fields}
