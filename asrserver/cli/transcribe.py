"""The command `asrserver transcribe`: files, a folder, or the microphone to text."""

from __future__ import annotations

import sys
from gettext import gettext as _
from pathlib import Path
from typing import Any

import click

from asrserver.cli.options import ca_option, key_option, server_option, websocket_urls
from asrserver.cli.outputs import FORMATS, Outputs
from asrserver.protocol.options import CHANNEL_MODES, MAX_TRACK, TASKS


class _File(click.Path):
    """A file that is there; of a directory and a URL, what can be done instead."""

    def __init__(self) -> None:
        super().__init__(exists=True, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if Path(value).is_dir():
            message = _("{path} is a directory: name its files, or --watch it").format(path=value)
            raise click.BadParameter(message, ctx, param)
        if "://" in str(value) and not Path(value).exists():
            message = _("{path} is no file: download it first (curl -LO)").format(path=value)
            raise click.BadParameter(message, ctx, param)
        return super().convert(value, param, ctx)


@click.command()
@click.argument("files", nargs=-1, metavar="[FILE…]", type=_File())
@server_option
@key_option
@ca_option
@click.option(
    "--format",
    type=click.Choice(FORMATS),
    help="Format of the result: text, subtitles, or JSON with segments. [by the name given with --output, else txt]",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(),
    help="File for the result, or directory for those of several FILEs [standard output].",
)
@click.option(
    "--watch",
    metavar="DIR",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Transcribe each recording that appears in this directory, until interrupted.",
)
@click.option("--realtime", is_flag=True, help="Send in real time instead of as fast as the server accepts.")
@click.option(
    "--live", is_flag=True, help="Show partial results; send FILEs in real time or, without FILE, the microphone."
)
@click.option("--language", help="Language code such as en or zh [detected].")
@click.option("--task", type=click.Choice(TASKS), help="translate: into English, if the model can.")
@click.option("--prompt", help="Text that is taken to precede the audio: it sets the style.")
@click.option("--hotwords", help="Words and names that are likely, separated by commas.")
@click.option("--normalise", help="How the text is written, such as script=hans,numerals=digits [as the model writes].")
@click.option(
    "--channels",
    type=click.Choice(CHANNEL_MODES),
    default="mix",
    help="separate: each channel is recognised by itself, as of a call with a party on each.",
)
@click.option("--track", type=click.IntRange(0, MAX_TRACK), help="Number of the audio track, from 0 [the default one].")
@click.option("--words", "word_timestamps", is_flag=True, help="Times of words too, in JSON.")
@click.option("--model", help="Name of a model that the server offers [the server's choice].")
@click.option("--user", "user_id", default="", help="User id of the stored sessions.")
@click.option("--json", "as_json", is_flag=True, help="Print every event as a line of JSON instead of the result.")
@click.option(
    "--progress/--no-progress", default=None, help="Show a progress bar on standard error [if it is a terminal]."
)
def transcribe(
    files: tuple[Path, ...],
    server: str,
    key: str,
    format: str | None,
    output: str | None,
    watch: Path | None,
    realtime: bool,
    live: bool,
    as_json: bool,
    progress: bool | None,
    channels: str,
    track: int | None,
    **given: Any,
) -> None:
    """Stream audio or video files to a server and print their transcripts.

    Any file that FFmpeg reads: it is decoded here and sent as 16 kHz PCM, one session per file. With several files,
    each transcript follows the name of its file. The exit status is 1 if a file could not be transcribed.

    With --watch, the result of a recording is a file beside it, or in the directory --output, with its name and the
    format as the ending. A recording is taken when nobody writes it any more, and only if there is no such file yet.

    With --live on a terminal, the stable part of the text is bold and the part that may still change is not. The
    microphone needs the extra mic (make mic in a checkout).
    """
    import asyncio

    from asrserver.audio.selection import Selection

    selection = Selection(track, channels == "separate")
    options: dict[str, Any] = {name: value for name, value in given.items() if value}
    if (live or as_json) and (format or output or watch):
        raise click.UsageError(f"--{'live' if live else 'json'} prints as it goes: no --format, --output or --watch.")
    if watch and files:
        raise click.UsageError("--watch takes its files from the directory: no FILE.")
    if live:
        from asrserver.cli.live import transcribe_live

        urls = websocket_urls(server)
        ok = asyncio.run(transcribe_live(list(files), urls, options, selection=selection, key=key, as_json=as_json))
        sys.exit(0 if ok else 1)
    if not files and not watch:
        raise click.UsageError("Missing argument 'FILE…'. To transcribe the microphone, add --live.")
    from asrserver.cli.files import FileTranscriber, transcribe_files
    from asrserver.cli.watch import watch_until_interrupted

    outputs = Outputs(format, output, files, watch)
    transcriber = FileTranscriber(
        websocket_urls(server),
        key,
        options | outputs.options,
        selection=selection,
        realtime=realtime,
        as_json=as_json,
        progress=sys.stderr.isatty() if progress is None else progress,
    )
    if watch:
        watch_until_interrupted(watch, transcriber, outputs)
    sys.exit(0 if asyncio.run(transcribe_files(files, transcriber, outputs)) else 1)
