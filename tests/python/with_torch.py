"""Import this first in a test that needs torch and transformers: where they are missing it starts the test again with the
interpreter that MODELSTORE_PYTHON names, or ends it as skipped (77), saying why.
"""
import os
import sys

try:
    import numpy  # noqa: F401
    import safetensors.torch  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as missing:
    python = os.environ.pop("MODELSTORE_PYTHON", None)
    if python:  # popped: it is asked once
        os.execve(python, [python, *sys.argv], os.environ)
    print(f"skipped: {missing} (MODELSTORE_PYTHON names a python with torch, transformers and safetensors)")
    sys.exit(77)
