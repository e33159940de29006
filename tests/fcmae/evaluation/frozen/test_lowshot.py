"""Low-shot logistic regression: the stated objective, and cyanure's numbers, which MSN reports."""

import numpy as np
import pytest
import torch

from fcmae.evaluation.frozen.lowshot import fit_lowshot, row_normalised

# Of cyanure 1.2.2, which MSN's logistic_eval.py calls, on the features of `_features`:
# preprocess(columns=False, centering=True, normalize=True), then Classifier(loss="multiclass-logistic",
# penalty="l2", fit_intercept=False, lambda_1=0.0025 / 24, tol=1e-12).
CYANURE = [
    [0.97618281, -1.31265102, -0.2890166, 0.6254848],
    [-0.19535065, 1.66823433, -1.08819691, -0.38468677],
    [-0.78083216, -0.35558332, 1.37721351, -0.24079804],
]


def _features() -> tuple[torch.Tensor, torch.Tensor]:
    rows = np.arange(1, 25)
    features = np.sin(np.outer(rows**2, np.arange(1, 5))) + 1
    labels = (rows - 1) % 3
    features[rows - 1, labels] += 0.5
    return torch.from_numpy(features), torch.from_numpy(labels)


def test_weights_are_those_of_cyanure():
    features, labels = _features()
    found = torch.from_numpy(fit_lowshot(row_normalised(features), labels, penalty=0.0025).coef_)
    # cyanure's gap of 1e-12 in an objective of curvature 1e-4 leaves the weights open by 1.4e-4.
    assert torch.linalg.vector_norm(found - torch.tensor(CYANURE)) < 1.5e-4


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("penalty", [0.0025, 0.075])
def test_fitted_weights_are_the_minimum_of_the_stated_objective(classes: int, penalty: float):
    features, labels = _features()
    features, labels = row_normalised(features), labels % classes
    found = torch.from_numpy(fit_lowshot(features, labels, penalty=penalty).coef_)
    if classes == 2:  # scikit-learn keeps W1 - W0, and at the minimum W1 = -W0
        found = torch.cat([-found, found]) / 2
    weights = found.requires_grad_()

    def gradient_at(weights: torch.Tensor) -> float:
        loss = torch.nn.functional.cross_entropy(features @ weights.T, labels, reduction="sum")
        objective = loss + penalty / 2 * weights.square().sum()
        return torch.autograd.grad(objective, weights)[0].abs().max().item()

    assert gradient_at(weights) < 1e-3 * gradient_at(torch.zeros_like(weights, requires_grad=True))
    assert gradient_at(weights) < 0.1 * gradient_at(weights.detach().mul(1.1).requires_grad_())


def test_rows_are_centred_each_by_its_own_mean():
    normalised = row_normalised(torch.tensor([[1.0, 3.0], [10.0, 0.0]]))
    torch.testing.assert_close(normalised, torch.tensor([[-1.0, 1.0], [1.0, -1.0]]) / 2**0.5)
