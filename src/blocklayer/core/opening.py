# SPDX-License-Identifier: Apache-2.0
"""From a name or an option tree to a graph of open nodes.

A name becomes options, options become nodes: the protocol first, then the format (given, or found
by its signature), then what the format's header asks for: its backing file, opened read-only in
the same way, until a file without one. Loops and absurd depths end in `ChainError`.
"""

from __future__ import annotations

import errno
import os

from blocklayer.base.errors import (
    BlocklayerError,
    ChainError,
    FormatError,
    InvalidArgument,
    LockError,
    OpenError,
    Refused,
)
from blocklayer.base.options import OptionTree, parse_bool
from blocklayer.base.record import Record
from blocklayer.core import drivers
from blocklayer.core.identity import file_identity, identity_of_name
from blocklayer.core.names import FilenameLike, backing_path, name_of_tree, parse_name
from blocklayer.core.node import FormatNode, Node
from blocklayer.core.padding import Padded

TYPE_CHECKING = False  # importing typing costs start-up time
if TYPE_CHECKING:
    from blocklayer.core.trust import Trust

CHAIN_DEPTH_MAX = 200
"""Layers of a backing chain, and nodes within nodes of a graph's options: deeper ones are a
mistake, or an attempt to exhaust descriptors."""

NESTING_MAX = 20
"""Nodes within nodes: options, or a backing file's name, can ask for any number of them."""

NODES_MAX = 1000
"""Nodes of one graph: layers that open further layers on two edges would double with each one."""


class CacheMode(Record, frozen=True):
    """How writes reach the disk: qemu-img's cache modes are combinations of these."""

    direct: bool = False
    no_flush: bool = False
    writethrough: bool = False


CACHE_MODES = {
    "writeback": CacheMode(),
    "none": CacheMode(direct=True),
    "writethrough": CacheMode(writethrough=True),
    "directsync": CacheMode(direct=True, writethrough=True),
    "unsafe": CacheMode(no_flush=True),
}


def cache_mode(name: str, what: str = "cache") -> CacheMode:
    """The mode called `name`. Raises `InvalidArgument`."""
    mode = CACHE_MODES.get(name)
    if mode is None:
        raise InvalidArgument(f"Invalid {what} option: {name}")
    return mode


class OpenFlags(Record, frozen=True):
    """What holds for a node and is inherited by its children."""

    read_only: bool = True
    cache: CacheMode = CacheMode()
    locking: str = "auto"
    force_share: bool = False
    backing_chain: bool = True
    """Open backing files too."""
    check: bool = False
    """The image is opened to be checked: no repair on open, and damage is tolerated."""
    backing_role: bool = False
    """The node is (part of) a backing file."""
    trust: Trust | None = None
    """Somebody else made the image: what it may ask for. None: anything, it is one's own."""


