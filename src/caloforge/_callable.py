"""Packages that are called like the function they hold: ``caloforge.simulate(...)`` is ``caloforge.simulate.simulate``.

The four verbs share their names with the modules they live in; this keeps both ways of writing them valid, whichever
is imported first.
"""

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


def callable_module(name: str) -> None:
    """Make the module ``name`` callable; to be called at its end with ``__name__``."""
    sys.modules[name].__class__ = _Callable
