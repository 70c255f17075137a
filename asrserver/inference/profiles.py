"""What suits a model: the policy of windows, segments and guards follows from how a model was trained."""

from __future__ import annotations

from dataclasses import dataclass


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
    """

    margin: float
    silence: float
    cpu_compute_type: str
    no_speech: float


#: The packaged toy, which is trained on short windows and cut speech. A chord that passes the speech detector is a
#: short word to it, and not an improbable one: the limit of <|nospeech|> is whisper_streaming's.
DEMO = Profile(margin=0.5, silence=0.4, cpu_compute_type="default", no_speech=0.9)

#: Models that were trained on windows of 30 s: OpenAI's, distilled ones, and what a user trained from them. Of 20
#: segments of conversation and digits, base repeated itself in 7 with a margin of 0.5 s, in 3 with 2 s, in none with
#: 4 s, which cost less than 0.5 s with its retries. Segments that end after 0.8 s of silence instead of 0.4 are half as
#: many, of half the engine time and with fewer errors. int8 is 1.46 times as fast as float32 on two cores. Small models
#: in short windows give digits that they decode right a <|nospeech|> of 0.98.
TRAINED_ON_30_S = Profile(margin=4.0, silence=0.8, cpu_compute_type="int8", no_speech=2.0)


def profile_of(model: str) -> Profile:
    """The profile of a model, by its name."""
    return DEMO if model == "demo" else TRAINED_ON_30_S
