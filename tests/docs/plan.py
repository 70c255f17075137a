"""What becomes of each block of the pages: THE place where it says what is not run, and why.

Every command (`sh`) and every program (`python`) of a page is run on a machine of its own (machine.py), in the order of
the page, unless it stands here. A text names the statements of its page that contain it. Blocks in other languages are
read by a parser, or stand here too. A translation has the blocks of its original.
"""

from __future__ import annotations

from dataclasses import dataclass, field

# -- what is not run -------------------------------------------------------------------------------------------------

_MAKE = "installs an environment, or needs one: CI runs `make test`; the target is looked up in the Makefile"
_SERVICE = "needs systemd, root and a machine to install on: tests/tools/test_install.py checks what can be without"
_ENGINE = "needs a container engine: make deployment checks the files, tools/run_dockerfile.py runs the Dockerfile"
_CLUSTER = "needs a cluster: make deployment checks the chart and what it makes"
_HUB = "downloads a model"
_GPU = "needs a GPU"
_FRAGMENT = "a line or two of a page of one's own"
_OTHER = "starts a program that is not part of this one"
_MICROPHONE = "needs a microphone"
_CORPUS = "needs half an hour of somebody's recordings: tests/tools/test_accuracy.py runs the tool on short ones"

#: page → text of the statement or block → why it is not run.
EXCUSED: dict[str, dict[str, str]] = {
    "CONTRIBUTING.md": dict.fromkeys(("make demo", "make test", "make help"), _MAKE),
    "README.md": {
        **dict.fromkeys(("make demo", "make test", "make run", "make mic"), _MAKE),
        "transcribe --live\n": _MICROPHONE,
        "--model small": _HUB,
        "--device cuda": _GPU,
    },
    "docs/start.md": {
        **dict.fromkeys(("make demo", "make test", "make run"), _MAKE),
        "python3 -m venv": "make dist-check makes such an environment",
        "pip install": "make dist-check installs the package so",
        "--model small": _HUB,
    },
    "docs/models.md": {
        "run --model small": _HUB,
        "--device cuda": _GPU,
        "models pull": _HUB,
        "models remove": "removes what was downloaded: tests/cli/test_models.py",
        "ct2-transformers-converter": "needs PyTorch, and downloads a model",
    },
    "docs/reference/database.md": {"/opt/asrserver": _SERVICE},
    "docs/guides/agents.md": dict.fromkeys(("pip install",), "make clients installs them"),
    "docs/guides/browser.md": {"ssh -L": "needs another machine"},
    "docs/guides/captions.md": {"obs --enable": _OTHER, "#captions": "style sheet"},
    "docs/guides/javascript.md": {
        "ffmpeg -loglevel": "needs FFmpeg: tests/system/test_guides.py pipes the same into it",
        "new AbortController": _FRAGMENT,
        "input.files": _FRAGMENT,
    },
    "docs/guides/prompts.md": {"Nextcloud": "hot words: tests/gateway/test_hotwords.py reads such a file"},
    "docs/guides/telephony.md": {"SpeechCreate": "Asterisk's"},
    "docs/guides/microphone.md": {
        "make mic": _MAKE,
        "transcribe --live\n": _MICROPHONE,
        "import sounddevice": _MICROPHONE,
    },
    "docs/guides/openai.md": {"docker run": _OTHER},
    "docs/guides/other-clients.md": {"funasr_wss_client.py": _OTHER, "npm run dev": _OTHER},
    "docs/guides/realtime.md": {"const url": _FRAGMENT},
    "docs/run/accuracy.md": {"make test": _MAKE, "tools/accuracy.py": _CORPUS},
    "docs/run/backup.md": dict.fromkeys(("systemctl", "cp -a"), _SERVICE),
    "docs/run/containers.md": dict.fromkeys(("docker", "cd conf/docker", "cp env.example"), _ENGINE),
    "docs/run/install.md": {
        **dict.fromkeys(("tools/install", "sudoedit", "systemctl", "sudo install", "git pull"), _SERVICE),
        "--server wss://NAME": "needs the name and the certificate of another machine: tests/cli has TLS and keys",
        "ExecutionPolicy": "Windows",
        "brew": "macOS",
        "python3.12 -m venv": "macOS",
        "~/asrserver/bin": "macOS",
    },
    "docs/run/kubernetes.md": dict.fromkeys(("kubectl", "helm"), _CLUSTER),
    "docs/run/load-test.md": {
        "make .venv/test": _MAKE,
        "--audio hello.wav": "needs recordings of one's own: tests/loadtest/test_command.py has some",
    },
    "docs/run/several-machines.md": {"--model small": _HUB},
    "docs/run/systemd.md": dict.fromkeys(("systemctl", "journalctl"), _SERVICE),
    "docs/run/tls.md": {"conf/nginx.conf": "make deployment checks it by nginx, where that is installed"},
    "docs/run/troubleshooting.md": {
        "journalctl": _SERVICE,
        "ASRSERVER_SERVER": "needs the name and the certificate of another machine: tests/cli has TLS and keys",
    },
    "docs/run/upgrade.md": dict.fromkeys(("git pull", "tools/install", "systemctl"), _SERVICE),
}

