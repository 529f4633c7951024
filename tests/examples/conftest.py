"""Makes the example scripts and this folder's data module importable, as `python FILE` does."""

import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE.parents[1] / "examples"), str(_HERE)]
