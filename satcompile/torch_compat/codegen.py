"""The code that Inductor has generated, before it is compiled."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from satcompile.torch_compat.inductor import _replaced


class GenerationStopped(BaseException):
    """Unwinds Inductor after it generated code and before that code is compiled.

    A BaseException because Inductor wraps every Exception in one of its own.
    """


@contextlib.contextmanager
def watching_generated_code(
    check: Callable[[str, dict[str, str]], None], stub: bool = False
) -> Iterator[None]:
    """Call ``check(source, origins)`` with each wrapper's text before its kernels are compiled.

    ``origins`` names for each buffer the node that it comes from. ``check`` may raise
    ``GenerationStopped``. With ``stub`` nothing is compiled, and the module must not be called.
    A hit in the FX graph cache does not call ``check``.
    ``GraphLowering._compile_to_module_lines``: 2.11, 2.13.
    """
    from torch._inductor.graph import GraphLowering

    original = GraphLowering._compile_to_module_lines

    def checked(self: Any, wrapper_code: Any) -> Any:
        check(wrapper_code.value, _origins(self))
        return _StubModule() if stub else original(self, wrapper_code)

    with _replaced(GraphLowering, "_compile_to_module_lines", checked):
        yield


class LaterModules:
    """Modules of generated code that load, and compile their kernels, only when they are needed.

    A module compiles its kernels when it is imported. If a plan is given up after both wrappers
    have been read, its forward's kernels are not needed.
    """

    def __init__(self) -> None:
        self._waiting: list[_LaterModule] = []

    @contextlib.contextmanager
    def put_off(self) -> Iterator[None]:
        """Graphs compiled inside, or found in the FX graph cache, get modules that load later. On
        the CPU only: for a GPU, Inductor takes kernels out of a module at once, to bundle or record
        them. ``PyCodeCache.load_by_key_path``, given attributes for the module of a graph: 2.13."""
        from torch._inductor.codecache import PyCodeCache

        load_at_once = PyCodeCache.load_by_key_path

        def later(key: str, path: str, *args: Any, **kwargs: Any) -> Any:
            load = functools.partial(load_at_once, key, path, *args, **kwargs)
            if len(args) < 2 and "attrs" not in kwargs:  # not the module of a graph
                return load()
            module = _LaterModule(path, load)
            self._waiting.append(module)
            return module

        with _replaced(PyCodeCache, "load_by_key_path", later):
            yield

    def load(self, compiled: Any) -> None:
        """Load the modules that wait; the compiled graph then calls them directly.
        ``current_callable``, ``compiled_fn_runner``, ``recursively_apply_fns``: 2.13."""
        for module in self._waiting:
            loaded = module.loaded
            if getattr(compiled, "current_callable", None) == module.call:
                compiled.current_callable = loaded.call
                runner = getattr(loaded, "runner", None)
                compiled.compiled_fn_runner = runner
                compiled.recursively_apply_fns = getattr(runner, "recursively_apply_fns", None)
        self._waiting.clear()


class _LaterModule:
    """Stands in for a module that is not loaded yet; its first call loads it."""

    def __init__(self, path: str, load: Callable[[], Any]) -> None:
        self.__file__ = path
        self._load = load

    @functools.cached_property
    def loaded(self) -> Any:
        return self._load()

    def call(self, args: list[Any]) -> Any:
        return self.loaded.call(args)

    def __getattr__(self, name: str) -> Any:
        if name in (
            "runner",
            "recursively_apply_fns",
        ):  # torch asks every module for these; not all have them
            raise AttributeError(name)
        return getattr(self.loaded, name)


def _origins_of(buffer: Any) -> Any:
    """The origins of a buffer; a buffer that an operator writes into has none."""
    return buffer.get_origins() if hasattr(buffer, "get_origins") else ()


def _origins(lowering: Any) -> dict[str, str]:
    """For each buffer, the name of the last node that went into it. 2.11, 2.13."""
    found = {}
    for name, buffer in lowering.name_to_buffer.items():
        node = buffer.get_origin_node() or next(reversed(list(_origins_of(buffer))), None)
        if node is not None:
            found[name] = node.name
    return found


class _StubModule:
    """Stands in for a compiled module whose result nobody calls."""

    __file__ = __file__
    key = ""

    @staticmethod
    def call(args: list[Any]) -> list[Any]:
        raise AssertionError("a dry compilation was called")
