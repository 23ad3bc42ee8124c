"""Transformers and convolutions of pictures, as transformers has them."""

from benchmarks.coverage.architecture import IMAGE, Inputs, images
from benchmarks.coverage.architectures.hugging_face import PICTURE, rows_of

_SWIN = {
    "embed_dim": 16, "depths": [2, 1], "num_heads": [1, 2], "window_size": 2, "patch_size": 4,
    "drop_path_rate": 0.0, "hidden_size": None, "num_hidden_layers": None,
    "num_attention_heads": None,
}  # fmt: skip
_STAGES = {"depths": [1, 1], "hidden_sizes": [16, 32], "num_stages": 2, "drop_path_rate": 0.0}
_CONVOLUTIONS = {**_STAGES, "hidden_size": None, "patch_size": 4}
_PYRAMID = {
    "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "num_attention_heads": [1, 1, 2, 2],
    "drop_path_rate": 0.0, "classifier_dropout_prob": 0.0, "num_hidden_layers": None,
    "hidden_size": None, "patch_size": None,
}  # fmt: skip


def _picture() -> Inputs:
    return {"pixel_values": images()["pixel_values"]}


ROWS = rows_of("vision", PICTURE, images, {
    "vit": ("ViTForImageClassification", {}),
    "swin": ("SwinForImageClassification", _SWIN),
    "convnext": ("ConvNextForImageClassification", _CONVOLUTIONS),
    "segformer": ("SegformerForImageClassification", {
        **_PYRAMID, "sr_ratios": [2, 2, 1, 1], "decoder_hidden_size": 16,
        "patch_sizes": [3, 3, 3, 3], "strides": [2, 2, 2, 1],
    }),
    "beit": ("BeitForImageClassification", {
        "use_relative_position_bias": True, "drop_path_rate": 0.0, "out_indices": [1],
        "use_mask_token": False,
    }),
    "dinov2": ("Dinov2ForImageClassification", {"drop_path_rate": 0.0}),
    "deit": ("DeiTForImageClassification", {}),
    "convnextv2": ("ConvNextV2ForImageClassification", _CONVOLUTIONS),
    "swinv2": ("Swinv2ForImageClassification", _SWIN),
    "hf-resnet": ("ResNetForImageClassification", {**_CONVOLUTIONS, "embedding_size": 16}),
    "mobilenet-v2": ("MobileNetV2ForImageClassification", {
        "depth_multiplier": 0.25, "classifier_dropout_prob": 0.0,
    }),
    "poolformer": ("PoolFormerForImageClassification", {
        "depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 16, 16], "drop_path_rate": 0.0,
        "num_encoder_blocks": 4, "hidden_size": None, "patch_size": None,
    }),
    "pvt-v2": ("PvtV2ForImageClassification", {
        **_PYRAMID, "sr_ratios": [2, 2, 1, 1], "patch_sizes": [3, 3, 3, 3], "image_size": 32,
        "strides": [2, 2, 2, 1], "mlp_ratios": [2, 2, 2, 2],
    }),
    "vit-mae": ("ViTMAEForPreTraining", {
        "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32, "mask_ratio": 0.0,
    }, _picture),
    "yolos": ("YolosModel", {"num_detection_tokens": 4, "image_size": [IMAGE, IMAGE]}, _picture),
    "focalnet": ("FocalNetForImageClassification", {
        "embed_dim": 16, "hidden_sizes": [16, 32], "depths": [1, 1], "focal_levels": [1, 1],
        "focal_windows": [3, 3], "patch_size": 4, "drop_path_rate": 0.0, "hidden_size": None,
    }),
    "vitdet": ("VitDetModel", {"window_size": 2, "drop_path_rate": 0.0}, _picture),
    "dpt": ("DPTModel", {
        "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 8, 8],
        "fusion_hidden_size": 8, "reassemble_factors": [1, 1, 1, 0.5], "is_hybrid": False,
    }, _picture),
    "hiera": ("HieraForImageClassification", {
        "embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "image_size": [IMAGE, IMAGE],
        "masked_unit_size": [4, 4], "num_query_pool": 1, "patch_size": [7, 7],
        "patch_stride": [4, 4], "patch_padding": [3, 3], "query_stride": [2, 2],
        "drop_path_rate": 0.0, "hidden_size": None, "num_hidden_layers": None,
        "num_attention_heads": None,
    }),
    "levit": ("LevitForImageClassification", {
        "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 1, 1], "depths": [1, 1, 1],
        "key_dim": [8, 8, 8], "patch_size": 16, "drop_path_rate": 0, "image_size": 64,
        "hidden_size": None, "num_hidden_layers": None,
    }, lambda: images(64)),
    "efficientnet": ("EfficientNetForImageClassification", {
        "width_coefficient": 0.25, "depth_coefficient": 0.1, "hidden_dim": 320,
        "drop_connect_rate": 0.0, "dropout_rate": 0.0, "hidden_size": None,
        "num_hidden_layers": None,
    }),
    "ijepa": ("IJepaForImageClassification", {}),
    "dinov3": ("DINOv3ViTModel", {"drop_path_rate": 0.0}, _picture),
})  # fmt: skip
