"""What luna_ext is on a Python without the GIL; `make freethreaded` runs all tests there."""

import os
import subprocess
import sys
import sysconfig

import pytest

pytestmark = pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python has the GIL always"
)


def test_import_leaves_the_gil_off():
    environment = {**os.environ}
    environment.pop("PYTHON_GIL", None)
    program = "import sys, luna_ext; print(sys._is_gil_enabled())"

    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
    )

    assert (finished.stdout, finished.stderr) == ("False\n", "")
