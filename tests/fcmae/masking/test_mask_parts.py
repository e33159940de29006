"""However a batch is split, each image keeps its mask."""

from functools import partial

import pytest
import torch
from torch import Tensor

import fcmae
from fcmae.data import Views
from fcmae.masking import MASK_SAMPLERS, WHOLE, BatchPart, complementary_visible_ids
from fcmae.methods import MSN
from fcmae.training.engine.seeding import mask_generator

IMAGES = 12


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


SAMPLERS = {
    **{name: partial(sampler, mask_ratio=0.75) for name, sampler in MASK_SAMPLERS.items()},
    "complementary": partial(complementary_visible_ids, masks=4),
}


@pytest.mark.parametrize("parts", [2, 3, 12])
@pytest.mark.parametrize("name", SAMPLERS)
def test_the_parts_of_a_batch_have_the_masks_of_the_whole(name: str, parts: int) -> None:
    draw = partial(SAMPLERS[name], grid=(8, 6))
    whole = draw(IMAGES, generator=seeded())
    split = [
        draw(IMAGES // parts, part=BatchPart(index, parts), generator=seeded()) for index in range(parts)
    ]
    assert torch.equal(torch.cat(split), whole)
    assert name == "grid" or not torch.equal(split[0], split[1])


@pytest.mark.parametrize("mask_sharing", ["sample", "original"])
def test_the_parts_of_msns_batch_have_the_masks_of_the_whole(mask_sharing: str) -> None:
    method = fcmae.create_method(
        "msn",
        backbone="vit_tiny_patch16",
        depths=(1,),
        dims=(8,),
        num_heads=2,
        image_size=64,
        focal_size=32,
        anchors=2,
        mask_sharing=mask_sharing,
    )
    assert isinstance(method, MSN)

    def draw(count: int, part: BatchPart) -> Tensor:
        views = Views(torch.empty(count, 3, 64, 64), torch.empty(count, 2, 3, 64, 64), torch.empty(count, 0))
        return method.draw_visible_ids(views, seeded(), part=part).unflatten(0, (2, count))

    split = [draw(IMAGES // 3, BatchPart(index, 3)) for index in range(3)]
    assert torch.equal(torch.cat(split, dim=1), draw(IMAGES, WHOLE))


def test_a_step_has_the_masks_that_published_runs_of_one_process_had() -> None:
    assert mask_generator(0, 0).initial_seed() == 4881901421217228719
    assert mask_generator(3, 17).initial_seed() == 11267286751041143029
