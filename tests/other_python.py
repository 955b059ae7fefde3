"""For scripts that need modules which the python that ctest found may lack."""
import os
import sys


def start_again_or_skip(missing, modules):
    """Starts the script again with the interpreter that MODELSTORE_PYTHON names, or ends it as skipped (77), saying why."""
    python = os.environ.pop("MODELSTORE_PYTHON", None)
    if python:  # popped: it is asked once
        os.execve(python, [python, *sys.argv], os.environ)
    print(f"skipped: {missing} (MODELSTORE_PYTHON names a python with {modules})")
    sys.exit(77)
