"""A linear classifier on frozen features."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor


def probe_accuracy(
    features: Tensor, labels: Tensor, train_features: Tensor, train_labels: Tensor, *, strength: float = 1.0
) -> float:
    """Accuracy of scikit-learn's logistic regression on standardised features.

    Args:
        features: [N, D].
        labels: int64 [N].
        train_features: [M, D].
        train_labels: int64 [M].
        strength: Inverse of the L2 penalty's weight, scikit-learn's C.
    """
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000))
    classifier.fit(train_features.double().numpy(), train_labels.numpy())
    return float(np.mean(classifier.predict(features.double().numpy()) == labels.numpy()))
