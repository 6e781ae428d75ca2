"""The connection to a policy server that speaks openpi's protocol: metadata first, then one answer to each request.

All frames are binary msgpack (see `packing`); a text frame is the traceback of a server that failed, after which it
closes the connection (`openpi/serving/websocket_policy_server.py`).
"""

from __future__ import annotations

import logging
import os
import socket
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit

from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from wvl_ros.errors import ConfigError, PolicyServerError
from wvl_ros.policies.openpi.packing import pack, unpack

API_KEY = "OPENPI_API_KEY"  # environment variable

_PAUSE = 0.2  # s between attempts to connect
_CLOSE_TIMEOUT = 1.0  # s for the goodbye to a server that may be busy or dead
_LONGEST = 300  # letters of a remote error that are passed on

log = logging.getLogger(__name__)


class PolicyServer:
    """A policy server, asked over one connection that is made anew when the server restarts.

    Attributes:
        url: its address, 'ws://host:port'.
        metadata: what it said of itself when the connection was made.
    """

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        connect_timeout: float = 30.0,
        first_answer_timeout: float = 300.0,
        answer_timeout: float = 10.0,
    ) -> None:
        """Connects.

        Args:
            address: 'ws://host:port', 'wss://host' or 'host:port'.
            api_key: sent with the connection; None takes the environment variable OPENPI_API_KEY, '' sends none.
            connect_timeout: s for which a server is waited for that is not up, at the start and when it restarts.
            first_answer_timeout: s for the first answer on a connection: a server compiles its model then.
            answer_timeout: s for the others.

        Raises:
            ConfigError: no such address.
            PolicyServerError: no policy server is there.
        """
        self.url = server_url(address)
        self.metadata: dict[str, Any] = {}
        self._api_key = os.environ.get(API_KEY, "") if api_key is None else api_key
        self._connect_timeout = connect_timeout
        self._first_answer_timeout, self._answer_timeout = first_answer_timeout, answer_timeout
        self._stack = ExitStack()
        self._connection: ClientConnection | None = None
        self._answered = False
        self._connect()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The answer to a request, a map of names to numbers, texts and arrays.

        A request whose connection breaks is sent once more, over a new connection.

        Raises:
            PolicyServerError: the server is gone, too slow, fails, or sends no such map.
        """
        message = pack(request)
        try:
            try:
                return self._exchange(message)
            except ConnectionClosed:
                log.warning("The policy server '%s' broke the connection: connecting anew.", self.url)
                self.close()
                return self._exchange(message)
        except ConnectionClosed as error:
            self.close()
            raise PolicyServerError(
                f"The policy server '{self.url}' breaks the connection when it is asked; look at its log."
            ) from error
        except BaseException:
            self.close()  # an answer that comes later would be taken for that of the next request
            raise

    def close(self) -> None:
        """Ends the connection; the next request makes a new one."""
        self._connection, self._answered = None, False
        self._stack.close()

    def _exchange(self, message: bytes) -> dict[str, Any]:
        if self._connection is None:
            self._connect()
        assert self._connection is not None
        timeout = self._answer_timeout if self._answered else self._first_answer_timeout
        self._connection.send(message)
        try:
            frame = self._connection.recv(timeout=timeout)
        except TimeoutError:
            raise PolicyServerError(
                f"The policy server '{self.url}' gave no answer within {timeout:g} s; look at its load and the network."
            ) from None
        answer = self._read(frame)
        self._answered = True
        return answer

    def _read(self, frame: str | bytes) -> dict[str, Any]:
        if isinstance(frame, str):
            lines = [line.strip() for line in frame.splitlines() if line.strip()]
            reason = lines[-1][:_LONGEST] if lines else "it did not say why"
            raise PolicyServerError(f"The policy server '{self.url}' failed: {reason}")
        try:
            answer = unpack(frame)
        except ValueError as error:
            raise PolicyServerError(
                f"The policy server '{self.url}' sent {len(frame)} bytes that are no msgpack message of openpi's "
                f"({str(error)[:_LONGEST]}); is it openpi's scripts/serve_policy.py?"
            ) from error
        if not isinstance(answer, dict):
            raise PolicyServerError(
                f"The policy server '{self.url}' sent a {type(answer).__name__} where openpi's server sends a map."
            )
        return answer

    def _connect(self) -> None:
        """Makes the connection; a server that is not up, or goes down meanwhile, is tried again for a while."""
        deadline = time.monotonic() + self._connect_timeout
        waiting = False
        while True:
            try:
                return self._open(max(deadline - time.monotonic(), _PAUSE))
            except (OSError, InvalidHandshake, ConnectionClosed) as error:
                self.close()
                left = deadline - time.monotonic()
                if not _transient(error) or left < _PAUSE:
                    raise PolicyServerError(self._why(error)) from error
                if not waiting:
                    log.warning("Nothing serves at '%s': waiting for up to %.0f s.", self.url, left)
                waiting = True
                time.sleep(_PAUSE)
            except BaseException:
                self.close()
                raise

    def _open(self, timeout: float) -> None:
        self._connection = self._stack.enter_context(
            connect(
                self.url,
                compression=None,
                max_size=None,
                proxy=None,  # it is on the robot's network
                ping_interval=None,  # openpi's server answers no pings while it infers
                open_timeout=timeout,
                close_timeout=_CLOSE_TIMEOUT,
                additional_headers={"Authorization": f"Api-Key {self._api_key}"} if self._api_key else None,
            )
        )
        self.metadata = self._read(self._connection.recv(timeout=timeout))

    def _why(self, error: Exception) -> str:
        """The sentence for a connection that could not be made."""
        server = f"policy server '{self.url}'"
        if isinstance(error, TimeoutError):
            return f"The {server} was silent for {self._connect_timeout:g} s; is it one, and reachable?"
        if isinstance(error, InvalidStatus):
            status = error.response.status_code
            hint = f"set {API_KEY} to its key" if status in (401, 403) else "is that its address?"
            return f"The {server} refused the connection with HTTP {status}; {hint}."
        if isinstance(error, socket.gaierror):
            return f"The host of the {server} is not known ({error.strerror}); check the name."
        if isinstance(error, ConnectionRefusedError):
            return f"There is no {server}: the connection was refused; start it, or check the port."
        if isinstance(error, OSError):
            return f"The {server} cannot be reached: {error.strerror or error}."
        return f"What answers at '{self.url}' is no policy server ({error}); check the port."


def server_url(address: str) -> str:
    """The URL of an address such as 'ws://host:8000', 'wss://host/path' or 'host:8000'.

    Raises:
        ConfigError: it is none.
    """
    try:
        url = urlsplit(address if "://" in address else f"ws://{address}")
        port = url.port  # may raise
    except ValueError:
        url, port = urlsplit(""), None
    if url.scheme not in ("ws", "wss") or not url.hostname or ("://" not in address and port is None):
        raise ConfigError(
            f"'{address}' is no address of a policy server; give one such as ws://192.168.1.100:8000 as the checkpoint."
        )
    return url.geturl()


def _transient(error: Exception) -> bool:
    """Whether a server that is starting, or a tunnel to one, may be behind it."""
    hung_up = isinstance(error, InvalidMessage) and isinstance(error.__cause__, EOFError)
    return isinstance(error, ConnectionError | ConnectionClosed) or hung_up
