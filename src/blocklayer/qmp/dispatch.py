# SPDX-License-Identifier: Apache-2.0
"""From a message to its answer: negotiation, commands, arguments, errors; no input or output."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from blocklayer._version import __version__
from blocklayer.base.errors import BlocklayerError
from blocklayer.qmp.context import Context
from blocklayer.qmp.parser import JsonError
from blocklayer.qmp.types import Command, CommandNotFound, QmpError
from blocklayer.qmp.validate import convert

_log = logging.getLogger(__name__)

PROTOCOL_VERSION = (7, 2, 0)
"""The version of QEMU whose protocol this is. Clients decide by it what they may ask for."""

CAPABILITIES = ("oob",)


def version_info() -> dict[str, Any]:
    """What query-version and the greeting tell."""
    major, minor, micro = PROTOCOL_VERSION
    return {
        "qemu": {"micro": micro, "minor": minor, "major": major},
        "package": f"blocklayer-{__version__}",
    }


class Session:
    """One client's conversation."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.negotiated = False
        """Events are for those who have negotiated."""
        self._oob = False

    def greeting(self) -> dict[str, Any]:
        """What the client is told first."""
        return {"QMP": {"version": version_info(), "capabilities": list(CAPABILITIES)}}

    def answer(self, message: Any) -> dict[str, Any]:
        """The answer to a message, or to what could not be understood. Never raises."""
        identity: dict[str, Any] = {}
        try:
            if isinstance(message, JsonError):
                raise QmpError(str(message))
            if not isinstance(message, dict):
                raise QmpError("QMP input must be a JSON object")
            if "id" in message:
                identity = {"id": message["id"]}
            result = self._execute(message)
        except BlocklayerError as error:
            return {**identity, "error": {"class": error.qmp_class, "desc": description(error)}}
        except OSError as error:
            reason = error.strerror or str(error)
            text = f"{error.filename}: {reason}" if error.filename else reason
            return {**identity, "error": {"class": "GenericError", "desc": text}}
        except Exception as error:
            _log.exception("a command has failed in a way that nobody foresaw")
            text = f"Internal error: {type(error).__name__}: {error}"
            return {**identity, "error": {"class": "GenericError", "desc": text}}
        return {"return": result, **identity}

    def _execute(self, message: dict[str, Any]) -> Any:
        name, arguments, out_of_band = self._envelope(message)
        command = self._command(name)
        if out_of_band:
            raise QmpError(f"The command {name} does not support OOB")
        given = convert(arguments, command.arguments)
        if command.before_negotiation:
            self._negotiate(given)
            return {}
        with self._context.lock:
            if self._context.ending:
                raise QmpError("The daemon is about to end")
            result = command.run(self._context, given)
        return {} if command.returns is None else msgspec.to_builtins(result)

    def _envelope(self, message: dict[str, Any]) -> tuple[str, dict[str, Any], bool]:
        """(command, arguments, out of band) of a message that is right."""
        verbs: list[str] = []
        arguments: dict[str, Any] = {}
        for member, value in message.items():
            if member == "execute" or (member == "exec-oob" and self._oob):
                if not isinstance(value, str):
                    raise QmpError(f"QMP input member '{member}' must be a string")
                if verbs:
                    raise QmpError("QMP input member 'execute' clashes with 'exec-oob'")
                verbs.append(member)
            elif member == "arguments":
                if not isinstance(value, dict):
                    raise QmpError("QMP input member 'arguments' must be an object")
                arguments = value
            elif member != "id":
                raise QmpError(f"QMP input member '{member}' is unexpected")
        if not verbs:
            raise QmpError("QMP input lacks member 'execute'")
        return message[verbs[0]], arguments, verbs[0] == "exec-oob"

    def _command(self, name: str) -> Command:
        command = self._context.commands.get(name)
        if not self.negotiated:
            if command is None or not command.before_negotiation:
                raise CommandNotFound("Expecting capabilities negotiation with 'qmp_capabilities'")
            return command
        if command is None:
            raise CommandNotFound(f"The command {name} has not been found")
        return command

    def _negotiate(self, capabilities: Any) -> None:
        if self.negotiated:
            raise CommandNotFound("Capabilities negotiation is already complete, command ignored")
        self._oob = "oob" in (capabilities.enable or ())
        self.negotiated = True


def description(error: BlocklayerError) -> str:
    """An error's words; of those for people the first line, since what follows is advice."""
    text = str(error)
    return text if isinstance(error, QmpError) else text.partition("\n")[0]
