"""The names of everything in Redis.

=================================  ==========================================  =================  ======================
key                                type and content                            written by         life
=================================  ==========================================  =================  ======================
asr_tasks                          stream, group asr_workers: one entry a      gateway            acknowledged and
                                   session; its pending entry is the worker's                     deleted with the final
                                   lease on the session, or puts it in line                       event
                                   (consumer `waiting:<key id>`)
asr_tasks:<model>                  the same for sessions that name this        gateway            as above; the stream
                                   model: only workers that offer it read                         goes when nobody has
                                   them                                                           offered the model for
                                                                                                  ABANDONED_AFTER
asr_offered                        sorted set, model → when a worker last      worker             models go with their
                                   offered it (epoch seconds): the index of                       streams
                                   the streams above
asr_open                           sorted set, session id → deadline (epoch    gateway            removed when the
                                   seconds) of the gateway that answers for                       session is stored
                                   the session
asr_finished                       sorted set, session id → when its final     worker             as above
                                   event was published (ms since the epoch,
                                   by the clock of Redis)
asr_session:{sid}                  hash: nonce, gateway, moves, user_id,       gateway, worker,   TTL once the session
                                   owner, created, options; first, last        supervisor         is stored
                                   (chunk indexes), part (the last one of a                       (session_ttl)
                                   large chunk), flushes (number), end
                                   (status), detached, deleted; state (where a next worker continues),
                                   charged (seconds charged without an
                                   event), strike:<entry>, trace (traceparent)
asr_audio:{sid}                    stream, ids <index+1>-0: the bytes of one   gateway            trimmed behind what
                                   chunk, or of `n` consecutive ones under                        durable events cover;
                                   the index of the last; control entries, and                    TTL as above
                                   the first parts of a large chunk, at
                                   <last>-<k>
asr_events:{sid}                   stream, ids <epoch>-<n>: claims of workers  worker             trimmed once stored
                                   and durable events, fenced by the epoch                        and delivered; TTL as
                                                                                                  above
asr_said:{sid}                     list of JSON: text and language of every    worker             TTL as above
                                   segment
asr_results:<gateway>              Pub/Sub channel: events of its sessions     worker, gateway    none
asr_ended                          Pub/Sub channel: ids of sessions that end   gateway, worker,   none
                                   or are flushed; that a worker has left      supervisor
                                   sessions
worker:<name>:heartbeat            string: JSON                                worker             HEARTBEAT_TTL
worker:<name>:drain                string: the worker is to hand its           asrserver drain    DRAIN_TTL, renewed
                                   sessions over, and to claim none                               by the worker
gateway:<name>:heartbeat           string: JSON                                gateway            HEARTBEAT_TTL
asr_alive:worker                   sorted set, name → last heartbeat (epoch    worker             names leave after
                                   seconds): the index of the heartbeats                          HEARTBEAT_INDEX_TTL
asr_alive:gateway                  the same                                    gateway            as above
asr_dead                           stream: dead letters, which killed workers  worker, gateway    the newest 1,000
                                   or could not be stored
asr_held:<kind>:<key id>           sorted set, connection or session → until   gateway            300 s without renewal
                                   when (epoch seconds) its gateway holds it
asr_starts:<key id>:<minute>       counter: sessions started by an API key     gateway            300 s
asr_quota:<key id>:<minute>        counter: seconds of audio decoded for an    worker             300 s after the last
                                   API key                                                        charge
asr_secret:<sha256>                string: JSON: the owner of a client secret  gateway            until it expires
                                   and the setup of its sessions
asr_secrets:<key id>               sorted set, digest → when the client        gateway            until the last one
                                   secret of an API key expires (epoch                            expires
                                   seconds)
=================================  ==========================================  =================  ======================

Braces in a key mark its hash slot: all keys of a session are in one.
"""

from __future__ import annotations

TASKS = "asr_tasks"
GROUP = "asr_workers"
OFFERED = "asr_offered"
OPEN = "asr_open"
FINISHED = "asr_finished"
DEAD = "asr_dead"
ENDED = "asr_ended"


def tasks_key(model: str | None) -> str:
    """Return the key of the stream of tasks of the sessions that name a model, or that name none."""
    return f"{TASKS}:{model}" if model else TASKS


def session_key(sid: str) -> str:
    """Return the key of a session's hash."""
    return f"asr_session:{{{sid}}}"


def audio_key(sid: str) -> str:
    """Return the key of a session's audio stream."""
    return f"asr_audio:{{{sid}}}"


def events_key(sid: str) -> str:
    """Return the key of a session's event stream."""
    return f"asr_events:{{{sid}}}"


def transcript_key(sid: str) -> str:
    """Return the key of the list of a session's texts."""
    return f"asr_said:{{{sid}}}"


def results_channel(gateway: str) -> str:
    """Return the Pub/Sub channel of a gateway."""
    return f"asr_results:{gateway}"


def held_key(kind: str, owner: str) -> str:
    """Return the key of the connections or sessions (`kind`) that an API key holds."""
    return f"asr_held:{kind}:{owner}"


def starts_key(owner: str, minute: int) -> str:
    """Return the key of the counter of an API key's session starts in a minute."""
    return f"asr_starts:{owner}:{minute}"


def quota_key(owner: str, minute: int) -> str:
    """Return the key of the counter of an API key's seconds of audio in a minute."""
    return f"asr_quota:{owner}:{minute}"


def secret_key(digest: str) -> str:
    """Return the key of a client secret with this SHA-256."""
    return f"asr_secret:{digest}"


def secrets_key(owner: str) -> str:
    """Return the key of the index of an API key's client secrets."""
    return f"asr_secrets:{owner}"


def alive_key(kind: str) -> str:
    """Return the key of the index of heartbeats; `kind` is worker or gateway."""
    return f"asr_alive:{kind}"


def drain_key(worker: str) -> str:
    """Return the key that says that a worker is drained."""
    return f"worker:{worker}:drain"


def heartbeat_key(kind: str, name: str) -> str:
    """Return the key of a heartbeat; `kind` is worker or gateway."""
    return f"{kind}:{name}:heartbeat"
