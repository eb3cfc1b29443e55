"""Makes transformers' Auto classes know our models once both are imported, in either order.

Registering needs the model classes, hence torch, which `import sslim` must not cost; and transformers has no
entry point that it would look for by itself. So imports are watched: where transformers is there already we
register at once, otherwise when its import has just ended; that moment is safe, for no module of transformers
is half imported then. The one other thing that may be half imported is our own `sslim.backbone` (its modules
import transformers): we wait for it too.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

_ROOM = "sslim.backbone"


def register_when_imported() -> None:
    """Register our model classes now if transformers is imported, else as soon as it is."""
    if "transformers" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _ImportWatcher())


def _register() -> None:
    from sslim.backbone.families import register

    register()


class _ImportWatcher(MetaPathFinder):
    """Finds nothing itself; lets the import system find, and is told when a module is complete."""

    def __init__(self) -> None:
        self._under_way: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, its loader reporting back when it has run."""
        if fullname != "transformers" and not f"{fullname}.".startswith(f"{_ROOM}."):
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)):
                self._report_when_executed(spec)
                return spec
        return None

    def _report_when_executed(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        if loader is None:  # a namespace package runs no code
            return
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            self._under_way.add(spec.name)
            try:
                execute(module)
            finally:
                self._under_way.discard(spec.name)
                # The loader stays with the module as it was: inspect and others ask it.
                del loader.exec_module
            self._on_complete()

        # On this loader alone, each import has its own; a wrapper would hide its other methods.
        loader.exec_module = exec_module  # type: ignore[method-assign]

    def _on_complete(self) -> None:
        if "transformers" in sys.modules and not self._under_way and self in sys.meta_path:
            sys.meta_path.remove(self)  # first: registering imports the modules watched here
            _register()
