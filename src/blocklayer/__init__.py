# SPDX-License-Identifier: Apache-2.0
"""A block layer for virtual disk images.

    with blocklayer.open("disk.qed", mode="r+") as disk:
        data = disk.read(offset, length)
        disk.write(offset, data)

Names are imported when they are first used, so that `import blocklayer` costs next to nothing.
"""

from __future__ import annotations

from blocklayer._version import __version__

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from typing import Any

    from blocklayer.base.errors import (
        BlocklayerError,
        Cancelled,
        ChainError,
        Closed,
        CorruptImage,
        CreateError,
        FormatError,
        InvalidArgument,
        IoError,
        LockError,
        NotSupported,
        OpenError,
        OutOfRange,
        ReadOnly,
        Refused,
        TooDamaged,
        TruncatedImage,
    )
    from blocklayer.base.extent import Extent
    from blocklayer.base.progress import CancelToken, Progress
    from blocklayer.core.checking import CheckResult, Problem
    from blocklayer.core.disk import Disk
    from blocklayer.core.trust import Trust
    from blocklayer.ops.check import check
    from blocklayer.ops.commit import commit
    from blocklayer.ops.compare import CompareResult, compare
    from blocklayer.ops.convert import convert
    from blocklayer.ops.create import create
    from blocklayer.ops.dd import dd
    from blocklayer.ops.digest import DigestResult, digest
    from blocklayer.ops.info import ImageInfo, info
    from blocklayer.ops.map import map
    from blocklayer.ops.measure import Measurement, measure
    from blocklayer.ops.open_image import open_disk as open
    from blocklayer.ops.plot import plot
    from blocklayer.ops.probe import probe
    from blocklayer.ops.rebase import rebase
    from blocklayer.ops.resize import resize

_ORIGINS = {
    "BlocklayerError": "blocklayer.base.errors",
    "Cancelled": "blocklayer.base.errors",
    "ChainError": "blocklayer.base.errors",
    "Closed": "blocklayer.base.errors",
    "CorruptImage": "blocklayer.base.errors",
    "CreateError": "blocklayer.base.errors",
    "FormatError": "blocklayer.base.errors",
    "InvalidArgument": "blocklayer.base.errors",
    "IoError": "blocklayer.base.errors",
    "LockError": "blocklayer.base.errors",
    "NotSupported": "blocklayer.base.errors",
    "OpenError": "blocklayer.base.errors",
    "OutOfRange": "blocklayer.base.errors",
    "ReadOnly": "blocklayer.base.errors",
    "Refused": "blocklayer.base.errors",
    "TooDamaged": "blocklayer.base.errors",
    "TruncatedImage": "blocklayer.base.errors",
    "Extent": "blocklayer.base.extent",
    "CancelToken": "blocklayer.base.progress",
    "Progress": "blocklayer.base.progress",
    "CheckResult": "blocklayer.core.checking",
    "Problem": "blocklayer.core.checking",
    "Disk": "blocklayer.core.disk",
    "Trust": "blocklayer.core.trust",
    "check": "blocklayer.ops.check",
    "commit": "blocklayer.ops.commit",
    "CompareResult": "blocklayer.ops.compare",
    "compare": "blocklayer.ops.compare",
    "convert": "blocklayer.ops.convert",
    "create": "blocklayer.ops.create",
    "dd": "blocklayer.ops.dd",
    "DigestResult": "blocklayer.ops.digest",
    "digest": "blocklayer.ops.digest",
    "ImageInfo": "blocklayer.ops.info",
    "info": "blocklayer.ops.info",
    "map": "blocklayer.ops.map",
    "Measurement": "blocklayer.ops.measure",
    "measure": "blocklayer.ops.measure",
    "open": "blocklayer.ops.open_image:open_disk",
    "plot": "blocklayer.ops.plot",
    "probe": "blocklayer.ops.probe",
    "rebase": "blocklayer.ops.rebase",
    "resize": "blocklayer.ops.resize",
}

__all__ = [
    "BlocklayerError",
    "CancelToken",
    "Cancelled",
    "ChainError",
    "CheckResult",
    "Closed",
    "CompareResult",
    "CorruptImage",
    "CreateError",
    "DigestResult",
    "Disk",
    "Extent",
    "FormatError",
    "ImageInfo",
    "InvalidArgument",
    "IoError",
    "LockError",
    "Measurement",
    "NotSupported",
    "OpenError",
    "OutOfRange",
    "Problem",
    "Progress",
    "ReadOnly",
    "Refused",
    "TooDamaged",
    "TruncatedImage",
    "Trust",
    "__version__",
    "check",
    "commit",
    "compare",
    "convert",
    "create",
    "dd",
    "digest",
    "info",
    "map",
    "measure",
    "open",
    "plot",
    "probe",
    "rebase",
    "resize",
]


def __getattr__(name: str) -> Any:
    origin = _ORIGINS.get(name)
    if origin is None:
        raise AttributeError(f"module 'blocklayer' has no attribute {name!r}")
    import importlib  # no command comes here

    module, _, attribute = origin.partition(":")
    value = getattr(importlib.import_module(module), attribute or name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