class Opener:
    """Opens one graph. Drivers get it, to open their children with what they inherit."""

    def __init__(
        self,
        flags: OpenFlags,
        *,
        stored: bool = False,
        discard: str = "ignore",
        detect_zeroes: str = "off",
    ) -> None:
        self.flags = flags
        self.discard = discard
        self.detect_zeroes = detect_zeroes
        """What a disk on the node does that is opened; its options may say it otherwise."""
        self._chain: tuple[tuple[int, int], ...] = ()
        """Identities of the images above, up to the top."""
        self._nesting = 0
        self._stored = stored
        """What is opened was named by an image, which may be hostile, and not by the user."""
        self._opened = [0]
        """Nodes opened so far; one counter for the whole graph."""
        self._names: set[str] = set()
        """Of nodes; one set for the whole graph."""
        self._layers_to_complete: list[_Layer] | None = None
        """Where to leave layers whose backing file somebody else opens; None: open it here."""

    def _derived(self, flags: OpenFlags) -> Opener:
        """An opener for the same place with other flags."""
        opener = Opener(flags, discard="unmap")  # who is above a node decides what reaches it
        opener._chain = self._chain
        opener._nesting = self._nesting
        opener._stored = self._stored
        opener._opened = self._opened
        opener._names = self._names
        opener._layers_to_complete = self._layers_to_complete
        return opener

    # --- names ----------------------------------------------------------------------------------

    def open_name(
        self,
        name: FilenameLike,
        format_name: str | None = None,
        more: OptionTree | None = None,
    ) -> Node:
        """Open what a user names: a path, `file:` or `json:` name, or an option tree.

        `more` are options that come before those in the name, and before the format.
        """
        if self.flags.trust is not None:
            self.flags.trust.check_given(name)
        options = parse_name(name)
        if more:
            options = _overlaid(options, more)
            format_name = None if "driver" in more else format_name
        if format_name is not None:
            if options.get("driver", format_name) != format_name:
                raise InvalidArgument(
                    f"Driver specified twice: '{options['driver']}' and '{format_name}'"
                )
            options["driver"] = format_name
        shown = getattr(name, "typed", "") if isinstance(name, dict) else os.fspath(name)
        try:
            return self.open_options(options)
        except OpenError:
            raise
        except BlocklayerError as error:
            raise _as_open_error(error, shown or name_of_tree(options)) from error

    def open_options(self, options: OptionTree) -> Node:
        """Open an option tree, taking out what is understood; leftovers are an error."""
        options = dict(options)
        opener = self._with_options(options)
        name = options.pop("driver", None)
        if name is None:
            return opener._open_probed(options)
        driver = drivers.load(name)
        if opener._stored and driver.kind == drivers.FILTER:
            raise InvalidArgument(
                f"A backing file name that is stored in an image cannot use driver '{name}'"
            )
        if driver.kind != drivers.PROTOCOL and "file" not in options and "filename" in options:
            options["file"] = {"driver": "file", "filename": options.pop("filename")}
        node = opener._finish(driver, options, guessed=False)
        if name in drivers.TOLD_NAMES:
            node.driver = str(name)
        return node

    def _with_options(self, options: OptionTree) -> Opener:
        """Take the options that every node has."""
        flags = self.flags
        if "node-name" in options and not isinstance(options["node-name"], dict):
            self._take_name(options.pop("node-name"))
        if "discard" in options or "detect-zeroes" in options:
            from blocklayer.core.modes import take_modes

            modes = take_modes(options, self.discard, self.detect_zeroes)
            self.discard, self.detect_zeroes = modes
        if "auto-read-only" in options:  # where a disk is to be written to, it must be writable
            parse_bool(options.pop("auto-read-only"), "auto-read-only")
        if "read-only" in options:
            read_only = parse_bool(options.pop("read-only"), "read-only")
            flags = flags.replace(read_only=read_only or flags.backing_role)
        if "force-share" in options:
            flags = flags.replace(force_share=parse_bool(options.pop("force-share"), "force-share"))
        cache = options.pop("cache", None)
        if isinstance(cache, dict):
            direct = parse_bool(cache.pop("direct", flags.cache.direct), "cache.direct")
            no_flush = parse_bool(cache.pop("no-flush", flags.cache.no_flush), "cache.no-flush")
            flags = flags.replace(cache=flags.cache.replace(direct=direct, no_flush=no_flush))
            if cache:
                raise InvalidArgument(f"Invalid parameter 'cache.{next(iter(cache))}'")
        elif cache is not None:
            raise InvalidArgument("Invalid parameter 'cache'")
        return self if flags is self.flags else self._derived(flags)

    def _take_name(self, name: object) -> None:
        """Nobody can ask for a node by its name here, but it must be one, and the only one."""
        from blocklayer.core.node_names import check_name

        if check_name(name) in self._names:
            raise InvalidArgument(f"Duplicate nodes with node-name='{name}'")
        self._names.add(str(name))

    def _open_probed(self, options: OptionTree) -> Node:
        if not options.keys() & {"file", "filename"}:
            raise InvalidArgument("Must specify either driver or file")
        if "file" not in options and "filename" in options:
            options["file"] = {"driver": "file", "filename": options.pop("filename")}
        storage = self.open_child(options, "file")
        try:
            name = probe_node(storage)
            driver = drivers.load(name)
            options["file"] = storage
            return self._finish(driver, options, guessed=name == "raw")
        except BaseException:
            _close_quietly(storage)
            raise

    def _finish(self, driver: drivers.Driver, options: OptionTree, guessed: bool) -> Node:
        """Let the driver open its node, then give it its backing file."""
        self._opened[0] += 1
        if self._opened[0] > NODES_MAX:
            raise InvalidArgument(f"The image consists of more than {NODES_MAX} nodes")
        backing = options.pop("backing", _AS_STORED)
        node = driver.open(self, options)
        try:
            if options:
                raise InvalidArgument(f"Invalid parameter '{next(iter(options))}'")
            if not self.flags.backing_chain and not self.flags.check:
                _refuse_backing(backing)
            if isinstance(node, FormatNode):
                if self.flags.trust is not None:
                    self.flags.trust.check_limits(node)
                if guessed:
                    node.probed = True
                if self._layers_to_complete is not None:
                    self._layers_to_complete.append(_Layer(self, node, backing))
                    return node
                _complete([_Layer(self, node, backing)])
                node.activate()
            elif node.limits.request_alignment > 1 or node.limits.max_transfer:
                return Padded(node)
            return node
        except BaseException:
            _close_quietly(node)
            raise

    # --- children -------------------------------------------------------------------------------

    def open_child(self, options: OptionTree, role: str) -> Node:
        """Open the child that `options` describe under `role`: a tree, a file name, or a node."""
        if role not in options:
            raise InvalidArgument(f'A block device must be specified for "{role}"')
        child = options.pop(role)
        if isinstance(child, Node):
            return child
        if isinstance(child, str):
            child = {"driver": "file", "filename": child}
        if not isinstance(child, dict):
            raise InvalidArgument(f"Invalid parameter type for '{role}', expected: object")
        if "driver" not in child and "filename" in child:
            child = {**child, "driver": "file"}
        if self._nesting >= NESTING_MAX:
            raise InvalidArgument(f"Nodes are nested deeper than {NESTING_MAX} levels")
        opener = self._derived(self.flags)
        opener._nesting += 1
        opener._layers_to_complete = None
        return opener.open_options(child)

    def open_below(
        self, node: FormatNode, options: object, layers_to_complete: list[_Layer]
    ) -> Node | None:
        """Open what lies below `node`, read-only, but not what lies below that.

        `options` as given by the user: a tree, a name, None for nothing, or what the header names.
        """
        if options is None or options == "":  # "" is how it was said once
            return None
        if options is _AS_STORED and not self.flags.backing_chain:
            return None
        if isinstance(options, Node):
            return options
        if _is_stored_name(node, options):
            if not node.backing_filename:
                return None
            below = self._below(node, layers_to_complete)
            below._stored = True
            return below.open_stored(node, options if isinstance(options, dict) else None)
        if isinstance(options, str):
            options = parse_name(options)
        if not isinstance(options, dict):
            raise InvalidArgument("Invalid parameter type for 'backing', expected: object")
        return self._below(node, layers_to_complete).open_options(options)

    def open_stored(self, node: FormatNode, more: OptionTree | None) -> Node:
        """Open the backing file that the header of `node` names, with options of the user's."""
        assert node.backing_filename is not None
        if self.flags.trust is not None:
            return self._open_beneath(node, node.backing_filename, self.flags.trust, more)
        name = backing_path(node.filename, node.backing_filename)
        try:
            return self.open_name(name, node.backing_format, more)
        except OpenError as error:
            # The lock of an image on itself is no other process's.
            lock = error.__cause__
            if isinstance(lock, LockError) and identity_of_name(lock.filename) in self._chain:
                raise _loop(name) from None
            raise

    def _open_beneath(
        self, node: FormatNode, name: str, trust: Trust, more: OptionTree | None
    ) -> Node:
        """`open_stored` for images of strangers: only a file in the folder, never by its name."""
        from blocklayer.core.beneath import NotBeneath, locate
        from blocklayer.core.trust import printable

        path, parts = trust.check_stored(node, name)
        direct = getattr(os, "O_DIRECT", 0) if self.flags.cache.direct else 0
        try:
            with locate(str(trust.folder), parts, direct) as found:
                if found.identity in self._chain:
                    raise _loop(printable(path))
                file = {"driver": "file", "filename": path, "located": found}
                named = {} if node.backing_format is None else {"driver": node.backing_format}
                return self.open_options(_overlaid({**named, "file": file}, more or {}))
        except NotBeneath as error:
            reason = f"its backing file '{printable(name)}' cannot be had: {error}"
            raise Refused(reason, node.filename) from None
        except OSError as error:
            reason = error.strerror or str(error)
            raise OpenError(reason, printable(path), error.errno or errno.EIO) from None
        except BlocklayerError as error:
            raise _as_open_error(error, printable(path)) from error

    def _below(self, node: FormatNode, layers_to_complete: list[_Layer]) -> Opener:
        """The opener for what lies below `node`: read-only, and aware of the chain so far."""
        identity = file_identity(node)
        if identity is not None and identity in self._chain:
            raise _loop(node.filename)
        if len(self._chain) >= CHAIN_DEPTH_MAX:
            raise ChainError(
                f"The backing chain of '{node.filename}' is deeper than {CHAIN_DEPTH_MAX} layers",
                node.filename,
            )
        trust = self.flags.trust
        if trust is not None:
            if identity is None and trust.folder is None:
                raise Refused("it lies in no folder: name one for its backing file", node.filename)
            trust = trust.anchored(node.filename)
            trust.check_depth(len(self._chain) + 1, node)
        flags = self.flags.replace(
            trust=trust,
            read_only=True,
            backing_role=True,
            check=False,
            cache=self.flags.cache.replace(writethrough=False),
        )
        opener = self._derived(flags)
        opener._chain = (*self._chain, identity or (-1, len(self._chain)))
        opener._layers_to_complete = layers_to_complete
        return opener


