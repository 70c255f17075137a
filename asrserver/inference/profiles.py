"""What suits a model: the policy of windows, segments and guards follows from how a model was trained."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from asrserver.errors import ModelError

#: A file beside a model's weights that changes its profile: a JSON object with some of the names of Profile.
PROFILE_FILE = "asrserver-profile.json"


@dataclass(frozen=True, slots=True)
class Profile:
    """The policy for one kind of model. Settings that name a value override it.

    Attributes:
        margin: Seconds of quiet that a window keeps behind the speech. A window that ends with the speech makes a model
            that was trained on 30 s repeat itself.
        silence: Seconds of silence that end a segment of speech.
        cpu_compute_type: CTranslate2's compute type on a CPU.
        no_speech: Probability of <|nospeech|> from which on a window is silence, however probable its text. Above 1:
            never for that alone.
        rechecks_silence: A text that is to be dropped as silence is decoded in the full window first.
        cuts_copies: A phrase that the decoder repeats without moving on in the audio is cut out, and so is the first
            word of a sentence behind the speech. The other cure is to decode the window again.
        temperatures: Tried, in order, for a window that fails even at full length.
        first_draft: Seconds of a segment, the padding before its speech included, from which a draft is worthwhile.
        timed_drafts: The words of drafts are timed, which says better which of them are stable; the decoder then
            continues the stable words, in drafts and in the final.
        timestamps_from: Seconds of speech from which on the decoder writes timestamps. Without them it skips sentences
            of long windows; with them it makes more errors in short ones.
        sure_text: Mean probability of a token below which a text is unsure: it is searched again with more beams, in
            windows with less speech than `timestamps_from`. 0: no text is.
        sure_language: Probability of a detected language below which a window is decoded in other languages too.
        pack_seconds: Segments of a file are decoded together in windows of this length; 0: each by itself.
        hold_seconds: A live segment with less speech than this waits longer for its end, see `vad.HOLD_FACTOR`.
        look_back: Seconds before speech in which sound as loud as it belongs to its segment: speech may be missed, over
            telephones above all.
        sure_end: Probability of the mark at the end of a text from which on a sentence has ended there. A live segment
            whose text breaks off, with a comma or a less probable full stop, waits longer for its end, see
            `vad.HOLD_FACTOR`. 0: none does.
        pause_seconds: Silence after which a live segment is decoded although its end is not certain: at least the
            padding behind its speech. Where speech goes on the decoding was for nothing, and others waited for it.
        draft_share: Share of the engine's time for drafts and finals together; the rest is left for bursts of finals.
        cpu_call_seconds: Longest call on a CPU, in seconds, of more than one row: the first row waits for the last.
        shared_window: Windows this much shorter than another (as a share of it) are lengthened to share its call.
    """

    margin: float
    silence: float
    cpu_compute_type: str
    no_speech: float
    rechecks_silence: bool
    cuts_copies: bool
    temperatures: tuple[float, ...]
    first_draft: float
    timed_drafts: bool
    timestamps_from: float
    sure_text: float
    sure_language: float
    pack_seconds: float
    hold_seconds: float
    look_back: float
    sure_end: float
    pause_seconds: float
    draft_share: float
    cpu_call_seconds: float
    shared_window: float


#: The packaged toy, which is trained on short windows and cut speech. A chord that passes the speech detector is a
#: short word to it, and not an improbable one: the limit of <|nospeech|> is whisper_streaming's.
DEMO = Profile(
    margin=0.5,
    silence=0.4,
    cpu_compute_type="default",
    no_speech=0.9,
    rechecks_silence=False,
    cuts_copies=False,
    temperatures=(0.4, 0.8),
    first_draft=0.5,
    timed_drafts=False,
    timestamps_from=math.inf,
    sure_text=0.0,
    sure_language=0.0,
    pack_seconds=0.0,
    hold_seconds=0.0,
    look_back=0.0,
    sure_end=0.0,
    pause_seconds=0.2,
    draft_share=0.6,
    cpu_call_seconds=0.05,
    shared_window=1.0,
)

#: Models that were trained on windows of 30 s: OpenAI's, distilled ones, and what a user trained from them. Of 20
#: segments of conversation and digits, base repeated itself in 7 with a margin of 0.5 s, in 3 with 2 s, in none with
#: 4 s, which cost less than 0.5 s with its retries. Segments that end after 0.8 s of silence instead of 0.4 are half as
#: many, of half the engine time and with fewer errors. int8 is 1.46 times as fast as float32 on two cores. Small models
#: in short windows give digits that they decode right a <|nospeech|> of 0.98. On one core base (int8) encodes 8 s in
#: 0.20 s, and decodes 20 tokens in 0.30 s of a single row, in 0.16 s a row of two, in 0.13 s a row of four: the weights
#: are read once for all rows. So two rows that wait are done together as soon as one after the other on average.
#: Without timestamps base made 88 errors instead of 99 in clips of 2 to 10 s (four conditions), but 24 instead of 6 in
#: joined recordings. The texts of 3 of 36 clear recordings were unsure: to search them again took 3 % of the time.
TRAINED_ON_30_S = Profile(
    margin=4.0,
    silence=0.8,
    cpu_compute_type="int8",
    no_speech=2.0,
    rechecks_silence=True,
    cuts_copies=True,
    temperatures=(0.4,),
    first_draft=0.7,
    timed_drafts=True,
    timestamps_from=15.0,
    sure_text=0.7,
    sure_language=0.8,
    pack_seconds=28.0,
    hold_seconds=1.2,
    look_back=3.0,
    sure_end=0.85,
    pause_seconds=0.4,
    draft_share=0.85,
    cpu_call_seconds=2.0,
    shared_window=0.6,
)


def profile_of(model: str, directory: Path | None = None) -> Profile:
    """The profile of a model.

    Args:
        model: Its name.
        directory: Where its files are. A PROFILE_FILE there replaces some of the values.

    Raises:
        ModelError: The file is not valid; the error names what is wrong.
    """
    profile = DEMO if model == "demo" else TRAINED_ON_30_S
    file = directory / PROFILE_FILE if directory is not None else None
    if file is None or not file.is_file():
        return profile
    try:
        values = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        unknown = values.keys() - asdict(profile).keys()
        if unknown:
            raise ModelError(f"{file}: {sorted(unknown)[0]!r} is no value of a profile: {', '.join(asdict(profile))}")
        return msgspec.convert(asdict(profile) | values, Profile)
    except (OSError, msgspec.MsgspecError) as exc:
        raise ModelError(f"{file}: {exc}") from exc
