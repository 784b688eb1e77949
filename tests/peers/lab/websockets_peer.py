"""A peer of a rendezvous by the library websockets; does what standard input says.

A line is {"do": NAME, ...}; the answer is {"answer": VALUE} or {"error": TEXT}. Bytes are text or, where they are many,
a count of random ones and their SHA-256.
"""

import hashlib
import json
import os
import ssl
import sys

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

PATIENCE = 20
peer = None
rest = b""


def open_(url, bearer, ca):
    global peer
    context = ssl.create_default_context(cafile=ca) if url.startswith("wss:") else None
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    try:
        peer = connect(url, additional_headers=headers, ssl=context, open_timeout=PATIENCE, close_timeout=PATIENCE)
    except InvalidStatus as refused:
        body = json.loads(refused.response.body)
        return {"status": refused.response.status_code, "rule": body["rule"]}
    return {
        "offered": peer.request.headers.get("Sec-WebSocket-Extensions"),
        "extensions": peer.response.headers.get("Sec-WebSocket-Extensions"),
        "protocol": peer.subprotocol,
    }


def send(parts):
    # An iterable is one message in as many fragments.
    parts = [part.encode() for part in parts]
    peer.send(iter(parts) if len(parts) > 1 else parts[0])


def send_random(count, part):
    data = os.urandom(count)
    peer.send(data[at : at + part] for at in range(0, count, part))
    return hashlib.sha256(data).hexdigest()


def take(count):
    global rest
    while len(rest) < count:
        message = peer.recv(timeout=PATIENCE)
        assert isinstance(message, bytes), "a text message"
        rest += message
    taken, rest = rest[:count], rest[count:]
    return taken


def ping(data):
    return peer.ping(data.encode()).wait(PATIENCE)


def closed():
    """The Close frame that arrived first, after all messages."""
    messages = 0
    try:
        while True:
            peer.recv(timeout=PATIENCE)
            messages += 1
    except ConnectionClosed as end:
        received = end.rcvd and {"code": end.rcvd.code, "reason": end.rcvd.reason}
        return {"received": received, "by_us": not end.rcvd_then_sent, "messages": messages}


ACTIONS = {
    "open": open_,
    "send": send,
    "send_random": send_random,
    "send_text": lambda text: peer.send(text),
    "receive": lambda count: take(count).decode(),
    "digest": lambda count: hashlib.sha256(take(count)).hexdigest(),
    "ping": ping,
    # A bare frame of a kind that does not exist.
    "send_nonsense": lambda: peer.socket.sendall(bytes([0x83, 0x80, 0, 0, 0, 0])),
    "close": lambda code: peer.close(code),
    "closed": closed,
}

for line in sys.stdin:
    order = json.loads(line)
    try:
        answer = {"answer": ACTIONS[order.pop("do")](**order)}
    except Exception as error:
        answer = {"error": repr(error)}
    print(json.dumps(answer), flush=True)
