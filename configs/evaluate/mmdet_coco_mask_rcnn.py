"""Detection and segmentation transfer in mmdet 3: Mask R-CNN with FPN on COCO, 1x schedule.

Not run here: mmdet and COCO are not installed.
  swav export RUN --to mmdet --folder exported
  bash tools/dist_train.sh configs/evaluate/mmdet_coco_mask_rcnn.py 8
"""

_base_ = "mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"

norm_cfg = {"type": "SyncBN", "requires_grad": True}
model = {
    "data_preprocessor": {"mean": [123.675, 116.280, 103.530], "std": [58.140, 57.120, 57.375], "bgr_to_rgb": True},
    "backbone": {
        "frozen_stages": -1,
        "norm_cfg": norm_cfg,
        "norm_eval": False,
        "style": "pytorch",
        "init_cfg": {"type": "Pretrained", "checkpoint": "exported/model.pth"},
    },
    "neck": {"norm_cfg": norm_cfg},
}
