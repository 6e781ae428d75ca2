"""A policy server on a port of this machine that speaks openpi's protocol, written against raw msgpack."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

from wvl_ros.worlds import droid


def packed(message: Any) -> bytes:
    """As openpi's server packs it."""

    def encode(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return {
                b"__ndarray__": True,
                b"data": value.tobytes(),
                b"dtype": value.dtype.str,
                b"shape": list(value.shape),
            }
        raise TypeError(type(value))

    data: bytes = msgpack.packb(message, default=encode)
    return data


def unpacked(data: bytes) -> Any:
    """As openpi's server unpacks it."""

    def decode(value: dict[Any, Any]) -> Any:
        if b"__ndarray__" in value:
            return np.ndarray(tuple(value[b"shape"]), np.dtype(value[b"dtype"]), buffer=value[b"data"])
        return value

    return msgpack.unpackb(data, object_hook=decode)


class PolicyServerStandIn:
    """Serves in threads of its own. Its behaviour can be changed while it runs.

    Attributes:
        answer: from a request and its number to what is sent: a map (packed with `server_timing`), bytes (as they are),
            a text (then it closes with 1011, as openpi's does), or None (it just hangs up). By default zeros (15, 8).
        hello: what is sent first.
        requests: all that came, unpacked. connections: their Authorization headers.
    """

    def __init__(self) -> None:
        self.answer: Callable[[dict[str, Any], int], Any] = lambda request, number: {"actions": np.zeros((15, 8))}
        self.hello: bytes | str = packed({"policy": "stand-in"})
        self.requests: list[dict[str, Any]] = []
        self.connections: list[str | None] = []
        self.stopping = threading.Event()
        self.port = 0
        self._server: Server | None = None
        self.start()

    @property
    def address(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serves, on the same port as before."""
        self.stopping.clear()
        self._server = serve(self._handle, "127.0.0.1", self.port, compression=None, max_size=None, close_timeout=0.2)
        self.port = self._server.socket.getsockname()[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Ends it and its connections."""
        self.stopping.set()
        if self._server is not None:
            self._server.shutdown()
        self._server = None

    def _handle(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        self.connections.append(connection.request.headers.get("Authorization"))
        try:
            connection.send(self.hello)
            while True:
                request = connection.recv()
                assert isinstance(request, bytes)
                self.requests.append(unpacked(request))
                answer = self.answer(self.requests[-1], len(self.requests))
                if answer is None:
                    return
                if isinstance(answer, dict):
                    answer = packed(answer | {"server_timing": {"infer_ms": 1.5}})
                connection.send(answer)
                if isinstance(answer, str):
                    connection.close(1011)
                    return
        except ConnectionClosed:
            pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[PolicyServerStandIn]:
    monkeypatch.delenv("OPENPI_API_KEY", raising=False)
    stand_in = PolicyServerStandIn()
    yield stand_in
    stand_in.stop()


@pytest.fixture
def observe() -> Callable[..., dict[str, np.ndarray]]:
    """Makes an observation: exterior and wrist camera are flat in their `shade`s, of the given height and width."""

    def make(shade: int = 100, height: int = 180, width: int = 320) -> dict[str, np.ndarray]:
        images = {camera: np.full((height, width, 3), shade + i, np.uint8) for i, camera in enumerate(droid.CAMERAS)}
        joints = droid.RESET_JOINTS + shade / 1000
        return images | {
            "joint_position": joints,
            "cartesian_position": droid.forward_kinematics(joints),
            "gripper_position": np.array([0.25]),
        }

    return make
