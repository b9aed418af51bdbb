"""Lets Python find ``mmcv._ext`` if no compiled one exists.

setup.py puts this text into a .pth file, which every start of the interpreter runs: nothing here may
import what costs time (torch, or this package). Programs of OpenMMLab import mmdet, and with it mmcv's
operators, before they could know of this package; spawned worker processes do, too.
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
        from importlib.util import find_spec, spec_from_loader

        if find_spec("fastvit_dense") is None:  # the checkout of an editable install was removed
            return None
        # A class serves as loader as well as an instance does.
        return spec_from_loader(name, cls, origin="fastvit_dense.compat.mmcv_ops")  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec):
        return None  # the ordinary, empty module

    @staticmethod
    def exec_module(module):
        from importlib import import_module

        import_module("fastvit_dense.compat.mmcv_ops").fill(module)


def install():
    """Put the finder last in ``sys.meta_path``, once."""
    # By name: the one that the .pth file made is another class of the same text.
    if not any(getattr(f, "__name__", "") == MmcvExtFinder.__name__ for f in sys.meta_path):
        sys.meta_path.append(MmcvExtFinder)


install()
