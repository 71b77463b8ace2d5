"""Keeps the modules of the working directory out of `python -m luna_ext`; imported before any other.

Python puts that directory before its own for -m, so that a json.py of another user there would be run.
-P leaves it out, also for what Python itself imports before luna_ext.
"""

import sys

_arguments = getattr(sys, "argv", [])
# So it is while Python looks for the module that -m names: other programs import luna_ext, too.
if (
    _arguments[:1] == ["-m"]
    and sys.orig_argv[-len(_arguments) :][:1] in (["luna_ext"], ["-mluna_ext"])
    and not sys.flags.safe_path
):
    del sys.path[0]
