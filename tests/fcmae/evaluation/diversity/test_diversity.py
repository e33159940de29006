"""Feature diversity: the paper's loop in float64, the bounds, and networks of every layout."""

import json
from pathlib import Path

import pytest
import timm
import torch
from encoder_runs import MODELS, RUN, save_run
from torch import nn

from fcmae import cli
from fcmae.config import DataConfig
from fcmae.config.diversity import EXPANSION
from fcmae.errors import InputError
from fcmae.evaluation.diversity.measure import (
    DEAD,
    SATURATED,
    LayerDiversity,
    cosine_distance,
    dead_and_saturated,
    effective_rank,
    measure_diversity,
)
from fcmae.evaluation.diversity.models import load_observed
from fcmae.evaluation.diversity.page import mosaic
from sparse_ops import features_of


def by_the_papers_loop(features: torch.Tensor) -> float:
    """(1 / C^2) sum_i sum_j (1 - cos(X_i, X_j)) / 2 of [H * W, C]; 0 is a direction of its own."""
    channels = [column.double() for column in features.unbind(1)]
    total = 0.0
    for one in channels:
        for other in channels:
            norms = one.norm() * other.norm()
            same = not one.any() and not other.any()
            total += (1 - (float(one @ other / norms) if norms > 0 else float(same))) / 2
    return total / len(channels) ** 2


@pytest.mark.parametrize(("sites", "channels"), [(49, 12), (4, 20), (1, 5), (9, 1)])
@pytest.mark.parametrize("kind", ["normal", "gelu", "with dead channels", "all dead"])
def test_distance_is_the_papers_double_sum(sites: int, channels: int, kind: str):
    features = torch.randn(sites, channels, dtype=torch.float64)
    if kind == "gelu":
        features = nn.functional.gelu(features)
    elif kind == "with dead channels":
        features[:, ::3] = 0
    elif kind == "all dead":
        features.zero_()
    # Cosines have a rounding error of 1e-16 each; their mean no more than that times the sites summed over.
    assert abs(cosine_distance(features).item() - by_the_papers_loop(features)) < 1e-15 * (sites + channels)


