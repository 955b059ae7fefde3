"""Import this first in a test that needs torch and transformers: where they are missing it starts the test again with the
interpreter that MODELSTORE_PYTHON names, or ends it as skipped (77), saying why.
"""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
from other_python import start_again_or_skip  # noqa: E402

try:
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as missing:
    start_again_or_skip(missing, "torch, transformers and safetensors")