#: page → text of the block → the test that runs it: FILE::TEST.
ELSEWHERE: dict[str, dict[str, str]] = {
    "docs/guides/agents.md": {
        "from livekit": "tests/clients/test_agents.py::test_the_examples",
        "from pipecat": "tests/clients/test_agents.py::test_the_examples",
    },
    "docs/guides/files.md": {"--watch inbox": "tests/cli/test_clients.py::test_ctrl_c_ends_the_watch_without_an_error"},
    "docs/guides/javascript.md": {
        "<!doctype html>": "tests/system/test_guides.py::test_the_page",
        "new MediaRecorder": "tests/system/test_guides.py::test_the_page",
        "transcribe.mjs FILE": "tests/system/test_guides.py::test_the_node_examples",
        "// … | node live.mjs": "tests/system/test_guides.py::test_the_node_examples",
    },
    "docs/run/monitoring.md": {"--traces on": "tests/system/test_traces.py::test_a_session_is_one_trace"},
    "docs/reference/websocket.md": {"| node raw.mjs": "tests/system/test_guides.py::test_the_node_examples"},
    "docs/run/several-machines.md": {"asrserver drain": "tests/system/test_drain.py::test_live_streams_are_moved"},
    "docs/guides/other-clients.md": {"whisper_live": "tests/clients/test_clients.py::test_a_text"},
    "docs/guides/telephony.md": {
        "Twilio Media Streams to text": "tests/system/test_telephony.py::test_twilio",
        "AudioSocket to text": "tests/system/test_telephony.py::test_asterisk",
    },
}

#: Commands that take long: page → text of the statement. `make soak` runs their pages with them.
SLOW: dict[str, tuple[str, ...]] = {
    # As slowly as it was spoken.
    "docs/start.md": ("--live",),
    "docs/guides/microphone.md": ("pauses.wav",),
    # A real model.
    "docs/models.md": ("--model base,tiny.en", "--model tiny.en hello.wav", "--model /models"),
    "docs/guides/home-assistant.md": ("--model base", "import wave"),
    # Another start of the server with an option: five seconds of a core each.
    "README.md": ("run --model demo", "run --model /models"),
    "docs/guides/browser.md": ("asrserver run",),
    "docs/guides/javascript.md": ("--allowed-origins",),
    "docs/guides/other-clients.md": ("--also-ports",),
    "docs/guides/realtime.md": ("--tls-cert", "client_secrets"),
    "docs/run/access.md": ("--allowed-origins", "unset", "--access-control off"),
    "docs/run/one-machine.md": ("\nasrserver run\n", "--config"),
    "docs/run/privacy.md": ("--keep-days 90",),
    "docs/run/recordings.md": ("--save-audio",),
    "docs/run/tls.md": ("--tls-cert", "asrserver gateway"),
    # In Node, with what `make clients` installs.
    "docs/guides/deepgram.md": ("@deepgram/sdk",),
    "docs/guides/openai.md": ("import OpenAI from",),
    # Measurements.
    "docs/run/load-test.md": ("-d 2m",),
    "docs/run/sizing.md": ("asrserver bench", "tools/simulate.py"),
}


# -- what a page takes for granted -----------------------------------------------------------------------------------

DEMO = "asrserver run --model demo"


@dataclass(frozen=True)
class Page:
    """What is there before the reader types the first command, and what must come of the commands.

    Attributes:
        given: Shell commands that make the files which the page does not say how to make.
        before: Text of a statement → shell commands before it; a line that begins with `asrserver run` is a server.
        prints: Text of a statement or program → a pattern of what it prints, besides blocks of the language `output`.
        env: Environment variables, NAME=VALUE …
    """

    given: str = ""
    before: dict[str, str] = field(default_factory=dict)
    prints: dict[str, str] = field(default_factory=dict)
    env: str = ""


