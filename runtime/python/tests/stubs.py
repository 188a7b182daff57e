"""Empty modules in the place of packages that an engine imports and that moec's part of it never calls.

Engines ask for a hundred packages, many of which want a GPU to be installed. What is imported here is named at the end, so that nobody
takes a stub for the real thing.
"""

import importlib.abc
import importlib.machinery
import sys
import types

#: Packages that were stubbed.
STUBBED: set[str] = set()


class _Kind(type):
    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Kind(name, (_Thing,), {"__module__": cls.__module__})

    def __getitem__(cls, key):
        return cls


class _Thing(metaclass=_Kind):
    """Anything at all: a class to inherit from, a decorator, a namespace, a value."""

    def __init__(self, *args, **kwargs):
        pass

    def __init_subclass__(cls, **kwargs):
        pass

    @classmethod
    def __get_pydantic_core_schema__(cls, source, handler):
        from pydantic_core import core_schema

        return core_schema.any_schema()

    def __call__(self, *args, **kwargs):
        return args[0] if len(args) == 1 and not kwargs and callable(args[0]) else _Thing()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return _Thing()

    def __getitem__(self, key):
        return _Thing()

    def __iter__(self):
        return iter(())

    def __or__(self, other):
        return object

    __ror__ = __or__


class _Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__") and name != "__version__":
            raise AttributeError(name)
        if name == "__version__":
            return "0.0.0"
        made = _Kind(name, (_Thing,), {"__module__": self.__name__})
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, engine: str, absent: tuple[str, ...]):
        self.engine, self.absent = engine, absent

    def find_spec(self, name, path=None, target=None):
        # Asked last: nobody else has found it. Other packages look for optional ones, and mean it.
        top = name.partition(".")[0]
        if top in (self.engine, *self.absent) or top in sys.stdlib_module_names or not (top in STUBBED or self._asked_by_engine()):
            return None
        STUBBED.add(top)
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def _asked_by_engine(self) -> bool:
        frame = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__", "").startswith("importlib"):
            frame = frame.f_back
        return frame is not None and frame.f_globals.get("__name__", "").partition(".")[0] == self.engine

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        module.__path__ = []


def install(engine: str, *absent: str) -> None:
    """Stubs what this package imports and nobody has, but for packages by which it knows what machine it is on."""
    sys.meta_path.append(_Finder(engine, absent))
