"""Lets Python find ``mmcv._ext`` when no compiled one exists.

A module of its own beside the package, because the ``.pth`` file that setup.py installs loads it at
every start of the interpreter: it must stay free of imports that cost time (torch, or the package).
"""

import sys


class MmcvExtFinder:
    """Meta-path finder that answers for ``mmcv._ext`` and for nothing else.

    It stands last in ``sys.meta_path``, so a compiled ``mmcv._ext`` is found before it is asked.
    """

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "mmcv._ext":
            return None
        from importlib.machinery import ModuleSpec

        # A class serves as loader as well as an instance does; only its type says otherwise.
        return ModuleSpec(name, cls, origin="fastvit_dense.mmcv_ops")  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec):
        return None  # the ordinary, empty module

    @staticmethod
    def exec_module(module):
        from fastvit_dense import mmcv_ops

        mmcv_ops.fill(module)


def install():
    """Put the finder last in ``sys.meta_path``, once."""
    if MmcvExtFinder not in sys.meta_path:
        sys.meta_path.append(MmcvExtFinder)
