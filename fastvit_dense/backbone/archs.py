"""The variants of FastViT, one row each (paper: arXiv:2303.14189, table 2)."""

from typing import NamedTuple


class Arch(NamedTuple):
    """One variant: a row of the paper's table 2, with its stochastic depth rate of table 15."""

    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    ffn_ratio: int
    attention: bool  # in stage 4, after a conditional position encoding
    drop_path_rate: float


# fmt: off
ARCHS = {
    # arch        depths         widths               FFN  attention  stochastic depth
    "t8":   Arch((2, 2, 4, 2),  (48, 96, 192, 384),   3,   False,     0.0),
    "t12":  Arch((2, 2, 6, 2),  (64, 128, 256, 512),  3,   False,     0.0),
    "s12":  Arch((2, 2, 6, 2),  (64, 128, 256, 512),  4,   False,     0.0),
    "sa12": Arch((2, 2, 6, 2),  (64, 128, 256, 512),  4,   True,      0.1),
    "sa24": Arch((4, 4, 12, 4), (64, 128, 256, 512),  4,   True,      0.1),
    "sa36": Arch((6, 6, 18, 6), (64, 128, 256, 512),  4,   True,      0.2),
    "ma36": Arch((6, 6, 18, 6), (76, 152, 304, 608),  4,   True,      0.35),
}
# fmt: on

STRIDES = (4, 8, 16, 32)
