"""Imports of lightning, litgpt and torchmetrics without what their packages' openings bring along.

`lightning/__init__.py` imports the Trainer, the Trainer torchmetrics, and torchmetrics transformers;
`litgpt/__init__.py` imports them again through `litgpt.api`; Fabric imports torch._dynamo for one `isinstance`. No
training uses these 2,000 files, which cost each of its processes twice what torch itself does. So

- a package of `BARE` runs its `__init__.py` when somebody asks for a name that is neither a submodule nor listed there;
- a module of `SUBSTITUTES` gets, for the names listed there, stand-ins that import the real ones when they are called.

The packages keep their names, files and specs. One that was imported before, or is not installed, is left alone.
"""

import builtins
import importlib
import logging
import re
import sys
import threading
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType, SimpleNamespace
from typing import Any

BARE: dict[str, dict[str, str]] = {
    "lightning": {
        "Fabric": "lightning.fabric.Fabric",
        "seed_everything": "lightning.fabric.seed_everything",
        "__version__": "lightning.__version__.version",
    },
    "litgpt": {"Config": "litgpt.config.Config", "GPT": "litgpt.model.GPT"},
}
"""Packages whose opening waits, and where some of their names are found without it."""

_opening = threading.RLock()  # an opening imports modules that ask for the package's names in the same thread
_open_now: set[ModuleType] = set()


def install() -> None:
    sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds what Python's own finder does, with another way of running it."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in BARE and name not in SUBSTITUTES:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:  # not installed, or a folder that only has the name
            return spec
        loader = spec.loader

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module  # from here on the loader is as Python made it
            if name in SUBSTITUTES:
                _substitute_imports(module)
            if not isinstance(module, _BarePackage):
                loader.exec_module(module)
            elif name == "litgpt":
                _quieten_torch()

        loader.exec_module = exec_module
        if name in BARE:
            loader.create_module = lambda spec: _BarePackage(spec.name)
        return spec


class _BarePackage(ModuleType):
    """A package whose `__init__.py` has not run."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in BARE[self.__name__] and isinstance(value, ModuleType):
            return  # a submodule `__version__` does not hide the version
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        package = self.__name__
        if name.startswith("__") and name not in BARE[package]:  # asked of any module by inspect, copy or pickle
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if name in BARE[package]:
            module, _, name_there = BARE[package][name].rpartition(".")
            return getattr(importlib.import_module(module), name_there)
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name != f"{package}.{name}":
                raise
        return _open(self, name)


def _open(package: _BarePackage, name: str) -> Any:
    """Runs the package's `__init__.py`, once; from then on it is a module like any other."""
    with _opening:
        if package in _open_now:  # by this thread: its `__init__.py` is where the name is missing
            raise AttributeError(f"partially initialized module {package.__name__!r} has no attribute {name!r}")
        if isinstance(package, _BarePackage):
            _open_now.add(package)
            try:
                package.__loader__.exec_module(package)
            finally:
                _open_now.remove(package)
            package.__class__ = ModuleType
    return getattr(package, name)


def _substitute_imports(module: ModuleType) -> None:
    """Makes the module's `from … import …` statements yield what `SUBSTITUTES` says."""
    substitutes = SUBSTITUTES[module.__name__]

    def import_statement(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        if name not in substitutes or not fromlist:
            return builtins.__import__(name, globals, locals, fromlist, level)
        found = dict(substitutes[name])
        for each in fromlist:
            if each not in found:
                found[each] = getattr(importlib.import_module(name), each)
        return SimpleNamespace(**found)

    # Python looks import statements up here; other modules, and other threads, keep theirs.
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": import_statement}


class _Deferred(type):
    """The type of classes and functions imported when called; before that, nothing is an instance of them."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        real = getattr(importlib.import_module(cls.__module__), cls.__name__)
        return real(*arguments, **named)

    def __instancecheck__(cls, instance: object) -> bool:
        real = getattr(sys.modules.get(cls.__module__), cls.__name__, None)
        return real is not None and isinstance(instance, real)


def _deferred(path: str) -> dict[str, _Deferred]:
    module, _, name = path.rpartition(".")
    return {name: _Deferred(name, (), {"__module__": module})}


def _compare_version(
    package: str, compare: Callable[[Any, Any], bool], version: str, use_base_version: bool = False
) -> bool:
    """Does what lightning_utilities' function does, and reads torchmetrics' version without importing it."""
    # whoever only asks for --help does not pay for these
    from importlib import metadata

    from lightning_utilities.core.imports import compare_version
    from packaging.version import Version

    if package != "torchmetrics":
        return compare_version(package, compare, version, use_base_version)
    try:
        return compare(Version(metadata.version(package)), Version(version))
    except metadata.PackageNotFoundError:
        return False


SUBSTITUTES: dict[str, dict[str, dict[str, Any]]] = {
    "lightning.fabric.utilities.imports": {"lightning_utilities.core.imports": {"compare_version": _compare_version}},
    "lightning.fabric.wrappers": {"torch._dynamo": _deferred("torch._dynamo.OptimizedModule")},
    "litgpt.utils": {
        "lightning.pytorch.cli": _deferred("lightning.pytorch.cli.instantiate_class"),
        "lightning.pytorch.loggers": {
            **_deferred("lightning.pytorch.loggers.MLFlowLogger"),
            **_deferred("lightning.pytorch.loggers.WandbLogger"),
        },
    },
}
"""Modules, the modules they import from at their top, and what they get for names that they hardly ever use."""


def _quieten_torch() -> None:
    """Does to torch's loggers what litgpt's opening does: compiled code and checkpoints do not warn of profilers."""
    for part in ("_optim_utils", "_debug_utils"):
        logging.getLogger(f"torch.distributed.fsdp.{part}").disabled = True
    compiler = logging.getLogger("torch._dynamo.variables.torch")
    compiler.addFilter(lambda record: not re.match("Profiler function .* will be ignored", record.getMessage()))
