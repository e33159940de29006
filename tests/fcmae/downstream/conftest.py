"""One name of each family of encoders."""

import pytest
from downstream_encoders import SIZES, TRANSFORMERS


@pytest.fixture(params=sorted(SIZES))
def backbone(request: pytest.FixtureRequest) -> str:
    """One name of each family."""
    return request.param


@pytest.fixture(params=TRANSFORMERS)
def transformer(request: pytest.FixtureRequest) -> str:
    """One name of each family with attention."""
    return request.param
