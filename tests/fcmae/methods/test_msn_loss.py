"""MSN's loss: the paper's formulas in float64, gradients, Sinkhorn, extreme logits."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from fcmae.methods.msn_loss import MSNLoss, log_mean, msn_loss, sinkhorn

OPTIONS = {"temperature": 0.1, "sharpening": 0.25, "sinkhorn_iterations": 0, "me_max_weight": 1.0}
VIEWS, IMAGES, PROTOTYPES, WIDTH = 3, 6, 5, 4


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((VIEWS * IMAGES, WIDTH), (IMAGES, WIDTH), (PROTOTYPES, WIDTH))
    anchors, targets, prototypes = (
        torch.randn(shape, dtype=torch.float64, generator=generator).to(dtype) for shape in shapes
    )
    return anchors.requires_grad_(), targets.requires_grad_(), prototypes.requires_grad_()


def loss_of(anchors: Tensor, targets: Tensor, prototypes: Tensor, **options: float) -> MSNLoss:
    return msn_loss(anchors, targets, prototypes, **{"entropy_weight": 0.0, **OPTIONS, **options})  # type: ignore[arg-type]


def papers(anchors: Tensor, targets: Tensor, prototypes: Tensor, **options: float) -> Tensor:
    """Assran et al., equation 1: probabilities one by one, no logarithms but the formula's own."""
    options = {"entropy_weight": 0.0, **OPTIONS, **options}

    def assignment(vector: Tensor) -> list[Tensor]:
        cosines = [vector @ q / (vector.norm() * q.norm()) for q in prototypes]
        powers = [(cosine / options["temperature"]).exp() for cosine in cosines]
        return [power / sum(powers) for power in powers]

    target = []
    for vector in targets.detach():
        sharp = [p.detach() ** (1 / options["sharpening"]) for p in assignment(vector)]
        target.append([p / sum(sharp) for p in sharp])
    for _ in range(int(options["sinkhorn_iterations"])):
        columns = [sum(row[k] for row in target) for k in range(PROTOTYPES)]
        target = [[row[k] / columns[k] / PROTOTYPES for k in range(PROTOTYPES)] for row in target]
        target = [[p / sum(row) for p in row] for row in target]
    rows = [assignment(vector) for vector in anchors]
    count = len(rows)
    cross_entropy = torch.zeros((), dtype=torch.float64)
    for row, k in itertools.product(range(count), range(PROTOTYPES)):
        cross_entropy = cross_entropy - target[row % IMAGES][k] * rows[row][k].log()
    mean = [torch.stack([row[k] for row in rows]).mean() for k in range(PROTOTYPES)]
    mean_entropy = -sum(p * p.log() for p in mean)
    own_entropy = -sum(p * p.log() for row in rows for p in row) / count
    return (
        cross_entropy / count
        + options["me_max_weight"] * (math.log(PROTOTYPES) - mean_entropy)
        + options["entropy_weight"] * own_entropy
    )


@pytest.mark.parametrize(
    "options",
    [
        {"me_max_weight": 0.0},
        {"me_max_weight": 5.0},
        {"sinkhorn_iterations": 3},
        {"entropy_weight": 0.3, "sharpening": 0.7},
    ],
    ids=["plain", "headline", "released", "entropy"],
)
def test_loss_and_gradients_are_the_papers(options: dict[str, float]):
    tensors, own = inputs(), inputs()
    terms = loss_of(*tensors, **options)
    expected = papers(*own, **options)
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    terms.loss.backward()
    expected.backward()
    for found, wanted in ((tensors[0].grad, own[0].grad), (tensors[2].grad, own[2].grad)):
        assert found is not None and wanted is not None
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)
    assert tensors[1].grad is None  # the targets only teach


def test_terms_are_what_they_are_called():
    anchors, targets, prototypes = inputs()
    terms = loss_of(anchors, targets, prototypes, me_max_weight=2.0, sinkhorn_iterations=3)
    rebuilt = terms.cross_entropy + 2 * (math.log(PROTOTYPES) - terms.mean_entropy)
    assert terms.loss.item() == pytest.approx(rebuilt.item(), rel=1e-12)
    assert 0 < terms.target_entropy < terms.mean_entropy < math.log(PROTOTYPES)
    nearest = torch.nn.functional.cosine_similarity(targets[:, None], prototypes, dim=-1).argmax(dim=1)
    assert torch.equal(terms.chosen, nearest)


def test_sinkhorn_makes_rows_and_columns_alike():
    log_p = (3 * torch.randn(12, 4, dtype=torch.float64)).log_softmax(dim=1)

    def unevenness(iterations: int) -> float:
        p = sinkhorn(log_p, iterations=iterations).exp()
        torch.testing.assert_close(p.sum(dim=1), torch.ones(12, dtype=torch.float64))
        return (p.sum(dim=0) - 12 / 4).abs().max().item()

    assert unevenness(200) < 1e-6 < unevenness(3) < unevenness(0) / 2


def test_log_mean_is_the_log_of_the_mean():
    log_p = torch.randn(7, 5, dtype=torch.float64).log_softmax(dim=1)
    torch.testing.assert_close(log_mean(log_p).exp(), log_p.exp().mean(dim=0))


@pytest.mark.parametrize("iterations", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite(dtype: torch.dtype, iterations: int):
    # All anchors at one prototype, the targets at another, at a temperature where probabilities are 0 or 1.
    prototypes = torch.eye(4, dtype=dtype).requires_grad_()
    anchors = (100 * prototypes.detach()[[0] * 6]).requires_grad_()
    targets = prototypes.detach()[[1] * 6]
    terms = loss_of(
        anchors,
        targets,
        prototypes,
        temperature=1e-3,
        sinkhorn_iterations=iterations,
        me_max_weight=5.0,
        entropy_weight=1.0,
    )
    terms.loss.backward()
    assert terms.loss.dtype == torch.float32 and terms.loss.isfinite() and terms.mean_entropy.isfinite()
    assert anchors.grad is not None and anchors.grad.isfinite().all()
    assert prototypes.grad is not None and prototypes.grad.isfinite().all()
    if iterations == 0:  # every target is the second prototype, whose log probability is -1 / temperature
        assert terms.cross_entropy.item() == pytest.approx(1e3, rel=1e-5)


def test_autocast_does_not_reach_the_loss():
    tensors = inputs(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = loss_of(*tensors).loss
    assert torch.equal(within, loss_of(*tensors).loss)
