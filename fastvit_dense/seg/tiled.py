"""Sliding-window segmentation whose memory does not grow with the height of the image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.segmentors import EncoderDecoder
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor

# FastViT's last stage has a stride of 32 pixels.
_SMALLEST_CROP = 32


@MODELS.register_module()
class TiledSegmentor(EncoderDecoder):
    """mmseg's EncoderDecoder with sliding windows in memory of O(crop height x width x classes).

    EncoderDecoder keeps the logits of the whole image, several times: 60 GB each for 150 classes on
    10 000 x 10 000 pixels. Here, with ``test_cfg=dict(mode="slide", crop_size=(h, w), stride=(h, w))``,
    logits exist for one row of windows. Rows that no later window reaches are averaged, resized to
    the original size and reduced to labels at once. Windows and labels are those of EncoderDecoder, up
    to rounding. What still grows with the height is the image itself (float32, made by the data
    preprocessor) and the label map.

    With ``mode="whole"`` it is EncoderDecoder. Training is the same in both modes.

    In slide mode a result has ``pred_sem_seg`` and on purpose no ``seg_logits``: they are what does
    not fit. So ``SegTTAModel``, which merges logits, cannot wrap it: use EncoderDecoder for test-time
    augmentation.

    Args:
        as for :class:`mmseg.models.EncoderDecoder`, by keyword. Of ``test_cfg``, crop_size and stride
        are (height, width) in pixels of the network's input.

    Raises:
        ValueError: ``test_cfg`` has another mode, a crop below 32 pixels, or a stride that is below 1
            or above the crop.
    """

    test_cfg: ConfigDict | None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.test_cfg is not None:
            self.test_cfg = ConfigDict(self.test_cfg)  # mmseg reads it by attribute
            _check_test_cfg(self.test_cfg)

    def predict(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None
    ) -> Sequence[SegDataSample]:
        """Segment a batch of images.

        Args:
            inputs: normalised images, (N, 3, H, W).
            data_samples: one per image. Of the metainfo are read: ``ori_shape`` (height, width), the size
                of the labels; ``img_padding_size`` or ``padding_size`` (left, right, top, bottom),
                taken off.

        Returns:
            The samples (new ones if there were none) with ``pred_sem_seg``: (1, height, width) labels,
            int64; for a single output channel 0 or 1 in the type of the inputs, as from EncoderDecoder.
            ``seg_logits`` in whole mode alone.

        Raises:
            ValueError: an image was flipped (``flip``), in slide mode.
        """
        if not self.test_cfg or self.test_cfg.get("mode", "whole") == "whole":
            return super().predict(inputs, data_samples)
        if data_samples is None:
            samples: Sequence[SegDataSample] = [SegDataSample() for _ in inputs]
            metas = [dict(ori_shape=inputs.shape[2:]) for _ in inputs]
        else:
            samples = data_samples
            metas = [dict(sample.metainfo) for sample in samples]
        for sample, labels in zip(samples, self._tiled_labels(inputs, metas), strict=True):
            sample.set_data(dict(pred_sem_seg=PixelData(data=labels)))
        return samples

    @torch.no_grad()  # labels have no gradient; with one, every window's feature maps would stay
    def _tiled_labels(self, inputs: Tensor, metas: list[dict]) -> list[Tensor]:
        assert self.test_cfg is not None
        (crop_h, crop_w), (stride_h, stride_w) = self.test_cfg.crop_size, self.test_cfg.stride
        count, _, height, width = inputs.shape
        rows = window_spans(height, crop_h, stride=stride_h)
        columns = window_spans(width, crop_w, stride=stride_w)
        writers = [
            _LabelWriter(
                (height, width),
                meta,
                align_corners=self.align_corners,
                threshold=self.decode_head.threshold if self.out_channels == 1 else None,
                # The temporaries of a block together take about as much as the band.
                block_elements=min(crop_h, height) * width // 4,
            )
            for meta in metas
        ]
        # The sum of the logits, and how many windows each pixel has been in: a product of two counts.
        band = inputs.new_zeros(count, self.out_channels, min(crop_h, height), width)
        hits_y, hits_x = inputs.new_zeros(band.shape[2], 1), inputs.new_zeros(width)
        for left, right in columns:
            hits_x[left:right] += 1

        for i, (top, bottom) in enumerate(rows):
            for left, right in columns:
                window = inputs[:, :, top:bottom, left:right]
                # mmseg's heads take a torch.Size for the size of a window.
                window_metas = [{**meta, "img_shape": window.shape[2:]} for meta in metas]
                band[..., left:right] += self.encode_decode(window, window_metas)
            hits_y += 1
            done = (rows[i + 1][0] if i + 1 < len(rows) else bottom) - top
            finished = band[:, :, :done].div_(hits_y[:done] * hits_x)  # (N, C, done, W)
            for writer, logits in zip(writers, finished, strict=True):
                writer.write(logits)
            keep = band.shape[2] - done
            for buffer in (band, hits_y):
                buffer[..., :keep, :] = buffer[..., done:, :].clone()
                buffer[..., keep:, :] = 0
        return [writer.labels() for writer in writers]


def window_spans(size: int, crop: int, *, stride: int) -> list[tuple[int, int]]:
    """Where mmseg's sliding windows lie along one axis: the last one ends with the image.

    Args:
        size: pixels of the image.
        crop: pixels of a window; a smaller image has one window of its own size.
        stride: pixels from window to window.

    Returns:
        (first pixel, one past the last), ascending.
    """
    windows = max(size - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, size) for i in range(windows)]
    return [(max(end - crop, 0), end) for end in ends]


def bilinear_table(size: int, out: int, *, align_corners: bool | None) -> tuple[Tensor, Tensor]:
    """Where ``F.interpolate(mode="bilinear")`` reads along one axis.

    Args:
        size: pixels before.
        out: pixels after.
        align_corners: as of F.interpolate.

    Returns:
        For each output pixel the lower source pixel, (out,) int64, and the weight of its upper
        neighbour, (out,) float32; the neighbour of the last pixel is that pixel.
    """
    # In float32, as torch computes it: in float64 weights would differ far from the origin.
    at = torch.arange(out, dtype=torch.float32)
    if align_corners:
        source = at * torch.tensor((size - 1) / (out - 1) if out > 1 else 0.0)
    else:
        source = ((at + 0.5) * (torch.tensor(float(size)) / out) - 0.5).clamp(min=0)
    lower = source.long().clamp(max=size - 1)
    return lower, (source - lower).clamp(0, 1)


class _LabelWriter:
    """Makes one image's label map from rows of its logits, which come from the top down.

    Does what ``EncoderDecoder.postprocess_result`` does to whole logits: padding off,
    bilinear resize to ``ori_shape``, argmax or threshold.

    Args:
        size: height and width of the network's input.
        meta: the image's metainfo.
        align_corners: of the resize.
        threshold: of the probability, for a single channel.
        block_elements: resized at a time are rows of about so many elements a channel.
    """

    def __init__(
        self,
        size: tuple[int, int],
        meta: Mapping[str, Any],
        *,
        align_corners: bool | None,
        threshold: float | None,
        block_elements: int,
    ) -> None:
        left, right, top, bottom = meta.get("img_padding_size", meta.get("padding_size", [0] * 4))
        self.rows, self.columns = (top, size[0] - bottom), (left, size[1] - right)
        self.shape = self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]
        self.out_shape = int(meta["ori_shape"][0]), int(meta["ori_shape"][1])
        if meta.get("flip"):
            raise ValueError(
                "the image is flipped, which mode 'slide' of TiledSegmentor does not undo: take "
                "RandomFlip out of the test pipeline, or use EncoderDecoder"
            )
        self.align_corners, self.threshold = align_corners, threshold
        self.block = max(block_elements // self.out_shape[1], 1)

        self.lower, self.weight = bilinear_table(
            self.shape[0], self.out_shape[0], align_corners=align_corners
        )
        self.upper = (self.lower + 1).clamp(max=self.shape[0] - 1)  # ascending, as is lower
        self.received = self.written = 0
        # The last row that came: the next output row may lie between it and what comes next.
        self.carry: Tensor | None = None
        self.map: Tensor | None = None

    def write(self, logits: Tensor) -> None:
        """Take the next rows, (C, rows, W) over the full width of the network's input."""
        first = self.received
        self.received += logits.shape[1]
        begin, end = max(self.rows[0], first), min(self.rows[1], self.received)
        if begin >= end:  # padding alone
            return
        rows = logits[:, begin - first : end - first, slice(*self.columns)]
        start, stop = begin - self.rows[0], end - self.rows[0]  # without the padding
        if self.map is None:
            kind = torch.int64 if len(logits) > 1 else logits.dtype
            self.map = torch.zeros(self.out_shape, dtype=kind, device=logits.device)
        if self.carry is not None:
            rows, start = torch.cat([self.carry, rows], dim=1), start - 1
        ready = int(torch.searchsorted(self.upper, stop))
        for at in range(self.written, ready, self.block):
            block = slice(at, min(at + self.block, ready))
            resized = self._resized(rows, start, block)
            if self.threshold is None:
                self.map[block] = resized.argmax(dim=0)
            else:
                self.map[block] = resized[0].sigmoid() > self.threshold
        self.written = ready
        self.carry = rows[:, -1:].clone()

    def labels(self) -> Tensor:
        """The label map, (1, height, width) of the original image, once all rows came."""
        assert self.map is not None
        return self.map[None]

    def _resized(self, rows: Tensor, start: int, block: slice) -> Tensor:
        """Output rows ``block`` from source rows (C, rows, W) of which ``start`` is the first."""
        lower = self.lower[block]
        used, position = torch.cat([lower, self.upper[block]]).unique(return_inverse=True)
        # F.interpolate works on the width alone; each source row goes through it once.
        wide = F.interpolate(
            rows[None, :, (used - start).to(rows.device)],
            size=(len(used), self.out_shape[1]),
            mode="bilinear",
            align_corners=self.align_corners,
        )[0]  # (C, used rows, output width)
        below, above = position.to(rows.device).split(len(lower))
        weight = self.weight[block].to(rows)[:, None]
        return wide[:, below] * (1 - weight) + wide[:, above] * weight


def _check_test_cfg(cfg: Mapping[str, Any]) -> None:
    mode = cfg.get("mode", "whole")
    if mode not in ("whole", "slide"):
        raise ValueError(f"test_cfg.mode is {mode!r}, expected 'whole' or 'slide'")
    if mode == "whole":
        return
    crop: Any = cfg.get("crop_size")
    stride: Any = cfg.get("stride")
    try:
        fits = len(crop) == len(stride) == 2 and all(
            isinstance(c, int) and isinstance(s, int) and c >= _SMALLEST_CROP and 1 <= s <= c
            for c, s in zip(crop, stride, strict=True)
        )
    except TypeError:
        fits = False
    if not fits:
        raise ValueError(
            f"test_cfg has crop_size={crop!r}, stride={stride!r}: mode 'slide' needs (height, width) in "
            f"whole pixels, a crop of at least {_SMALLEST_CROP}, the stride of FastViT's last stage, and "
            "a stride from 1 to the crop, since a larger one leaves pixels out; such as "
            "crop_size=(512, 512), stride=(384, 384)"
        )
