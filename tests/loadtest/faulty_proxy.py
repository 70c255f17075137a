"""A proxy in front of a real server, which falsifies messages."""

from __future__ import annotations

import json
import time
from base64 import b64encode
from typing import Any

from tornado.websocket import WebSocketHandler, websocket_connect

from asrserver.protocol.native import HEADER

Message = dict[str, Any]


class Fault:
    """Passes everything on. `up` is what the client says, `down` the server; each gives what goes on instead.

    Unless they come `together`, each chunk is acknowledged at once.
    """

    together = False

    def __init__(self) -> None:
        self.kept: list[tuple[Proxy, Message]] = []

    def refuses(self, handler: Proxy) -> bool:
        return False

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        return [message]

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message]


class Proxy(WebSocketHandler):
    """One connection through the fault."""

    def initialize(self, target: str, fault: Fault) -> None:
        self.target, self.fault = target, fault
        self.channels: dict[str, int] = {}  # by session; the server behind is not told of them

    async def get(self, *args: Any, **kwargs: Any) -> None:
        if self.fault.refuses(self):
            self.set_status(503)
            self.set_header("Retry-After", "1")
            self.finish()
            return
        self.server = await websocket_connect(self.target, on_message_callback=self.answered)
        await super().get(*args, **kwargs)

    def on_message(self, text: str | bytes) -> None:
        if isinstance(text, bytes):
            channel, index = HEADER.unpack_from(text)
            [sid] = [sid for sid, its in self.channels.items() if its == channel]
            audio = b64encode(text[HEADER.size :]).decode()
            asked = {"action": "chunk", "session_id": sid, "chunk_index": index, "audio_data": audio}
        else:
            asked = json.loads(text)
            if "channel" in asked:
                self.channels[asked["session_id"]] = asked.pop("channel")
            if not self.fault.together:
                asked.pop("ack_interval", None)
        for message in self.fault.up(self, asked):
            self.server.write_message(json.dumps(message))

    def answered(self, text: str | bytes | None) -> None:
        for message in [] if text is None else self.fault.down(self, json.loads(text)):
            if isinstance(message, dict) and message.get("status") in ("session_started", "session_resumed"):
                message["channel"] = self.channels[message["session_id"]]
            self.say(message)

    def say(self, message: Message | str) -> None:
        if self.ws_connection is not None:
            self.write_message(message if isinstance(message, str) else json.dumps(message))

    def on_close(self) -> None:
        self.server.close()


class WrongText(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "final_result":
            message["text"] = message["text"].rsplit(" ", 3)[0] + " a rubber duck"
        return [message]


class WrongChunkText(Fault):
    """One chunk result has a wrong text; the final text is right."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "chunk_result" and message["chunk_index"] == 1:
            message["text"] = "rubber duck"
        return [message]


class SwappedTexts(Fault):
    """Two sessions get each other's texts."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] != "final_result":
            return [message]
        if not self.kept:
            self.kept.append((proxy, message))
            return []
        other, theirs = self.kept.pop()
        message["text"], theirs["text"] = theirs["text"], message["text"]
        other.say(theirs)
        return [message]


class SwappedResults(Fault):
    """A result also goes to another client's connection."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] in ("segment_result", "chunk_result"):
            if self.kept and self.kept[0][0] is not proxy:
                self.kept[0][0].say(message)
            self.kept.append((proxy, message))
        return [message]


class Lost(Fault):
    """The first message of a kind does not arrive."""

    def __init__(self, kind: str, **fields: Any) -> None:
        super().__init__()
        self.kind, self.fields, self.done = kind, fields, False

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if not self.done and message["type"] == self.kind and self.fields.items() <= message.items():
            self.done = True
            return []
        return [message]


class LostChunks(Fault):
    """One chunk of each session is dropped unnoticed: it is acknowledged, and the later ones move up."""

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        if message["action"] != "chunk":
            return [message]
        if message["chunk_index"] == 4:
            proxy.say({"type": "ack", "session_id": message["session_id"], "chunk_index": 4, "status": "received"})
            return []
        message["chunk_index"] -= message["chunk_index"] > 4
        return [message]

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message.get("chunk_index", 0) >= 4:
            message["chunk_index"] += 1
        return [message]


class Twice(Fault):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message] * (2 if message["type"] == self.kind else 1)


class NoAcknowledgement(Fault):
    together = True

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [] if "through" in message else [message]


class TogetherTwice(Twice):
    together = True


class OnlyTakes(Fault):
    """Every chunk is acknowledged, and nothing else is sent."""

    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [message] if message["type"] == "ack" else []


class Cut(Fault):
    """The first connection that sends its fifth chunk is lost; the client resumes."""

    def __init__(self) -> None:
        super().__init__()
        self.done = False

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        if not self.done and message.get("chunk_index") == 5:
            self.done = True
            proxy.close(1012)
            return []
        return [message]


class Rubbish(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return ["this is no JSON"] if message["type"] == "final_result" else [message]


class Error(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        if message["type"] == "ack" and message.get("chunk_index") == 3:
            return [message, {"type": "error", "session_id": message["session_id"], "code": "boo", "message": "boo"}]
        return [message]


class Interrupted(Fault):
    def down(self, proxy: Proxy, message: Message) -> list[Message | str]:
        return [{**message, "status": "interrupted"} if message["type"] == "final_result" else message]


class Hearer(Fault):
    """Records when each session began, and when each of its chunks arrived."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}
        self.came: dict[str, list[float]] = {}

    def up(self, proxy: Proxy, message: Message) -> list[Message]:
        sid = message["session_id"]
        if message["action"] == "start":
            self.began[sid] = time.monotonic()
        elif message["action"] == "chunk":
            self.came.setdefault(sid, []).append(time.monotonic())
        return [message]


class RefusesAtFirst(Fault):
    """The first three connections are refused with 503 and Retry-After."""

    def __init__(self) -> None:
        super().__init__()
        self.left = 3
        self.refused_at: list[float] = []

    def refuses(self, handler: Proxy) -> bool:
        self.left -= 1
        if self.left >= 0:
            self.refused_at.append(time.monotonic())
        return self.left >= 0