def _refuse_backing(options: object) -> None:
    """Who describes a backing file expects it to be opened: here the image is opened alone."""
    if options is not _AS_STORED and options:
        inner = f".{next(iter(options))}" if isinstance(options, dict) else ""
        raise InvalidArgument(f"Invalid parameter 'backing{inner}'")


_HOW_TO_OPEN = {
    *("read-only", "auto-read-only", "cache", "force-share", "discard", "detect-zeroes"),
    *("node-name", "locking", "aio"),
}
"""Options that do not say which file or server is meant."""


def _is_stored_name(node: FormatNode, options: object) -> bool:
    """Whether options of a backing file leave it to the header of `node` where that is."""
    if options is _AS_STORED:
        return True
    if not isinstance(options, dict) or not node.backing_filename or "filename" in options:
        return False
    file = options.get("file", {})
    if not isinstance(file, dict) or file.keys() - _HOW_TO_OPEN:
        return False
    return "driver" not in options or drivers.load(options["driver"]).kind == drivers.FORMAT


def _overlaid(tree: OptionTree, more: OptionTree) -> OptionTree:
    """A tree with other options in place of some of its own, at every depth."""
    result = dict(tree)
    for name, value in more.items():
        inside = result.get(name)
        if isinstance(inside, dict) and isinstance(value, dict):
            value = _overlaid(inside, value)
        result[name] = value
    return result


