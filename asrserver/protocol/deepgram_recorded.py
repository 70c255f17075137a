"""Deepgram's transcription of recordings, POST /v1/listen: its query to options, events to its answer
(developers.deepgram.com, Pre-Recorded Audio). What it shares with the live protocol is in deepgram.py.

{"metadata": {"request_id", "sha256", "created", "duration", "channels", "models": [uuid], "model_info": {uuid: {…}}},
 "results": {"channels": [{"alternatives": [{"transcript", "confidence", "words", "paragraphs"?}],
                           "detected_language"?}],
             "utterances"?: [{"start", "end", "confidence", "channel", "transcript", "words", "id"}]}}
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

from asrserver.protocol.deepgram import (
    HEADERLESS,
    alternative,
    flag,
    mean,
    metadata,
    model_info,
    model_uuid,
    number,
    options,
    single,
)
from asrserver.protocol.events import Final, Segment, Word
from asrserver.protocol.options import Start
from asrserver.text.words import glue, join

#: Seconds of quiet between two utterances, if nothing else is asked for; and between two paragraphs.
UTTERANCE_SPLIT = 0.8
PARAGRAPH_SPLIT = 2.0

#: Sentences of a paragraph at most.
MAX_SENTENCES = 6

#: The parameters that are read.
PARAMETERS = (
    *("model", "language", "detect_language", "keyterm", "keywords", "encoding", "sample_rate", "channels"),
    *("multichannel", "utterances", "utt_split", "paragraphs", "smart_format"),
)

#: With what a sentence ends.
_ENDS = (".", "?", "!", "。", "？", "！", "।", "؟", "…")


@dataclass(frozen=True, slots=True)
class RecordedRequest:
    """A query.

    Attributes:
        model: The model that is asked for; may be empty.
        start: The session.
        utterances: The seconds of quiet between two utterances; None: they are not asked for.
        paragraphs: Whether paragraphs are asked for.
        detect_language: Whether the answer says which language was detected.
    """

    model: str
    start: Start
    utterances: float | None
    paragraphs: bool
    detect_language: bool

    def of_model(self, name: str | None) -> RecordedRequest:
        """The same for a model that the server runs; None: whichever there is."""
        return replace(self, start=self.start.changed(model=name))


def parse(query: Mapping[str, Sequence[str]]) -> RecordedRequest:
    """Read a query; what is unknown is ignored.

    A recording is recognised by its first bytes. `encoding` counts only where they are no container's.

    Raises:
        BadRequest: A parameter has a value that cannot be used; `parameter` in the details names it.
    """
    values = single(query)
    format = HEADERLESS.get(values.get("encoding", "").lower(), "file")
    split = number(values, "utt_split", UTTERANCE_SPLIT)
    return RecordedRequest(
        values.get("model", ""),
        Start("", "", options(query, format), False),
        split if flag(values, "utterances") else None,
        flag(values, "paragraphs") or flag(values, "smart_format"),
        flag(values, "detect_language"),
    )


def answer(asked: RecordedRequest, segments: Sequence[Segment], final: Final, sha256: str) -> dict[str, Any]:
    """Make the body of the answer."""
    separate = asked.start.options.separate
    channels = [[one for one in segments if one.channel == number] for number in range(max(1, final.channels))]
    texts = [join([(one.text, one.language) for one in said]) for said in channels]
    if not separate:
        channels, texts = [list(segments)], [final.text]
    results: dict[str, Any] = {
        "channels": [_channel(asked, text, said, final) for text, said in zip(texts, channels, strict=True)]
    }
    if asked.utterances is not None:
        groups = [group for said in channels for group in _utterances(said, asked.utterances)]
        results["utterances"] = [_utterance(group) for group in sorted(groups, key=lambda group: group[0].start)]
    model = model_uuid(final.model)
    about = metadata(final.session_id, sha256, datetime.now(UTC), final.total, len(channels))
    return {
        "metadata": about | {"models": [model], "model_info": {model: model_info(final.model)}},
        "results": results,
    }


def _channel(asked: RecordedRequest, text: str, segments: Sequence[Segment], final: Final) -> dict[str, Any]:
    """What was said on a channel, or on all that are mixed."""
    best = alternative(text, [word for segment in segments for word in segment.words], mean(segments))
    if asked.paragraphs:
        best["paragraphs"] = _paragraphs(segments)
    channel: dict[str, Any] = {"alternatives": [best]}
    language = final.language if not asked.start.options.separate or not segments else segments[-1].language
    if asked.detect_language and language:
        channel["detected_language"] = language
    return channel


def _utterances(segments: Sequence[Segment], split: float) -> Iterator[list[Segment]]:
    """Segments with less quiet than this between them, together."""
    group = list(segments[:1])
    for before, segment in pairwise(segments):
        if segment.start - before.end >= split:
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _utterance(group: list[Segment]) -> dict[str, Any]:
    heard = [word for segment in group for word in segment.words]
    made = alternative(join([(one.text, one.language) for one in group]), heard, mean(group))
    return {
        "start": group[0].start,
        "end": group[-1].end,
        "channel": group[0].channel or 0,
        "id": str(uuid.uuid4()),
        **made,
    }


def _paragraphs(segments: Sequence[Segment]) -> dict[str, Any]:
    paragraphs: list[list[dict[str, Any]]] = []
    counts: list[int] = []
    for sentence, language in _sentences(segments):
        last = paragraphs[-1] if paragraphs else None
        if last is None or len(last) == MAX_SENTENCES or sentence[0].start - last[-1]["end"] >= PARAGRAPH_SPLIT:
            paragraphs.append(last := [])
            counts.append(0)
        text = glue([word.word for word in sentence], language)
        last.append({"text": text, "start": sentence[0].start, "end": sentence[-1].end})
        counts[-1] += len(sentence)
    return {
        "transcript": "".join(f"\n{' '.join(one['text'] for one in group)}\n" for group in paragraphs).rstrip("\n"),
        "paragraphs": [
            {"sentences": group, "num_words": count, "start": group[0]["start"], "end": group[-1]["end"]}
            for group, count in zip(paragraphs, counts, strict=True)
        ],
    }


def _sentences(segments: Sequence[Segment]) -> Iterator[tuple[list[Word], str]]:
    """The words of each sentence, and its language. A pause ends a sentence, too: not every model writes full stops."""
    sentence: list[Word] = []
    language = ""
    for segment in segments:
        for word in segment.words:
            if sentence and (sentence[-1].word.endswith(_ENDS) or word.start - sentence[-1].end >= UTTERANCE_SPLIT):
                yield sentence, language
                sentence = []
            sentence.append(word)
            language = segment.language
    if sentence:
        yield sentence, language
