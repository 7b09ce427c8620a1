"""The annotations of arrays are those of the arrays that functions get and return."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from annotations import check_arrays
from jaxtyping import Float, TypeCheckError, jaxtyped

ROOT = Path(__file__).parents[2]


def test_a_wrong_annotation_is_refused():
    def scale(
        x: Float[np.ndarray, "B T"], y: Float[np.ndarray, "B 2*T"], name: str
    ) -> Float[np.ndarray, "T B"] | None:
        return x

    checked = jaxtyped(scale, typechecker=check_arrays)
    with pytest.raises(TypeCheckError, match="return value"):
        checked(np.zeros((2, 3)), np.zeros((2, 6)), 7)
    checked(np.zeros((2, 2)), np.zeros((2, 4)), "other hints are mypy's")
    with pytest.raises(TypeCheckError, match="parameter 'y'"):
        checked(np.zeros((2, 2)), np.zeros((3, 4)), "x")


@pytest.mark.slow
def test_annotations_hold_in_models_and_training_steps():
    subprocess.run([sys.executable, "tests/annotations.py"], cwd=ROOT, check=True)