_AS_STORED = object()
"""Stands for the backing file that the image's header names."""


class _Layer(Record, frozen=True):
    """An image of a chain whose backing file is not open yet."""

    opener: Opener
    node: FormatNode
    options: object


def _complete(waiting: list[_Layer]) -> None:
    """Open a chain from its top to its base: layer by layer, since recursion has a limit."""
    passed: list[_Layer] = []
    try:
        while waiting:
            layer = waiting.pop()
            passed.append(layer)
            below = layer.opener.open_below(layer.node, layer.options, waiting)
            if below is not None:
                layer.node.attach_backing(below)
    except (ChainError, Refused):
        raise
    except BlocklayerError as error:
        told = _told_by_layers(error, passed)
        if told is error:
            raise
        raise told from error


def _told_by_layers(error: BlocklayerError, layers: list[_Layer]) -> BlocklayerError:
    """Why the topmost of `layers` cannot be opened, if opening what is below the last one failed.

    Options that the user gave for a backing file are reported as they are.
    """
    for layer in reversed(layers):
        node = layer.node
        if _is_stored_name(node, layer.options):
            cause = _as_open_error(error, node.backing_filename or "")
            error = OpenError(f"Could not open backing file: {cause}", node.filename, cause.errno)
    return error


def _loop(name: str) -> ChainError:
    return ChainError(f"Backing file '{name}' creates an infinite loop.", name)


def probe_node(storage: Node) -> str:
    """The format of what `storage` holds. Raises `FormatError` for one that is known elsewhere."""
    head = bytearray(min(drivers.PROBE_LENGTH, storage.size))
    if head:
        storage.readv(0, [memoryview(head)])
    name = drivers.probe_signature(head)
    if name is not None:
        return name
    foreign = drivers.foreign_signature(head)
    if foreign is not None:
        raise FormatError(
            f"The image looks like {foreign}, which this version cannot open;"
            " give the format 'raw' explicitly if its bytes are to be taken as they are",
            storage.filename,
        )
    return "raw"


def _as_open_error(error: BlocklayerError, filename: str) -> BlocklayerError:
    if isinstance(error, (ChainError, OpenError)):
        return error
    return OpenError(str(error), filename, error.errno or errno.EINVAL)


def _close_quietly(node: Node) -> None:
    """Release a graph whose opening has failed; the first error is the one to report."""
    try:
        node.close()
    except BlocklayerError:
        return
