"""The common grammar of state trees: a frozen view and a mutable model at each level, children by their numbers.

A view has the fields and is read-only. The mutable model of the same level inherits them, adds the changes,
exists only inside a locked section, and returns a view with `to_view`. The time of a fact is in the field
``<fact>_at``, in UTC and whole seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, NoReturn, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, PrivateAttr

K = TypeVar("K")
V = TypeVar("V")
TView = TypeVar("TView", bound="StateView")

FAILURE_LENGTH = 300
"""Largest number of characters of a failure's message in the shared state; the flag file has the whole message."""


class FrozenDict(dict[K, V]):
    """A dict that refuses to be changed; the children of a view.

    Examples
    --------
    >>> FrozenDict({1: "a"})[2] = "b"
    Traceback (most recent call last):
        ...
    TypeError: a view cannot be changed; open the object through its service
    """

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a view cannot be changed; open the object through its service")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[type[FrozenDict[K, V]], tuple[dict[K, V]]]:
        return FrozenDict, (dict(self),)

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _in_order(children: dict[K, V]) -> FrozenDict[K, V]:
    return FrozenDict({key: children[key] for key in sorted(children)})  # type: ignore[type-var]


Children = Annotated[dict[int, V], AfterValidator(_in_order)]
"""Children of a view: cannot be changed, in the order of their numbers."""


class StateView(BaseModel):
    """The fields of one object at one moment, which may be out of date already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def when(self, fact: str, /) -> datetime | None:
        """Return when a fact happened, or None if it has not.

        Raises
        ------
        ValueError
            Objects of this kind have no such fact.
        """
        return getattr(self, self._field(fact))

    def has(self, fact: str, /) -> bool:
        """Return whether a fact has happened."""
        return self.when(fact) is not None

    @classmethod
    def facts(cls) -> tuple[str, ...]:
        """Return the facts that objects of this kind keep the time of."""
        return tuple(name.removesuffix("_at") for name in cls.model_fields if name.endswith("_at"))

    @classmethod
    def _field(cls, fact: str) -> str:
        if f"{fact}_at" not in cls.model_fields:
            raise ValueError(f"{cls.__name__} has no fact {fact!r}; expected one of {', '.join(cls.facts())}")
        return f"{fact}_at"


class MutableState(StateView):
    """One object that can be changed, inside a locked section. Each kind has a `to_view` that returns its view."""

    model_config = ConfigDict(frozen=False, validate_assignment=True)
    kept_back: ClassVar[Mapping[str, Any]] = {}
    """Fields that views do not show, as pydantic's `exclude`."""

    def to_view(self) -> StateView:
        """Return a frozen copy."""
        raise NotImplementedError

    def _as(self, view_type: type[TView], /) -> TView:
        return view_type.model_validate(self.model_dump(exclude=dict(self.kept_back)))

    def mark(self, fact: str, /, *, at: datetime | None = None) -> Self:
        """Note that a fact has happened, now or at a given time; the last time counts."""
        time = (at or datetime.now(UTC)).astimezone(UTC).replace(microsecond=0)
        setattr(self, self._field(fact), time)
        return self

    def unmark(self, *facts: str) -> Self:
        """Clear facts."""
        for fact in facts:
            setattr(self, self._field(fact), None)
        return self


class ProjectState(MutableState):
    """The root of a state tree, to be changed."""

    project_name: str
    _origin: Any = PrivateAttr(None)
    """Data of the repository that loaded it, kept until it is saved."""


class Failing(StateView):
    """Fields of objects whose work can fail and be tried again."""

    attempts: int = 0
    failure: str | None = None


def shortened(message: str, /) -> str:
    """Return a failure's message in the length that the shared state keeps."""
    return message if len(message) <= FAILURE_LENGTH else message[: FAILURE_LENGTH - 1] + "…"
