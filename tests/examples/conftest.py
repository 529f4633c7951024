"""Makes the example scripts and this folder's data module importable, as `python FILE` does."""

import pathlib
import sys

_HERE = pathlib.Path(__file__).resolve().parent
_EXAMPLES = _HERE.parents[1] / "examples"
sys.path[:0] = [str(_EXAMPLES), str(_EXAMPLES / "recipes"), str(_HERE)]