_WAV = "asrserver/data/recordings"
_SIX, _BERLIN = "set a timer for six seconds", "what is the weather in berlin on sunday"
_CERTIFICATE = "cp tests/data/tls/cert.pem tests/data/tls/key.pem .\n"
#: The key of the pages' examples: anyone's with this id; its text is $KEY.
_KEY = (
    'mkdir -p /etc/asrserver; cat >/etc/asrserver/keys.json <<< \'{"keys": [{"id": "7be230865ad3", "name": '
    '"reader", "operator": true, "sha256": "\'$(printf %s $KEY | sha256sum | cut -d" " -f1)\'"}]}\'\n'
)


#: A Redis and a PostgreSQL as on a machine of their own, but without passwords.
_SERVERS = """
"$VALKEY" --bind 127.0.0.1 --daemonize yes --dir /var/lib --logfile /var/lib/redis.log \\
    --maxmemory 1gb --maxmemory-policy noeviction --appendonly yes
as="unshare --user --map-user=1000 --map-group=1000"
$as "$POSTGRES/initdb" -D /var/lib/postgres -U postgres --auth=trust --no-sync >/dev/null
$as "$POSTGRES/pg_ctl" -D /var/lib/postgres -l /var/lib/postgres.log -w -o "-k /tmp -F" start >/dev/null
"$POSTGRES/psql" -q -h 127.0.0.1 -U postgres -c "CREATE ROLE asrserver LOGIN CREATEDB" -c "CREATE DATABASE kikipounamu"
"""

#: The history of a kikipounamu.
_ANCESTOR = """
"$POSTGRES/psql" -q -h 127.0.0.1 -U postgres kikipounamu <<'END'
CREATE TABLE asr_sessions (id VARCHAR(64) PRIMARY KEY, user_id VARCHAR(64), status VARCHAR(20), final_text TEXT,
    chunk_count INT, total_duration FLOAT, created_at TIMESTAMP, completed_at TIMESTAMP);
INSERT INTO asr_sessions VALUES ('a', 'anna', 'done', 'hello', 3, 2.5, '2025-11-01 10:00:00', '2025-11-01 10:00:03');
END
"""

#: A Redis and another that is to be its replica.
_REPLICA = """
for i in 2 3; do
    mkdir /var/lib/$i
    "$VALKEY" --bind 127.0.0.$i --bind-source-addr 127.0.0.$i --daemonize yes --dir /var/lib/$i >/dev/null
done
"""

#: The session that pages ask for.
_DEMO_1 = """python -c '
import asyncio, pathlib
from asrserver.client import Client
async def main():
    async with await Client.connect("ws://127.0.0.1:8080/ws/asr") as client:
        session = await client.start("demo-1")
        await session.send(pathlib.Path("asrserver/data/recordings/english-1.wav").read_bytes())
        await session.finish()
asyncio.run(main())'
until curl -fs http://127.0.0.1:8080/api/v1/session/demo-1; do sleep 0.1; done
"""

#: What `make clients` installs.
_NODE = 'ln -sf "$CLIENTS/node_modules" .'

