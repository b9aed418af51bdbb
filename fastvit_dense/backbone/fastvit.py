"""FastViT as a backbone for dense prediction (paper: arXiv:2303.14189, table 2 and figure 2).

Shape legend: B batch, H and W height and width of the image.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .archs import ARCHS, STRIDES
from .blocks import ConvStem, Stage
from .fold import fold_into, require_eval
from .pretrained import is_pretrained_cfg, load_pretrained, refuse_wrong_structure


@MODELS.register_module()
class FastViT(BaseModule):
    """FastViT that returns feature maps, for mmdet, mmseg and anything else built on mmengine.

    Submodules ``stem`` and ``stages`` carry timm's parameter names; the output norms ``norm0`` to
    ``norm3`` are new, since the published models are classifiers.

    Args:
        arch: a key of ``ARCHS``: t8, t12, s12, sa12, sa24, sa36 or ma36.
        out_indices: the stages whose maps are returned, ascending, 0 to 3 for strides 4 to 32.
            Stages past the last one are not built.
        out_norm: give each returned map a BatchNorm of its own; or the stages whose maps get one, some
            of `out_indices` (what is left where others are folded into the neck).
        norm_eval: keep the backbone's BatchNorms in eval mode while training (running statistics are
            used and not updated). The output norms are exempt: they are new and have to learn.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages: no
            gradients and eval mode. Output norms stay trainable.
        drop_path_rate: stochastic depth at the last block, rising linearly from 0 at the first.
            None means the value of the paper's ImageNet recipe.
        with_cp: recompute each block in the backward pass instead of keeping its activations.
        in_channels: channels of the image.
        deploy: build the fused, inference-only structure.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` with a path, a URL or
            ``timm://fastvit_sa12.apple_in1k``; see :func:`.pretrained.load_pretrained`.

    Attributes:
        out_channels: channels of each returned map.
        strides: stride of each returned map, in pixels of the image.

    Raises:
        ValueError: an argument has a value that does not exist; the message lists those that do.
    """

    def __init__(
        self,
        arch: str = "sa12",
        out_indices: Sequence[int] = (0, 1, 2, 3),
        *,
        out_norm: bool | Sequence[int] = True,
        norm_eval: bool = False,
        frozen_stages: int = -1,
        drop_path_rate: float | None = None,
        with_cp: bool = False,
        in_channels: int = 3,
        deploy: bool = False,
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if arch not in ARCHS:
            raise ValueError(f"arch must be one of {', '.join(ARCHS)}; got {arch!r}")
        out_indices = tuple(out_indices)
        if not out_indices or list(out_indices) != sorted(set(out_indices) & {0, 1, 2, 3}):
            raise ValueError(
                "out_indices must be ascending stage numbers from 0 (stride 4) to 3 (stride 32), "
                f"such as (0, 1, 2, 3); got {out_indices}"
            )
        with_norm = out_indices if out_norm is True else tuple(out_norm or ())
        if not set(with_norm) <= set(out_indices):
            raise ValueError(
                f"out_norm must be True, False or some of out_indices, {out_indices}; got {out_norm}"
            )
        if not -1 <= frozen_stages <= 4:
            raise ValueError(
                "frozen_stages must be -1 (none), 0 (stem) or 1 to 4 (stem and that many stages); "
                f"got {frozen_stages}"
            )
        if deploy and (with_cp or norm_eval):
            raise ValueError(
                "deploy=True builds the inference-only structure: with_cp and norm_eval are training "
                "options and must be False"
            )
        spec = ARCHS[arch]
        if drop_path_rate is None:
            drop_path_rate = spec.drop_path_rate
        if not 0 <= drop_path_rate < 1:
            raise ValueError(f"drop_path_rate must be in [0, 1); got {drop_path_rate}")

        self.arch = arch
        self.out_indices = out_indices
        self.norm_eval = norm_eval
        self.frozen_stages = frozen_stages
        self.with_cp = with_cp
        self.deploy = deploy
        self.out_channels = tuple(spec.widths[i] for i in out_indices)
        self.strides = tuple(STRIDES[i] for i in out_indices)

        self.stem = ConvStem(in_channels, spec.widths[0], deploy=deploy)
        # On the CPU, so that a model can be laid out on the meta device.
        rates = torch.linspace(0, drop_path_rate, sum(spec.depths), device="cpu")
        self.stages = nn.Sequential(
            *(
                Stage(
                    spec.widths[max(i - 1, 0)],
                    spec.widths[i],
                    ffn_ratio=spec.ffn_ratio,
                    drop_paths=rates.split(list(spec.depths))[i].tolist(),
                    attention=spec.attention and i == 3,
                    deploy=deploy,
                )
                for i in range(out_indices[-1] + 1)
            )
        )
        for i in out_indices:
            norm = nn.BatchNorm2d(spec.widths[i]) if i in with_norm else nn.Identity()
            self.add_module(f"norm{i}", norm)
        for part in self._frozen_parts():
            part.eval().requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the feature maps of a batch of images.

        Args:
            x: (B, in_channels, H, W) normalised image, H and W at least 32, not necessarily multiples
                of 32.

        Returns:
            One map (B, C_i, ceil(H / s_i), ceil(W / s_i)) for each of ``out_indices``, with C_i from
            ``out_channels`` and s_i from ``strides``.

        Raises:
            ValueError: the input is not 4-D or smaller than 32 pixels.
        """
        if x.dim() != 4 or x.shape[2] < 32 or x.shape[3] < 32:
            raise ValueError(
                "FastViT expects a batch (B, C, H, W) with H and W of at least 32 pixels; got "
                f"{tuple(x.shape)}. Resize or pad smaller images first."
            )
        x = self.stem(x)  # (B, C_0, H/4, W/4)
        outs = []
        for i, stage in enumerate(self.stages):
            if self.with_cp and self.training:
                x = _forward_recomputed(stage, x)  # type: ignore[arg-type]
            else:
                x = stage(x)
            if i in self.out_indices:
                outs.append(getattr(self, f"norm{i}")(x))
        return tuple(outs)

    def train(self, mode: bool = True) -> "FastViT":
        """Set training mode, except for what ``frozen_stages`` and ``norm_eval`` hold in eval mode."""
        super().train(mode)
        if mode:
            for part in self._frozen_parts():
                part.eval()
            if self.norm_eval:
                for module in (*self.stem.modules(), *self.stages.modules()):
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    def init_weights(self) -> None:
        """Load what ``init_cfg`` names, strictly; called by mmengine when a model is built to train."""
        if is_pretrained_cfg(self.init_cfg):
            cfg = {k: v for k, v in self.init_cfg.items() if k != "type"}
            load_pretrained(self, cfg.pop("checkpoint"), **cfg)
            self._is_init = True
        else:
            super().init_weights()

    def fused(self) -> "FastViT":
        """A new FastViT of the fused structure that computes what this one does in eval mode.

        This one is left as it is; if it is fused already, the new one is a copy.

        Raises:
            ValueError: the backbone is in training mode.
        """
        require_eval(self)
        if self.deploy:
            return copy.deepcopy(self)
        first: Any = self.stem[0]
        weight = first.conv_kxk[0].conv.weight
        fused = FastViT(
            self.arch,
            self.out_indices,
            out_norm=stages_with_norm(self),
            drop_path_rate=0.0,
            in_channels=weight.shape[1],
            deploy=True,
        ).to(weight)
        if weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
            fused = fused.to(memory_format=torch.channels_last)
        with torch.no_grad():
            fold_into(self, fused)
        return fused.eval().requires_grad_(False)

    def switch_to_deploy(self) -> None:
        """Turn this backbone into its fused, inference-only structure, as built with ``deploy=True``.

        The name that mmdeploy calls. Weights, dtype, device and memory format are kept as by
        :func:`fastvit_dense.reparameterize`, which also fuses what stands around the backbone. Once
        fused, nothing happens.

        Raises:
            ValueError: the backbone is in training mode.
        """
        if self.deploy:
            return
        for name, value in vars(self.fused()).items():
            # Private are torch's own: of them the hooks, which others put here, stay.
            if name == "_modules" or not name.startswith("_"):
                setattr(self, name, value)

    def _frozen_parts(self) -> list[nn.Module]:
        if self.frozen_stages < 0:
            return []
        return [self.stem, *self.stages.children()][: self.frozen_stages + 1]

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # Non-strict loading, which OpenMMLab's inference functions use, would pass over the keys of
        # another structure in silence and leave this backbone random.
        refuse_wrong_structure(state_dict, prefix, deploy=self.deploy)
        super()._load_from_state_dict(state_dict, prefix, *args)


def stages_with_norm(backbone: FastViT) -> list[int]:
    """The stages whose maps have an output norm: what FastViT takes as ``out_norm``."""
    return [
        i
        for i in backbone.out_indices
        if not isinstance(getattr(backbone, f"norm{i}"), nn.Identity)
    ]


def refuse_other_structures(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Raise if a state dict holds a FastViT of a model in the other structure, fused or unfused.

    Args:
        model: such as a detector.
        state_dict: what is about to be loaded into it.

    Raises:
        ValueError: the structures differ; the message says what to do.
    """
    for name, module in model.named_modules():
        if isinstance(module, FastViT):
            prefix = f"{name}." if name else ""
            refuse_wrong_structure(state_dict, prefix, deploy=module.deploy)


def _forward_recomputed(stage: Stage, x: Tensor) -> Tensor:
    """``stage(x)``, where each block's activations are recomputed in the backward pass."""
    x = stage.pos_emb(stage.downsample(x))
    for block in stage.blocks:
        x = checkpoint(block, x, use_reentrant=False, context_fn=partial(_contexts, block))
    return x


def _contexts(block: nn.Module) -> tuple[Any, Any]:
    """For the forward pass of a block, and for its recomputation."""
    return nullcontext(), _batchnorm_statistics_kept(block)


@contextmanager
def _batchnorm_statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let BatchNorms normalise by the batch without updating their running statistics.

    The recomputation is a second forward pass of the same batch: without this, each step would move
    the running statistics twice.
    """
    norms = [
        m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked -= 1  # type: ignore[operator, assignment]
