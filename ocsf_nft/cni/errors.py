"""Errors of a CNI plugin, with the numbers of the specification."""

from __future__ import annotations

from typing import Final

from ocsf_nft.errors import OcsfNftError

#: Numbers of the CNI specification (section 5, Error).
INCOMPATIBLE_VERSION: Final = 1
WRONG_ENVIRONMENT: Final = 4
NO_JSON: Final = 6
WRONG_CONFIG: Final = 7
#: The plugin can't add containers now (STATUS, since version 1.1.0).
UNAVAILABLE: Final = 50
#: Our own: the service refuses the container, or can't fence it.
REFUSED: Final = 100
#: Our own: the service does not answer.
NO_SERVICE: Final = 101


class CniError(OcsfNftError):
    """Error that the container runtime gets as JSON: a number and one sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