PAGES: dict[str, Page] = {
    "README.md": Page(
        given=f"cp {_WAV}/english-1.wav YOUR-RECORDING; mkdir /models; cp -r asrserver/data/demo-model "
        "/models/my-whisper-ct2",
        prints={"YOUR-RECORDING": _SIX, "english-1.wav": _SIX, "models list": "demo", "import asyncio": _BERLIN},
    ),
    "docs/start.md": Page(prints={"import asyncio": _BERLIN, "pauses.wav": "play the white song.*paris on wednesday"}),
    "docs/models.md": Page(
        given=f"cp {_WAV}/english-1.wav hello.wav; mkdir -p /models; cp -r asrserver/data/demo-model "
        "/models/my-whisper-ct2",
        prints={"hello.wav": r"\w+ \w+", "models verify": "base"},
    ),
    "docs/guides/deepgram.md": Page(given=_NODE, prints={"import threading": f"{_SIX}\n{_SIX}", "curl": _SIX}),
    "docs/guides/files.md": Page(
        given=f"mkdir interviews; for i in 1 2; do $FFMPEG -i {_WAV}/english-$i.wav interviews/$i.mp3; done; "
        f"$FFMPEG -i {_WAV}/pauses.wav talk.mp4",
        before={"session/demo-1": _DEMO_1},
        prints={
            "session/demo-1": f"^1\n00:00:00,.* --> .*\n{_SIX}",
            "import asyncio": r"^1\n00:00:.*\n.*\n\n2\n.*-->(?s:.*)wednesday",
            "user_id=alice": '"records"',
            "q=kitchen": "open the kitchen window",
        },
    ),
    "docs/guides/home-assistant.md": Page(prints={"import wave": "six seconds"}),
    "docs/guides/normalise.md": Page(
        given=f"$FFMPEG -i {_WAV}/english-1.wav talk.mp3",
        prints={"curl": _SIX, "talk.mp3": "set a timer for 6 seconds"},
    ),
    "docs/guides/openai.md": Page(
        given=_NODE,
        prints={
            "import openai": f"{_SIX}\n(?s:.*)transcript.text.delta set(?s:.*)transcript.text.done",
            "response_format=srt": f"-->.*\n{_SIX}",
            "format=txt": _SIX,
            "import OpenAI": _SIX,
        },
    ),
    "docs/guides/other-clients.md": Page(prints={"asr/submit": '"task_id"'}),
    "docs/guides/python.md": Page(
        prints={
            'client.start(mode="chunk")': _SIX,
            "AsyncIterator": r"(?s:.*)\.\.\. play(?s:.*)\[\d.*wednesday(?s:.*) s, done",
            "asyncio.gather": f"english-1.wav: {_SIX}\nenglish-2.wav: {_BERLIN}\nmandarin.wav: ",
        }
    ),
    "docs/guides/realtime.md": Page(
        given=f"{_CERTIFICATE}{_KEY}cp /etc/asrserver/keys.json .",
        before={"client_secrets": f"{DEMO} --keys-file keys.json"},
        prints={"import openai": _SIX, "client_secrets": '"value":"ek_'},
    ),
    "docs/guides/telephony.md": Page(
        given=f"$FFMPEG -i {_WAV}/english-2.wav -i {_WAV}/english-1.wav -filter_complex amerge=inputs=2 call.wav"
    ),
    "docs/reference/redis.md": Page(
        given=_SERVERS,
        before={"HGETALL": "REDIS_URL=redis://127.0.0.1:6379/0 asrserver run", "XLEN": _DEMO_1},
    ),
    "docs/reference/rest.md": Page(prints={"format=srt": f"-->.*\n{_SIX}", "-F language=en": f'"text":"{_SIX}"'}),
    "docs/run/access.md": Page(given=f"{_CERTIFICATE}{_KEY}", prints={"keys list": "mobile app"}),
    "docs/run/backup.md": Page(
        given="mkdir /backup",
        before={
            "asrserver backup": "asrserver run --save-audio /var/lib/asrserver/audio",
            "asrserver restore": "mv /backup/*.tar /backup/asrserver-2026-11-30.tar; mv /var/lib/asrserver /backup",
        },
    ),
    "docs/run/from-kikipounamu.md": Page(
        given=_SERVERS + _ANCESTOR,
        prints={"import-kikipounamu": "1 session"},
    ),
    "docs/run/install.md": Page(
        given=f"cp {_WAV}/english-1.wav YOUR-RECORDING; mkdir -p /etc/asrserver", prints={"YOUR-RECORDING": _SIX}
    ),
    "docs/run/monitoring.md": Page(prints={"/health": '"status":"ok"', "queue/status": '"queued"'}),
    "docs/run/one-machine.md": Page(given=f"{_SERVERS}mkdir -p /etc/asrserver; cp conf/asrserver.toml /etc/asrserver/"),
    "docs/run/overload.md": Page(given=_KEY),
    "docs/run/privacy.md": Page(given=_KEY),
    "docs/run/several-machines.md": Page(
        given=_SERVERS + _KEY + _REPLICA,
        before={
            "FAILOVER": "until redis-cli -h redis2 INFO | grep master_link_status.*up; do sleep 0.1; done",
            " ROLE": "until redis-cli -h redis2 ROLE | grep master; do sleep 0.1; done",
        },
        prints={" ROLE": "master"},
    ),
    "docs/run/tls.md": Page(
        given=f"{_SERVERS}{_KEY}cp tests/data/tls/*.pem /etc/asrserver",
        env="REDIS_URL=redis://127.0.0.1 DATABASE_URL=postgresql://postgres@127.0.0.1/asrserver",
    ),
    "docs/run/troubleshooting.md": Page(
        before={"refusals_total": "curl -s http://127.0.0.1:8080/ws/asr -H 'Origin: http://other.example'"},
        prints={"children|backlog": "asrserver_backlog_seconds"},
    ),
    "docs/run/upgrade.md": Page(
        given=_SERVERS,
        before={"db status": "asrserver db upgrade"},
        prints={"db status": "tables: version", "db upgrade": "tables: version"},
        env="DATABASE_URL=postgresql://postgres@127.0.0.1/asrserver",
    ),
}
