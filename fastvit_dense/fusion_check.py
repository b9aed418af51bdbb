"""The fusion of every variant against rounding: how far fused and unfused are apart, and from the truth.

Two float32 computations of one function differ by rounding, the more the deeper the network. So the
difference alone does not tell a slightly wrong fold from none; the distance of each from float64 does: a
fold that is right leaves the fused model about as near to it as the unfused one is.
"""

import copy
from typing import NamedTuple

import torch

from .backbone import FastViT
from .equivalence import FARTHER, allowed_error, worst_error
from .random_statistics import randomise_statistics
from .reparam import reparameterize

# Greatest relative L2 errors: fused to unfused in float64 and float32. Measured: 2e-15; 0.5e-6 to 1.1e-6.
# In float32 it may be more where rounding explains more: equivalence.FARTHER.
FLOAT64, FLOAT32 = 1e-12, 4e-6


class FusionRow(NamedTuple):
    """Relative L2 errors of a backbone's worst map.

    Attributes:
        arch: key of ``ARCHS``.
        shape: height and width of the image in pixels.
        float64: fused to unfused, both computed in float64.
        float32: fused to unfused, both computed in float32.
        unfused: unfused in float32 to unfused in float64.
        fused: fused in float32 to unfused in float64.
    """

    arch: str
    shape: tuple[int, int]
    float64: float
    float32: float
    unfused: float
    fused: float

    @property
    def passes(self) -> bool:
        """Whether the fold is right up to rounding."""
        return (
            self.float64 <= FLOAT64
            and self.float32 <= allowed_error(FLOAT32, self.unfused)
            and self.fused <= FARTHER * self.unfused
        )


@torch.no_grad()
def check_fusion(arch: str, shape: tuple[int, int], *, seed: int = 0) -> FusionRow:
    """Compare a backbone with drawn BatchNorm statistics and layer scales before and after fusing.

    Args:
        arch: key of ``ARCHS``.
        shape: height and width of the drawn image in pixels.
        seed: of weights and statistics.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = randomise_statistics(FastViT(arch), seed=seed).eval()
    exact = copy.deepcopy(model).double()
    x = torch.randn(1, 3, *shape, generator=torch.Generator().manual_seed(0))
    truth, fused_exact = exact(x.double()), reparameterize(exact)(x.double())
    unfused, fused = model(x), reparameterize(model)(x)
    return FusionRow(
        arch,
        shape,
        worst_error(truth, fused_exact)[2],
        worst_error(unfused, fused)[2],
        worst_error(truth, unfused)[2],
        worst_error(truth, fused)[2],
    )


def table(rows: list[FusionRow]) -> str:
    """A Markdown table."""
    lines = [
        "| variant | image | float64 | float32 | unfused float32 to float64 | fused float32 to float64 | |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        errors = " | ".join(f"{e:.1e}" for e in (r.float64, r.float32, r.unfused, r.fused))
        verdict = "ok" if r.passes else "OFF"
        lines.append(f"| {r.arch} | {r.shape[0]}x{r.shape[1]} | {errors} | {verdict} |")
    return "\n".join(lines)
