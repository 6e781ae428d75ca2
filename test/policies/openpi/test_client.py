"""The connection to a policy server: its protocol, and a sentence for each way in which a server can fail."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from wvl_ros.errors import ConfigError, PolicyServerError
from wvl_ros.policies.openpi.client import PolicyServer, server_url


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of something that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


def test_metadata_comes_first_then_an_answer_to_each_request(server: Any) -> None:
    server.answer = lambda request, number: {"actions": request["x"] * number}
    client = PolicyServer(server.address)
    assert client.metadata == {"policy": "stand-in"}
    for number in (1, 2, 3):
        answer = client.ask({"x": np.arange(3.0), "prompt": "push"})
        np.testing.assert_array_equal(answer["actions"], np.arange(3.0) * number)
        assert answer["server_timing"] == {"infer_ms": 1.5}
    assert server.connections == [None]
    assert [request["prompt"] for request in server.requests] == ["push"] * 3
    client.close()


@pytest.mark.parametrize(("given", "sent"), [(None, "Api-Key secret"), ("other", "Api-Key other"), ("", None)])
def test_the_key_goes_with_the_connection(
    server: Any, monkeypatch: pytest.MonkeyPatch, given: str | None, sent: str | None
) -> None:
    monkeypatch.setenv("OPENPI_API_KEY", "secret")
    PolicyServer(server.address, api_key=given).close()
    assert server.connections == [sent]


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("ws://host:8000", "ws://host:8000"),
        ("wss://policies.example.org/droid", "wss://policies.example.org/droid"),
        ("192.168.1.100:8000", "ws://192.168.1.100:8000"),
        ("[::1]:8000", "ws://[::1]:8000"),
    ],
)
def test_addresses(address: str, url: str) -> None:
    assert server_url(address) == url


@pytest.mark.parametrize(
    "address", ["", "small", "http://host:8000", "host:port", "ws://", "host:99999", "[::1", ":80"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"is no address of a policy server; give one such as ws://"):
        server_url(address)


def test_a_request_survives_a_restart_of_the_server(server: Any, caplog: pytest.LogCaptureFixture) -> None:
    client = PolicyServer(server.address)
    client.ask({"n": 1})
    server.stop()
    restart = threading.Timer(0.5, server.start)
    restart.start()
    server.answer = lambda request, number: {"n": request["n"]}
    with caplog.at_level(logging.WARNING):
        assert client.ask({"n": 2})["n"] == 2
    restart.join()
    assert len(server.connections) == 2
    assert "broke the connection: connecting anew" in caplog.text
    assert "waiting for up to" in caplog.text
    client.close()


def test_a_server_that_stays_away_is_an_error_and_may_come_back(server: Any) -> None:
    client = PolicyServer(server.address, connect_timeout=0.5)
    server.stop()
    start = time.monotonic()
    with pytest.raises(PolicyServerError, match=r"There is no policy server .*: the connection was refused; start it"):
        client.ask({})
    assert 0.2 < time.monotonic() - start < 5
    server.start()
    assert "actions" in client.ask({})
    client.close()


def test_a_request_is_sent_twice_at_most(server: Any) -> None:
    client = PolicyServer(server.address)
    server.answer = lambda request, number: None
    with pytest.raises(PolicyServerError, match="breaks the connection when it is asked; look at its log"):
        client.ask({})
    assert len(server.requests) == 2
    assert len(server.connections) == 2


def test_a_late_answer_is_not_taken_for_the_next_one(server: Any) -> None:
    def answer(request: dict[str, Any], number: int) -> dict[str, Any]:
        server.stopping.wait(0.6 if number == 2 else 0)
        return {"n": request["n"]}

    server.answer = answer
    client = PolicyServer(server.address, answer_timeout=0.2)
    assert client.ask({"n": 1})["n"] == 1
    with pytest.raises(PolicyServerError, match=r"gave no answer within 0\.2 s; look at its load"):
        client.ask({"n": 2})
    assert client.ask({"n": 3})["n"] == 3
    assert len(server.requests) == 3  # a slow server is not asked twice
    client.close()


def test_the_first_answer_may_take_longer(server: Any) -> None:
    server.answer = lambda request, number: server.stopping.wait(0.5 if number == 1 else 0) or {"n": number}
    client = PolicyServer(server.address, first_answer_timeout=5.0, answer_timeout=0.2)
    assert client.ask({})["n"] == 1
    assert client.ask({})["n"] == 2
    client.close()


def test_a_traceback_s_last_line_is_the_reason(server: Any) -> None:
    client = PolicyServer(server.address)
    server.answer = lambda request, number: (
        "Traceback (most recent call last):\n  File 'policy.py', line 3\nKeyError: 'observation/wrist_image_left'\n\n"
    )
    with pytest.raises(PolicyServerError) as caught:
        client.ask({})
    sentence = f"The policy server '{server.address}' failed: KeyError: 'observation/wrist_image_left'"
    assert str(caught.value) == sentence
    server.answer = lambda request, number: {"n": number}
    assert client.ask({})["n"] == 2  # over a new connection
    client.close()


@pytest.mark.parametrize(
    ("sent", "sentence"),
    [
        (b"", "sent 0 bytes that are no msgpack message"),
        (b"\xc1 garbage", "sent 9 bytes that are no msgpack message"),
        (b"\x93\x01\x02\x03", "sent a list where openpi's server sends a map"),
        ("", "failed: it did not say why"),
        ("x" * 5000, f"failed: {'x' * 300}$"),
    ],
)
def test_garbage_is_refused_in_a_sentence(server: Any, sent: bytes | str, sentence: str) -> None:
    client = PolicyServer(server.address)
    server.answer = lambda request, number: sent
    with pytest.raises(PolicyServerError, match=sentence) as caught:
        client.ask({})
    assert "\n" not in str(caught.value)
    server.hello = sent
    with pytest.raises(PolicyServerError, match=sentence):
        PolicyServer(server.address)


def test_what_serves_something_else_is_no_policy_server(silent: str) -> None:
    with pytest.raises(PolicyServerError, match=r"was silent for 0\.3 s; is it one, and reachable"):
        PolicyServer(silent, connect_timeout=0.3)
    with pytest.raises(
        PolicyServerError, match=r"The host of the policy server 'ws://nowhere\.invalid:1' is not known"
    ):
        PolicyServer("nowhere.invalid:1", connect_timeout=0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply(text: bytes) -> None:
            with listener.accept()[0] as peer:
                peer.recv(4096)
                peer.sendall(text)

        address = f"127.0.0.1:{listener.getsockname()[1]}"
        for text, sentence in (
            (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "is no policy server .*; check the port"),
            (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP 404; is that its address"),
            (b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n", "HTTP 401; set OPENPI_API_KEY to its key"),
        ):
            thread = threading.Thread(target=reply, args=(text,), daemon=True)
            thread.start()
            with pytest.raises(PolicyServerError, match=sentence):
                PolicyServer(address, connect_timeout=3)
            thread.join()


def test_a_tunnel_to_a_server_that_is_not_up_yet_is_tried_again(server: Any) -> None:
    """An SSH tunnel or a container's port accepts the connection and then hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def tunnel() -> None:
            listener.accept()[0].close()
            with listener.accept()[0] as near, socket.create_connection(("127.0.0.1", server.port)) as far:
                back = threading.Thread(target=pump, args=(far, near), daemon=True)
                back.start()
                pump(near, far)
                back.join()

        thread = threading.Thread(target=tunnel, daemon=True)
        thread.start()
        client = PolicyServer(f"127.0.0.1:{listener.getsockname()[1]}", connect_timeout=10)
        assert "actions" in client.ask({})
        client.close()
        thread.join()


def pump(source: socket.socket, sink: socket.socket) -> None:
    while data := source.recv(65536):
        sink.sendall(data)
    sink.shutdown(socket.SHUT_WR)
