"""Write errors.md beside this file: each return code, what it means and what to do.

`make docs/errors.md` runs it, and a test says when that is due. With an argument it writes to that file.
"""

import sys
from pathlib import Path

from luna_ext.errors import VENDOR_DEFINED
from luna_ext.explanations import Explanation, all_explanations

HEAD = """\
# Return codes

Each CK_RV that has a name: what it means, the class of luna_ext that is raised for it, and what to do.
`luna-ext explain CODE` says the same of one. `make docs/errors.md` makes this page, from the table by
which errors are raised.

- Every error has the code as `rv`, its name as `rv_name`, the C function as `function`, and `slot_id`.
- An unlock that fails is a `LockReleaseError` or a `LockLostError`; its cause is of the class named here.
- A claim that is answered CKR_FUNCTION_FAILED is a `NoUnassignedTokenError`, a `FunctionFailedError`.
- **Lock-outs.** A keyring is unlocked by the crypto officer of the cluster's partition, on the appliance:
  `lunash keyring unlock`. The password of a keyring's crypto officer locks after 10 wrong tries if it has
  up to 16 characters; a longer one does not count them. Ten wrong logins of its security officer erase a
  partition.
- A code that is not here has no name, neither in PKCS #11 v2.40 nor in the Luna client's header: it is a
  `CryptokiError`, with its number. See the client library's own log, and ask its vendor.
"""
STANDARD = """
## The standard's

Of PKCS #11 v2.40, and a few of older and later versions.

"""
VENDOR = """
## The vendor's

Their names are those of the Luna client's header. Most of them are not explained there: what such a code
is about is taken from its name.

"""
COLUMNS = (
    "| code | number | raised | what it means | what to do |\n| --- | --- | --- | --- | --- |\n"
)


def row(code: Explanation) -> str:
    kind = "" if code.exception is None else code.exception.__name__
    return f"| {code.name} | 0x{code.rv:X} | {kind} | {code.meaning} | {code.advice} |\n"


def page() -> str:
    codes = all_explanations()
    of_standard = "".join(row(code) for code in codes if code.rv < VENDOR_DEFINED)
    of_vendor = "".join(row(code) for code in codes if code.rv >= VENDOR_DEFINED)
    return HEAD + STANDARD + COLUMNS + of_standard + VENDOR + COLUMNS + of_vendor


if __name__ == "__main__":
    file = sys.argv[1] if sys.argv[1:] else Path(__file__).with_name("errors.md")
    Path(file).write_text(page())
