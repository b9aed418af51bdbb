"""What a dataset knows of one hand and what the model predicts of it, on its way through mmengine."""

from mmengine.structures import BaseDataElement


class HandDataSample(BaseDataElement):
    """One crop of a hand.

    The crop has a camera frame of its own: that of the original turned about the optical axis by
    `rotation`, so that the crop is the picture that a camera with the intrinsics `K` takes.

    Attributes:
        gt: what is annotated; there is none where the evaluation set comes without labels. Tensors of
            float32:
            vertices (778, 3) and keypoints (21, 3), metres, camera frame of the crop;
            keypoints_2d (21, 2), pixels of the crop.
        pred: what the model predicts. Tensors:
            vertices (778, 3) and keypoints (21, 3), metres, axes of the crop's camera, relative to the
            root keypoint; keypoints_2d (21, 2), pixels of the crop;
            camera (3,), betas (10,), rotations (16, 3, 3), as of the head;
            where `K` is known: vertices_camera (778, 3) and keypoints_camera (21, 3), metres, in the
            camera frame of the original image, as FreiHAND's benchmark wants them.

    Of the metainfo, `img_path` and `index` say which image of the dataset it is, `ori_shape` its height and
    width; `crop_matrix` (2, 3) takes pixels of the original to those of the crop, `rotation` is in
    degrees, clockwise as seen in the image, and `K` (3, 3) is of the crop.
    """

    gt: BaseDataElement
    pred: BaseDataElement
