"""Logistic regression on the features of few labelled images, as MSN evaluates."""

import numpy as np
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from torch import Tensor


def row_normalised(features: Tensor) -> Tensor:
    """Each row minus its own mean, divided by its L2 norm: [N, D] -> [N, D].

    That is what cyanure's `preprocess(columns=False, centering=True, normalize=True)` does, which MSN calls.
    """
    return F.normalize(features - features.mean(dim=1, keepdim=True), dim=1)


def fit_lowshot(features: Tensor, labels: Tensor, *, penalty: float) -> LogisticRegression:
    """Multinomial logistic regression without intercept, at the optimum.

    It minimises `sum of the losses + penalty / 2 * ||W||^2`. MSN hands cyanure `penalty / n`, and cyanure
    minimises `mean of the losses + penalty / (2 n) * ||W||^2`: n times smaller, with the same optimum.
    scikit-learn minimises `C * sum of the losses + ||W||^2 / 2`, so C is `1 / penalty` for any n. For two
    classes it has one vector w = W1 - W0, of which `||W||^2` is half of `||w||^2`: there C is `2 / penalty`.

    Args:
        features: [N, D], normalised.
        labels: int64 [N].
        penalty: MSN's lambda: 0.0025 for 1 to 5 images of each class, 0.075 for 1 %.
    Paper: Assran et al. 2022, Masked Siamese Networks, section 5 and the authors' logistic_eval.py.
    """
    inverse = (2 if len(labels.unique()) == 2 else 1) / penalty
    classifier = LogisticRegression(C=inverse, fit_intercept=False, tol=1e-6, max_iter=10_000)
    return classifier.fit(features.double().numpy(), labels.numpy())


def lowshot_accuracy(
    features: Tensor, labels: Tensor, train_features: Tensor, train_labels: Tensor, *, penalty: float
) -> float:
    """Accuracy of `fit_lowshot` on `row_normalised` features.

    Args:
        features: [N, D].
        labels: int64 [N].
        train_features: [M, D], the few.
        train_labels: int64 [M].
        penalty: As for `fit_lowshot`.
    """
    classifier = fit_lowshot(row_normalised(train_features.double()), train_labels, penalty=penalty)
    predicted = classifier.predict(row_normalised(features.double()).numpy())
    return float(np.mean(predicted == labels.numpy()))