@pytest.mark.parametrize("channels", [1, 2, 8])
def test_bounds_are_reached(channels: int):
    map_ = torch.randn(16, 1, dtype=torch.float64)
    collapsed = map_ * torch.rand(channels, dtype=torch.float64).add(0.1)
    assert cosine_distance(collapsed).item() == pytest.approx(0, abs=1e-15)
    orthogonal = 3 * torch.eye(16, dtype=torch.float64)[:, :channels]
    assert cosine_distance(orthogonal).item() == pytest.approx((channels - 1) / (2 * channels), abs=1e-15)
    if channels > 1:
        opposed = map_ * torch.tensor([1.0, -2.0], dtype=torch.float64).repeat(channels // 2)
        assert cosine_distance(opposed).item() == pytest.approx(0.5, abs=1e-15)
    nowhere_negative = torch.rand(16, channels, dtype=torch.float64)
    assert 0 <= cosine_distance(nowhere_negative) <= (channels - 1) / (2 * channels) + 1e-15


def test_effective_rank_counts_directions():
    basis = torch.linalg.qr(torch.randn(30, 5, dtype=torch.float64))[0]
    assert effective_rank(basis).item() == pytest.approx(5)
    assert effective_rank(basis.T).item() == pytest.approx(5)
    # Singular values 3 and 1: shares 3/4 and 1/4. The Gram matrix leaves sqrt(eps) where there should be 0.
    mixed = basis[:, :1] @ torch.randn(1, 1, dtype=torch.float64).sign() * 3
    mixed = torch.cat([mixed, basis[:, 1:2]], dim=1)
    shares = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert effective_rank(mixed).item() == pytest.approx(torch.special.entr(shares).sum().exp().item())
    collapsed = torch.randn(30, 1, dtype=torch.float64).expand(30, 8)
    assert effective_rank(collapsed).item() == pytest.approx(1, abs=1e-5)
    assert effective_rank(torch.zeros(4, 3, dtype=torch.float64)) == 0


def test_dead_and_saturated_channels_are_counted():
    features = torch.randn(64, 10, dtype=torch.float64)
    features[:, 0] = 0.1 * DEAD  # flat, too, but not counted twice
    features[:, 1] *= 0.1 * DEAD / features[:, 1].abs().max()
    features[:, 2] = 5
    features[:, 3] = -4 + 0.5 * SATURATED * torch.randn(64, dtype=torch.float64).clamp(-1, 1)
    dead, saturated = dead_and_saturated(features)
    assert (dead.item(), saturated.item()) == (0.2, 0.2)


class _Layouts(nn.Module):
    """The same features read by a linear layer [B, H, W, C], a convolution [B, C, H, W], and as tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first, self.tokens = nn.Linear(6, 2), nn.Conv2d(6, 2, 1), nn.Linear(6, 2)

    def forward(self, images: torch.Tensor) -> None:
        maps = images.repeat(1, 2, 1, 1)
        self.first(maps)
        self.last(maps.permute(0, 2, 3, 1))
        tokens = maps.flatten(2).transpose(1, 2)
        self.tokens(torch.cat([torch.full_like(tokens[:, :1], 9.0), tokens], dim=1))


def _numbers(layer: LayerDiversity) -> list[float]:
    return [layer.distance, layer.dead, layer.saturated, layer.effective_rank]


def test_layouts_and_batches_give_the_same_means_over_images():
    images = torch.randn(5, 3, 4, 4)
    found = measure_diversity(_Layouts(), images.split(2), modules="first|last|tokens", prefix_tokens=1)
    assert [layer.module for layer in found] == ["first", "last", "tokens"]
    alone = [by_the_papers_loop(image.repeat(2, 1, 1).flatten(1).T) for image in images]
    for layer in found:
        assert (layer.channels, layer.sites, layer.images) == (6, 16, 5)
        assert layer.distance == pytest.approx(sum(alone) / 5, rel=1e-12)
        assert _numbers(layer) == pytest.approx(_numbers(found[0]), rel=1e-6)
        torch.testing.assert_close(layer.maps, images[0].repeat(2, 1, 1))


def test_batch_norm_and_drop_path_are_off_and_the_mode_is_put_back():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.9), nn.Conv2d(4, 2, 1)).train()
    images = torch.randn(4, 3, 5, 5)
    before = model[1].running_mean.clone()
    whole, parts = (measure_diversity(model, images.split(size), modules="3") for size in (4, 1))
    assert _numbers(whole[0]) == pytest.approx(_numbers(parts[0]), rel=1e-5)
    assert model.training and torch.equal(model[1].running_mean, before)
    assert not model[3]._forward_pre_hooks


@pytest.mark.parametrize(
    ("name", "modules", "layers"),
    [
        ("convnext_atto", EXPANSION, 12),
        ("vit_tiny_patch16_224", EXPANSION, 12),
        ("resnet18", r"layer\d\.\d\.conv2", 8),
    ],
)
def test_models_of_timm_are_measured(name: str, modules: str, layers: int):
    options = {"img_size": 64} if name.startswith("vit") else {}
    model = timm.create_model(name, **options)
    found = measure_diversity(
        model,
        [torch.randn(2, 3, 64, 64)],
        modules=modules,
        prefix_tokens=getattr(model, "num_prefix_tokens", 0),
    )
    assert len(found) == layers and all(0 < layer.distance <= 0.5 for layer in found)
    if name != "resnet18":
        assert found[0].channels == 4 * model.num_features // (8 if name == "convnext_atto" else 1)
    assert found[0].maps.shape == (min(64, found[0].channels), *[round(found[0].sites ** 0.5)] * 2)


@pytest.mark.parametrize("name", ["convnextv2", "convmae", "vit"])
def test_our_checkpoints_show_the_features_of_their_encoder(
    name: str, folder_data: DataConfig, tmp_path: Path
):
    """The first layer against features computed by hand from the encoder's own parts."""
    encoder = save_run(tmp_path / "run", MODELS[name], folder_data).encoder.eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            if parameter.ndim == 1:
                parameter.normal_(std=0.5)  # GRN and biases begin at 0 and would not show
    torch.save({f"encoder.{key}": value for key, value in encoder.state_dict().items()}, tmp_path / "own.pth")
    observed = load_observed(str(tmp_path / "own.pth"), in_chans=3, num_heads=2)
    images = torch.randn(1, 3, 32, 32)
    (first, *others) = measure_diversity(
        observed.model, [images], modules=EXPANSION, prefix_tokens=observed.prefix_tokens
    )
    assert len(others) == sum(encoder.depths) - 1
    with torch.no_grad():
        if name == "convnextv2":
            block = encoder.stages[0].blocks[0]
            inner = block.norm(block.conv_dw(features_of(encoder.stem(images, None, "sparse"))))
            hidden = block.mlp.grn(nn.functional.gelu(block.mlp.fc1(inner)))
        else:
            blocks = encoder.blocks1 if name == "convmae" else encoder.blocks
            seen: list[torch.Tensor] = []
            handle = blocks[0].mlp.fc1.register_forward_hook(lambda _, __, output: seen.append(output))
            encoder(images)
            handle.remove()
            hidden = nn.functional.gelu(seen[0])
            hidden = hidden[:, 1:] if name == "vit" else hidden
    hidden = hidden.reshape(-1, hidden.shape[-1])
    assert (first.sites, first.channels) == tuple(hidden.shape)
    assert first.distance == pytest.approx(by_the_papers_loop(hidden), abs=1e-5)
    # What a run that still trains looks at: the encoder itself, under the same names.
    for layer, ours in zip(
        (first, *others),
        measure_diversity(encoder, [images], modules=EXPANSION, prefix_tokens=observed.prefix_tokens),
        strict=True,
    ):
        assert ours.module == layer.module and (ours.sites, ours.channels) == (layer.sites, layer.channels)
        assert ours.distance == pytest.approx(layer.distance, abs=1e-5)


def test_modules_that_do_not_exist_or_run_are_refused():
    model = _Layouts()
    model.unused = nn.Linear(2, 2)
    images = [torch.randn(1, 3, 4, 4)]
    with pytest.raises(InputError, match=r"modules: expected names that match x, got last, first, tokens"):
        measure_diversity(model, images, modules="x")
    with pytest.raises(InputError, match=r"expected modules that run, got unused and 0 more"):
        measure_diversity(model, images, modules="unused|first")


def test_mosaic_shows_dead_and_active_maps_in_rows_of_eight():
    maps = torch.zeros(10, 2, 2)
    maps[1] = 4.0
    picture = mosaic(maps)
    assert picture.shape == (2 * 30 - 2, 8 * 30 - 2)
    assert picture[0, 0] == 0 and picture[5, 35] == 1 and picture.max() == 1


def test_command_compares_networks_on_a_page(folder_data: DataConfig, tmp_path: Path, capsys):
    save_run(tmp_path / "a", MODELS["convnextv2"], folder_data)
    save_run(tmp_path / "b", MODELS["vit"], folder_data)
    names = [str(tmp_path / "a"), str(tmp_path / "b")]
    options = ["--data.source=folder", f"--data.root={folder_data.root}", "--data.val_fraction=0.25"]
    options += ["--data.image_size=32", "--data.workers=0", f"--out={tmp_path / 'out'}", "--images=4"]
    assert cli.main(["diversity", *names, *options]) == 0
    assert f"4 images of {folder_data.root} at 32 x 32 pixels" in capsys.readouterr().out
    written = json.loads((tmp_path / "out" / "diversity.json").read_text())
    assert list(written["networks"]) == names and written["images"].startswith("4 images of ")
    layers = written["networks"][names[0]]
    assert [layer["module"] for layer in layers] == [f"stages.{stage}.blocks.0.mlp.fc2" for stage in range(4)]
    html = (tmp_path / "out" / "report.html").read_text()
    assert "http" not in html.replace("http-equiv", "") and html.count("<svg") == 6
    assert f"{layers[0]['distance']:.4f}" in html


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        ([], "diversity: expected checkpoints before the options, got none"),
        (["timm:convnxt"], "expected timm:NAME of a model that timm has, got timm:convnxt."),
        (["timm:resnet18=absent.pth"], "got nothing at absent.pth"),
        ([RUN, "--modules=("], "modules: expected a regular expression, got '('"),
        ([RUN, "--images=0"], "images: expected at least 1, got 0."),
    ],
)
def test_mistakes_are_one_line(argv: list[str], part: str, folder_data: DataConfig, tmp_path: Path, capsys):
    if RUN in argv:
        save_run(tmp_path / RUN, MODELS["vit"], folder_data)
        argv = [str(tmp_path / RUN), "--data.source=digits", *argv[1:]]
    assert cli.main(["diversity", *argv]) == 2
    output = capsys.readouterr()
    assert part in output.err and output.err.count("\n") == 1


def test_images_of_another_size_are_one_line(tmp_path: Path, capsys):
    torch.save(timm.create_model("vit_tiny_patch16_224").state_dict(), tmp_path / "vit.pth")
    name = f"timm:vit_tiny_patch16_224={tmp_path / 'vit.pth'}"
    assert cli.main(["diversity", name, "--data.image_size=64", "--data.workers=0", "--images=1"]) == 2
    assert "data.image_size: expected one that timm:vit_tiny" in capsys.readouterr().err
