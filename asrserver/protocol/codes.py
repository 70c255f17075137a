"""Every error code that a client can get: in `error` messages of a WebSocket, in {"error": …} of HTTP, in its history.

Codes are stable: programs decide by them. One that is no longer sent is never used for something else. The reference in
docs/ is checked against this table (tests/test_docs.py), and so is every place where an error is raised
(tests/protocol/test_codes.py).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ErrorCode:
    """What a code means.

    Attributes:
        meaning: One line, for the reference.
        statuses: The HTTP statuses that mean the same: it comes with one of them where it answers a request.
    """

    meaning: str
    statuses: tuple[int, ...] = ()


CODES: dict[str, ErrorCode] = {
    # -- messages and requests that are wrong
    "bad_json": ErrorCode("The message is not a JSON object."),
    "bad_request": ErrorCode(
        "The message or request lacks a field, or a parameter has a value that is not allowed.", (400,)
    ),
    "unknown_action": ErrorCode("The message's `action` is not one of the protocol's."),
    "bad_id": ErrorCode(
        "`session_id` or `user_id` is no text of 1 to 128 characters, or has whitespace, braces or control characters."
    ),
    "bad_option": ErrorCode(
        "An option of `start`, `resume` or a request has a value that is not allowed; `option` names it.", (400,)
    ),
    "unknown_option": ErrorCode(
        "A field of `start`, or a parameter of a REST request, is none that the server knows: it is misspelt, or of a "
        "later release; the message has the nearest known one.",
        (400,),
    ),
    "unknown_model": ErrorCode(
        "No worker offers the model that `start` or a request names; the message lists those that are.", (404, 400)
    ),
    "bad_index": ErrorCode("`chunk_index` is not a whole number from 0."),
    "bad_seq": ErrorCode("`last_seq` is not a whole number from 0, or is past the session's last result."),
    "bad_base64": ErrorCode("`audio_data` is not base64."),
    "empty_chunk": ErrorCode("The chunk has no bytes."),
    "message_too_large": ErrorCode("The message is larger than `max_message`."),
    "chunk_gap": ErrorCode("A chunk index was left out; `expected` is the index that comes next."),
    "chunk_refused": ErrorCode("The chunk was refused before, and later ones have been accepted since."),
    # -- sessions
    "no_session": ErrorCode("The session is not open on this connection, or cannot be resumed because there is none."),
    "session_exists": ErrorCode("`session_id` is already in use."),
    "session_finished": ErrorCode("The session accepts no more audio."),
    "session_moved": ErrorCode("The session was resumed on another connection."),
    "session_gone": ErrorCode("The session's data is no longer there."),
    "session_detached": ErrorCode("An earlier chunk could not be written: resume the session first."),
    # -- limits
    "unauthorized": ErrorCode("A valid API key is needed.", (401,)),
    "host_not_allowed": ErrorCode("The server has no API keys and does not know itself by this name.", (403,)),
    "operator_required": ErrorCode("The route is for operators' keys.", (403,)),
    "origin_not_allowed": ErrorCode("Web pages of this origin may not use the server.", (403,)),
    "too_many_connections": ErrorCode(
        "A limit of connections is reached: of the address or the API key (429), or of the server (503).", (429, 503)
    ),
    "too_many_sessions": ErrorCode(
        "A limit of sessions is reached: of the connection or the API key (429), or of the server (503).", (429, 503)
    ),
    "rate_limited": ErrorCode("The API key has started too many sessions in this minute.", (429,)),
    "quota_exceeded": ErrorCode("The API key has sent as much audio as it may in this minute.", (429,)),
    "too_many_secrets": ErrorCode("The API key has as many client secrets as it may, that are still valid.", (429,)),
    "chunk_too_large": ErrorCode("The chunk is larger than `max_chunk`.", (413,)),
    "too_fast": ErrorCode("Audio comes faster than `max_speed` allows.", (429,)),
    "session_too_long": ErrorCode("The session has as much audio as `max_session` allows, and was ended.", (413,)),
    "session_idle": ErrorCode("The session got no audio for `session_idle_timeout` seconds, and was ended.", (408,)),
    # -- audio
    "not_audio": ErrorCode("The chunk is not audio: text, an image, or a file without an audio track.", (400,)),
    "undecodable_audio": ErrorCode("The audio is damaged, or in a format that cannot be decoded.", (400,)),
    "not_streamable": ErrorCode("The file cannot be decoded piece by piece: send it as one chunk.", (400,)),
    "no_such_track": ErrorCode("The recording has no audio track of the number that `track` names.", (400,)),
    "too_many_channels": ErrorCode("The audio has more channels than are recognised separately.", (400,)),
    "utterance_too_long": ErrorCode("The chunk decodes to more than `max_utterance` seconds of audio.", (400,)),
    "audio_rejected": ErrorCode("Three workers died with this audio in hand: it is not tried again.", (400,)),
    "model_unavailable": ErrorCode(
        "The model that the session names cannot be loaded: the session was ended; the server's log has the reason.",
        (500,),
    ),
    "recognition_failed": ErrorCode("The recogniser failed on this audio; the server's log has the reason.", (500,)),
    # -- not now: try again
    "overloaded": ErrorCode("There is no room for a session, a large message or an upload: too much waits.", (503,)),
    "shutting_down": ErrorCode("The server is shutting down: connect again.", (503,)),
    "broker_unavailable": ErrorCode("Redis does not answer.", (503,)),
    "broker_full": ErrorCode("Redis accepts no more data: its memory or its disk is full.", (503,)),
    "broker_error": ErrorCode("Redis refused the chunk, or an earlier one could not be written."),
    "storage_unavailable": ErrorCode("PostgreSQL does not answer.", (503,)),
    "recording_unreadable": ErrorCode(
        "The recording is encrypted with a key that the server does not have, or was changed on the disk.", (500,)
    ),
    "recordings_unavailable": ErrorCode("The disk with the recordings does not answer.", (503,)),
    # -- HTTP alone
    "body_too_large": ErrorCode("The request's body is larger than `max_upload`, or than it need be.", (413,)),
    "not_found": ErrorCode("There is nothing at this path, or no such session or recording.", (404,)),
    "method_not_allowed": ErrorCode("The path does not have this method; `Allow` lists those that it has.", (405,)),
    "range_not_satisfiable": ErrorCode("The recording does not have the requested range.", (416,)),
    "bad_gateway": ErrorCode("The recognition server at FUNASR_ADDR gave no usable answer.", (502,)),
    # -- defects
    "internal_error": ErrorCode("A defect in the server; its log has the trace."),
    "internal_server_error": ErrorCode("A defect in the server; its log has the trace.", (500,)),
}
