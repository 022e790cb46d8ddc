# SPDX-License-Identifier: Apache-2.0
"""--object: what other tools' command lines carry along.

Nothing here needs a secret or a thread yet. Definitions of objects that change no result are
checked and accepted, so that such command lines work; those whose absence would be noticed, a
limit or a permission, are refused.
"""

from __future__ import annotations

from blocklayer.base.options import split_options
from blocklayer.cli.failures import Failure

_HARMLESS = ("secret", "secret_keyring", "iothread", "main-loop")
_PREFIXES = ("tls-creds-", "tls-cipher-")


def check_objects(definitions: list[str]) -> None:
    """Look at every definition. Raises `Failure`."""
    for definition in definitions:
        _check(definition)


def _check(definition: str) -> None:
    first, _, rest = definition.partition(",")
    if "=" not in first:
        definition = f"qom-type={first},{rest}"
    properties = dict(split_options(definition))
    kind = properties.get("qom-type")
    if kind is None:
        raise Failure("Parameter 'qom-type' is missing")
    if kind not in _HARMLESS and not kind.startswith(_PREFIXES):
        raise Failure(f"Parameter 'qom-type' does not accept value '{kind}'")
    if "id" not in properties:
        raise Failure("Parameter 'id' is missing")
