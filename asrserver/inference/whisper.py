"""The model: loads and runs a Whisper. The only module that knows CTranslate2."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ctranslate2
import numpy as np
import orjson
import tokenizers

from asrserver.errors import ModelError
from asrserver.inference.alignment import shifted, split_words, timed_words
from asrserver.inference.decoding import Hypothesis, Request
from asrserver.inference.features import FRAMES_PER_SECOND, Features, padded
from asrserver.inference.guards import (
    Attempt,
    begins_another,
    breaks_off,
    find_copy,
    spoken,
    spoken_until,
    unlooped,
)
from asrserver.inference.profiles import profile_of
from asrserver.inference.skipped import fill, find_skipped
from asrserver.inference.vocabulary import Vocabulary
from asrserver.inference.windows import FULL_WINDOW, length_limit, window_for
from asrserver.models import find_model
from asrserver.protocol.events import Word

#: Seconds of speech after the last timestamp of a decoding above which the decoder is asked for more text.
MAX_UNREAD_SECONDS = 1.0

#: Where speech goes on after a window, its finished phrases must fill this many seconds: otherwise each window would
#: advance too little.
MIN_READ_SECONDS = 10.0

#: A window whose language is not certain is decoded in up to so many languages, each with at least this probability.
LANGUAGES_TRIED = 3
MIN_LANGUAGE = 0.1

#: Number of beams for the second search of an unsure text.
UNSURE_BEAM = 5


class Whisper:
    """A loaded Whisper model. Its methods block and release the GIL; use it from one thread.

    Attributes:
        name: The model as it was asked for.
        device: "cpu" or "cuda".
        n_mels: Mel bands of its features.
        profile: The policy that suits it.
        vocabulary: Its tokens.
        wasted_seconds: Time spent on decodings that were discarded in favour of another one.
        hurried: Whether others wait for this call: then unsure texts are not searched again.
    """

    def __init__(self, model: str, device: str, compute_type: str, threads: int, beam_size: int) -> None:
        """Load a model.

        Args:
            model: See `asrserver.models.find_model`.
            device: "cpu", "cuda" or "auto".
            compute_type: CTranslate2's, such as "int8"; "default": the profile's on a CPU, the weights' own elsewhere.
            threads: CPU threads of one call; 0: CTranslate2 decides.
            beam_size: Beams of the first decoding; 1 is greedy.

        Raises:
            ModelError: The model cannot be found or loaded.
        """
        found = find_model(model)
        path = found.path
        self.name = found.name
        self.profile = profile_of(self.name, path)
        self.wasted_seconds, self.hurried = 0.0, False
        self._beam = beam_size
        if compute_type == "default" and device == "cpu":
            compute_type = self.profile.cpu_compute_type
        try:
            self._model = ctranslate2.models.Whisper(
                str(path), device=device, compute_type=compute_type, intra_threads=threads, inter_threads=1
            )
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
            config = orjson.loads((path / "config.json").read_bytes())
        except Exception as exc:  # ctranslate2 and tokenizers raise bare RuntimeError, ValueError and Exception
            raise ModelError(f"model {model!r} cannot be loaded: {str(exc).strip().splitlines()[0]}") from exc
        self.device = self._model.device
        self.n_mels = self._model.n_mels
        self.vocabulary = Vocabulary(self._tokenizer, config, self.name)

    @property
    def compute_type(self) -> str:
        """The compute type that CTranslate2 uses."""
        return str(self._model.compute_type)

    @property
    def languages(self) -> list[str]:
        """Codes of the languages that the model knows, sorted."""
        return sorted(self.vocabulary.languages)

    # -- one batch -----------------------------------------------------------------------------------------------

    def recognise(self, rows: list[tuple[Features, Request, float]]) -> list[Hypothesis]:
        """Recognise windows of one length in one call.

        A window whose text repeats itself or is improbable is retried: at full length, then with temperature. One whose
        text is only unsure is searched with more beams.

        Args:
            rows: (features [n_mels, frames], request, seconds of speech) of each window. Their frames, prompt lengths
                and whether they name a language must be equal.

        Returns:
            One hypothesis per row, in order.
        """
        requests = [request for _, request, _ in rows]
        encoded = self._view([features for features, _, _ in rows])
        if self._is_encoding_reused(encoded, requests):
            encoded = self._model.encode(encoded)
        detected = self._detect(encoded, requests)
        languages = [best for best, *_ in detected]
        began = time.monotonic()
        results = self._generate(encoded, rows, languages, 0.0)
        took = (time.monotonic() - began) / len(rows)
        attempts = []
        for number, (row, language, result) in enumerate(zip(rows, languages, results, strict=True)):
            attempt = self._attempt(result, encoded, number, row, language)
            if language[1] < self.profile.sure_language and not (row[1].draft or attempt.silence):
                attempt, language = self._surest(attempt, row, detected[number])
                languages[number] = language
            if not row[1].draft:
                if self._deserves_retry(attempt, row[0].shape[1]):
                    attempt = self._retry(row, language, attempt)
                elif self._is_unsure(attempt, row[2]):
                    attempt = self._searched(row, language, attempt, took)
            attempts.append(self._without_loops(self._continued(attempt, row, language)))
        words = self._align(attempts, rows, languages)
        found = []
        for number, (attempt, language) in enumerate(zip(attempts, languages, strict=True)):
            text = attempt.text if attempt.good else ""
            timed, breaks = words.get(number, ([], False))
            found.append(Hypothesis(text, *language, attempt.confidence, timed, breaks, attempt.read))
        return [self._filled(*one) for one in zip(found, rows, strict=True)]

    def _continued(
        self, attempt: Attempt, row: tuple[Features, Request, float], language: tuple[str, float]
    ) -> Attempt:
        """Have the decoder continue, without timestamps, if its last timestamp is long before the end of the speech."""
        features, request, seconds = row
        if attempt.read is not None or not (attempt.good and attempt.text):
            return attempt
        if attempt.ended is None or attempt.ended > seconds - MAX_UNREAD_SECONDS:
            return attempt
        row = features, replace(request, timestamps=False, prefix=attempt.text), seconds
        encoded = _rows_of(attempt.encoded, [attempt.number])
        whole = self._attempt(self._generate(encoded, [row], [language], 0.0)[0], encoded, 0, row, language)
        return whole if whole.good else attempt

    def _without_loops(self, attempt: Attempt) -> Attempt:
        """Keep one copy of what a guessing decoder repeats, unless the text is rejected."""
        if self.profile.cuts_copies and attempt.guessed and attempt.has_duplicates and attempt.good:
            tokens = [attempt.tokens[place] for place in unlooped(attempt.tokens)]
            if len(tokens) < len(attempt.tokens):
                attempt.shorten(tokens, self.vocabulary.decode(tokens).strip(), ())
        return attempt

    def _filled(self, found: Hypothesis, row: tuple[Features, Request, float]) -> Hypothesis:
        """Recognise what the decoding of a long window skipped. Words that were not asked for are removed."""
        features, request, seconds = row
        if request.timestamps and (number := find_skipped(found.words, features, seconds)) is not None:
            word = found.words[number]
            how = replace(request, language=found.language, timestamps=False, words=True)
            found = fill(found, number, self._part(row, word.start, word.end, how))
        return found if request.words else replace(found, words=[])

    def _part(self, row: tuple[Features, Request, float], begin: float, end: float, request: Request) -> Hypothesis:
        """Recognise the part of a window from `begin` to `end` seconds; times count from the start of the window."""
        frames = window_for(end - begin, "fit", self.profile.margin)
        part = row[0][:, round(begin * FRAMES_PER_SECOND) : round(end * FRAMES_PER_SECOND)][:, :frames]
        found = self.recognise([(padded(part, frames), request, end - begin)])[0]
        return replace(found, words=[shifted(word, begin) for word in found.words])

    def _searched(
        self, row: tuple[Features, Request, float], language: tuple[str, float], first: Attempt, took: float
    ) -> Attempt:
        """Search a text again with more beams, and keep the more probable one; the first decoding `took` seconds."""
        began = time.monotonic()
        encoded = _rows_of(first.encoded, [first.number])
        result = self._generate(encoded, [row], [language], 0.0, UNSURE_BEAM)[0]
        attempt = self._attempt(result, encoded, 0, row, language)
        loops = len(unlooped(attempt.tokens)) < len(attempt.tokens)  # more beams find more of these
        better = attempt.good and not loops and attempt.logprob > first.logprob
        self.wasted_seconds += took if better else time.monotonic() - began
        return attempt if better else first

    def _is_unsure(self, attempt: Attempt, seconds: float) -> bool:
        """Whether to search a text again; in a window with much speech (`seconds`) that gains nothing."""
        unsure = attempt.confidence < self.profile.sure_text and self._beam < UNSURE_BEAM and not self.hurried
        return unsure and seconds < self.profile.timestamps_from and attempt.good and bool(attempt.text)

    def _deserves_retry(self, attempt: Attempt, frames: int) -> bool:
        """Whether a decoding failed, or would be dropped as silence, for which a short window is no proof."""
        unproven = self.profile.rechecks_silence and frames < FULL_WINDOW and bool(attempt.text)
        return attempt.failed or (attempt.silence and unproven)

    def _retry(self, row: tuple[Features, Request, float], language: tuple[str, float], first: Attempt) -> Attempt:
        began = time.monotonic()
        features = row[0]
        attempts = [first]
        temperatures = self.profile.temperatures
        if features.shape[1] < FULL_WINDOW:
            encoded = self._model.encode(self._view([padded(features, FULL_WINDOW)]))
            temperatures = (0.0, *temperatures)
        else:
            encoded = _rows_of(first.encoded, [first.number])
        for temperature in temperatures:
            result = self._generate(encoded, [row], [language], temperature)[0]
            attempts.append(self._attempt(result, encoded, 0, row, language))
            if not attempts[-1].failed:
                break
        kept = attempts[-1]
        if kept.failed:
            kept = max(attempts, key=lambda attempt: (not attempt.repeats, attempt.logprob))
        self.wasted_seconds += time.monotonic() - began  # one decoding is kept, and the first would have done
        return kept

    def _align(
        self,
        attempts: list[Attempt],
        rows: list[tuple[Features, Request, float]],
        languages: list[tuple[str, float]],
    ) -> dict[int, tuple[list[Word], bool]]:
        """Row number → its words and whether they break off, for rows that ask for words.

        align() takes one start sequence: a call per language.
        """
        calls: dict[tuple[int, str, str], list[int]] = {}
        for number, (attempt, (_, request, _)) in enumerate(zip(attempts, rows, strict=True)):
            # Never for an empty text: CTranslate2 before 4.8.1 divided by zero there (#2065).
            if (request.words or request.timestamps) and attempt.good and attempt.text:
                calls.setdefault((id(attempt.encoded), languages[number][0], request.task), []).append(number)
        found = {}
        for (_, language, task), numbers in calls.items():
            together = [attempts[number] for number in numbers]
            alignments = self._alignments(together, task, language, [rows[number][2] for number in numbers])
            for number, alignment in zip(numbers, alignments, strict=True):
                attempt = attempts[number]
                words = timed_words(attempt.tokens, alignment, self.vocabulary.decode, language)
                if self.profile.cuts_copies and (end := spoken_until(words)) < len(words):
                    self._keep(attempt, range(end), alignment, language)
                    words = words[:end]
                last = alignment.text_token_probs[len(attempt.tokens) - 1]
                found[number] = words, breaks_off(attempt.text, last, self.profile.sure_end)
        return found

    def _alignments(self, attempts: list[Attempt], task: str, language: str, seconds: list[float]) -> list[Any]:
        """Align the texts of attempts, decoded from one encoding, with their audio. None may be empty."""
        encoded = _rows_of(attempts[0].encoded, [attempt.number for attempt in attempts])
        steps = 2 * encoded.shape[1]
        ends = [
            length if attempt.ended is None or attempt.ended > length - MAX_UNREAD_SECONDS else attempt.ended
            for length, attempt in zip(seconds, attempts, strict=True)
        ]
        frames = [min(steps, max(2, round(end * FRAMES_PER_SECOND))) for end in ends]
        tokens = [attempt.tokens for attempt in attempts]
        return list(self._model.align(encoded, self.vocabulary.start(language, task), tokens, frames))

    def _view(self, features: list[Features]) -> Any:
        rows = features[0][np.newaxis] if len(features) == 1 else np.stack(features)
        return ctranslate2.StorageView.from_array(np.ascontiguousarray(rows))

    def _is_encoding_reused(self, features: Any, requests: list[Request]) -> bool:
        """Whether the encoder's output serves more than the first generate(), which encodes features by itself.

        A separate encode() wakes CTranslate2's thread once more: a twentieth of a window's cost with a small model.
        """
        detected = len(self.vocabulary.languages) > 1 and not all(request.language for request in requests)
        return (
            features.shape[2] == FULL_WINDOW
            or detected
            or any(request.words or request.timestamps for request in requests)
            or (self.profile.sure_text > 0 and not all(request.draft for request in requests))
        )

    def _detect(self, encoded: Any, requests: list[Request]) -> list[list[tuple[str, float]]]:
        """(language, probability) of each row, the most probable language first; one that is given or the only one has
        no rivals."""
        given = [request.language for request in requests]
        if len(self.vocabulary.languages) == 1:
            only = next(iter(self.vocabulary.languages))
            return [[(only, 1.0)]] * len(given)
        if all(given):
            return [[(str(language), 1.0)] for language in given]
        detected = self._detect_languages(encoded, len(requests))
        return [[(language, 1.0)] if language else found for language, found in zip(given, detected, strict=True)]

    def _surest(
        self, first: Attempt, row: tuple[Features, Request, float], detected: list[tuple[str, float]]
    ) -> tuple[Attempt, tuple[str, float]]:
        """Decode a window in its most probable languages where none is certain.

        Language and text together decide: the mean log-probability of a token, the language's being one of them.

        Args:
            first: The decoding in the most probable one.
            row: The window.
            detected: Its languages.

        Returns:
            (decoding, language).
        """
        began = time.monotonic()
        encoded = _rows_of(first.encoded, [first.number])
        attempts = [(first, detected[0])]
        for language in detected[1:]:
            if language[1] >= MIN_LANGUAGE:
                result = self._generate(encoded, [row], [language], 0.0)[0]
                attempts.append((self._attempt(result, encoded, 0, row, language), language))
        self.wasted_seconds += time.monotonic() - began

        def likelihood(one: tuple[Attempt, tuple[str, float]]) -> tuple[bool, float]:
            attempt, (_, probability) = one
            return attempt.good, attempt.logprob + math.log(max(probability, 1e-9)) / max(1, len(attempt.tokens))

        return max(attempts, key=likelihood)

    def _detect_languages(self, encoded: Any, rows: int) -> list[list[tuple[str, float]]]:
        if self._model.is_multilingual:
            return [
                [(token.strip("<|>"), probability) for token, probability in found[:LANGUAGES_TRIED]]
                for found in self._model.detect_language(encoded)
            ]
        # CTranslate2 takes a model with a small vocabulary for English-only and refuses. Instead, generate one token
        # with all but the language tokens suppressed. Not directly after the start token: there CTranslate2 allows
        # nothing but timestamps, and the result is no language.
        codes = {number: code for code, number in self.vocabulary.languages.items()}
        results = self._model.generate(
            encoded,
            [[self.vocabulary.sot, self.vocabulary.no_timestamps]] * rows,
            beam_size=1,
            max_length=2,
            suppress_tokens=self.vocabulary.no_languages,
            suppress_blank=False,
            return_scores=True,
        )
        detected = []
        for result in results:
            code = codes.get(next(iter(result.sequences_ids[0]), -1))
            best = (code, float(np.exp(result.scores[0]))) if code else (next(iter(self.vocabulary.languages)), 0.0)
            detected.append([best])
        return detected

    def _generate(
        self,
        encoded: Any,
        rows: list[tuple[Features, Request, float]],
        languages: list[tuple[str, float]],
        temperature: float,
        beam: int = 0,
    ) -> list[Any]:
        prompts = [self.vocabulary.prompt(row[1], language) for row, (language, _) in zip(rows, languages, strict=True)]
        options: dict[str, Any] = {"beam_size": beam or self._beam}
        if temperature:
            options = {"beam_size": 1, "sampling_topk": 0, "sampling_temperature": temperature}
        return list(
            self._model.generate(
                encoded,
                prompts,
                max_length=length_limit(max(map(len, prompts)), max(seconds for _, _, seconds in rows)),
                return_scores=True,
                return_no_speech_prob=True,
                suppress_blank=True,
                **options,
            )
        )

    def _attempt(
        self,
        result: Any,
        encoded: Any,
        number: int,
        row: tuple[Features, Request, float],
        language: tuple[str, float],
    ) -> Attempt:
        generated = result.sequences_ids[0]
        # CTranslate2 (4.8.5) returns the prefix too.
        tokens = [token for token in generated if token < self.vocabulary.eot]
        text = self.vocabulary.decode(tokens).strip()
        attempt = Attempt(result, len(generated), tokens, text, encoded, number, self.profile)
        if row[1].timestamps:
            attempt.ended = self.vocabulary.ended(generated)
        if row[1].goes_on:
            self._leave_unfinished(attempt, generated)
        if self.profile.cuts_copies:
            self._cut_unspoken(attempt, row[1].task, row[2], language[0])
        return attempt

    def _leave_unfinished(self, attempt: Attempt, generated: Sequence[int]) -> None:
        """Leave out the unfinished phrase at the end of a window after which the speech goes on."""
        finished = self.vocabulary.finished(generated)
        if finished is None or finished[1] < MIN_READ_SECONDS:
            return
        tokens = [token for token in generated[: finished[0]] if token < self.vocabulary.eot]
        attempt.shorten(tokens, self.vocabulary.decode(tokens).strip(), ())
        attempt.ended = attempt.read = finished[1]

    def _cut_unspoken(self, attempt: Attempt, task: str, seconds: float, language: str) -> None:
        """Remove what the decoder wrote without moving on in the audio."""
        split = split_words(attempt.tokens, self.vocabulary.decode, language)
        words = [word for word, _ in split]
        if not begins_another(words) and not (attempt.has_duplicates and find_copy(words) is not None):
            return  # most texts need no alignment
        alignment = self._alignments([attempt], task, language, [seconds])[0]
        kept = spoken(timed_words(attempt.tokens, alignment, self.vocabulary.decode, language))
        if len(kept) < len(split):
            self._keep(attempt, kept, alignment, language)

    def _keep(self, attempt: Attempt, kept: Sequence[int], alignment: Any, language: str) -> None:
        """Keep only some of the words of an attempt, given by their numbers."""
        counts = [count for _, count in split_words(attempt.tokens, self.vocabulary.decode, language)]
        ends = np.cumsum(counts).tolist()
        places = [place for number in kept for place in range(ends[number] - counts[number], ends[number])]
        tokens = [attempt.tokens[place] for place in places]
        attempt.shorten(
            tokens, self.vocabulary.decode(tokens).strip(), [alignment.text_token_probs[place] for place in places]
        )


def _rows_of(encoded: Any, numbers: list[int]) -> Any:
    """Copy rows of the encoder's output, in the order given; CTranslate2 4.8 cannot slice its own arrays."""
    if numbers == list(range(encoded.shape[0])):
        return encoded
    array = np.array(encoded.to_device(ctranslate2.Device.cpu).to(ctranslate2.DataType.float32))
    return ctranslate2.StorageView.from_array(np.ascontiguousarray(array[numbers]))
