"""MSN's section of a configuration: what it refuses, and that the method takes every field."""

import pytest

from fcmae.config import DataConfig, MSNConfig
from fcmae.errors import InputError
from fcmae.methods import MSN, from_config


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("anchors", 0, "at least 1, got 0"),
        ("focal_views", -1, "at least 0, got -1"),
        ("prototypes", 1, "at least 2, got 1"),
        ("sinkhorn_iterations", -3, "at least 0, got -3"),
        ("me_max_weight", -0.5, "at least 0, got -0.5"),
        ("temperature", 0.0, "more than 0, got 0"),
        ("sharpening", 0.0, r"a value in \(0, 1\], got 0"),
        ("momentum", 1.5, r"a value in \[0, 1\], got 1.5"),
        ("focal_scale", (0.5, 0.3), r"0 < low <= high <= 1, got \(0.5, 0.3\)"),
        ("mask_ratio", 0.0, r"a value in \(0, 1\), got 0"),
    ],
)
def test_values_without_meaning_are_refused(field: str, value: object, expected: str):
    with pytest.raises(InputError, match=rf"^model\.{field}: expected {expected}"):
        MSNConfig(**{field: value})  # type: ignore[arg-type]


def test_every_field_reaches_the_method():
    config = MSNConfig(
        backbone="convnextv2_atto",
        depths=(1, 1, 1, 1),
        dims=(4, 4, 8, 8),
        stem_stride=2,
        patch_size=32,
        anchors=3,
        focal_views=2,
        focal_size=48,
        color_jitter=0.0,
        share_view=True,
        prototypes=9,
        hidden_dim=6,
        output_dim=5,
        sharpening=0.5,
        me_max_weight=5.0,
        momentum=0.5,
    )
    data = DataConfig(source="digits", image_size=96)
    method = from_config(config, data)
    assert isinstance(method, MSN)
    assert (method.patch_size, method.encoder.max_stride, method.momentum) == (32, 16, 0.5)
    assert method.prototypes.shape == (9, 5) and method.projection.fc2.weight.shape == (6, 6)
    for options in (method.view_options, method.loss_options):
        assert options == {name: getattr(config, name) for name in options}
