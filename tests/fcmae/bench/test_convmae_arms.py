"""ConvMAE's arms compute the same, and the benchmark tells whole steps from stages."""

import json

import pytest
import torch

from fcmae.bench.arms import StepSpec, build_step
from fcmae.bench.step import main
from fcmae.errors import InputError
from fcmae.methods import ConvMAE


def small_step(arm: str) -> StepSpec:
    return StepSpec(
        method="convmae",
        arm=arm,
        backbone="convmae_small",
        batch_size=1,
        image_size=64,
        mask_ratio=0.75,
        precision="fp32",
        backend="auto",
        device="cpu",
        compile=False,
        threads=1,
    )


@pytest.mark.parametrize("suffix", ["", "_stages"])
def test_arms_agree_in_loss_and_gradients(suffix: str) -> None:
    results = []
    for arm in ("sparse", "masked_dense", "direct"):
        network, step = build_step(small_step(arm + suffix))
        loss = step()
        gradients = {
            name: parameter.grad
            for name, parameter in network.named_parameters()
            if parameter.grad is not None
        }
        results.append((loss, {name.removeprefix("method."): grad for name, grad in gradients.items()}))
    (loss, gradients), *others = results
    for other_loss, other_gradients in others:
        assert torch.allclose(loss, other_loss, rtol=1e-5)
        assert gradients.keys() == other_gradients.keys()
        for name, gradient in gradients.items():
            scale = float(gradient.abs().max())
            assert torch.allclose(gradient, other_gradients[name], rtol=1e-3, atol=1e-4 * scale), name


def test_stages_are_the_convolutions_alone() -> None:
    network, step = build_step(small_step("sparse_stages"))
    step()
    assert isinstance(network.method, ConvMAE)
    trained = {
        name.split(".")[0] for name, p in network.method.encoder.named_parameters() if p.grad is not None
    }
    assert trained == {"patch_embed1", "blocks1", "patch_embed2", "blocks2"}


@pytest.mark.slow
def test_the_command_compares_steps_with_steps_and_stages_with_stages(tmp_path, capsys) -> None:
    path = tmp_path / "step.json"
    argv = "--method convmae --backbone convmae_small --image-size 64 --batch-size 1 --mask-ratio 0.75"
    argv += " --arms sparse_stages sparse --steps 1 --threads 1"
    assert main([*argv.split(), "--json", str(path)]) == 0
    assert [r["arm"] for r in json.loads(path.read_text())["results"]] == ["sparse", "sparse_stages"]
    printed = capsys.readouterr().out
    assert "ratios to sparse\n" in printed and "ratios to sparse_stages\n" in printed


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ("--method convmae --image-size 100", "divisible by the patch size 16"),
        ("--arms sparse_stages", "--arms: expected an arm of fcmae, got 'sparse_stages'"),
    ],
)
def test_bad_input_is_named_before_a_process_starts(argv: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        main(argv.split())
