"""What of a recording is decoded: which of its tracks, and whether its channels are mixed or kept apart."""

from __future__ import annotations

from dataclasses import dataclass

from asrserver.errors import AudioError

#: Most channels that are kept apart. Each costs as much as a recording of its own.
MAX_SEPARATE = 8

#: Codes of recordings that do not have what is selected.
NOT_THERE = ("no_such_track", "too_many_channels")


@dataclass(frozen=True, slots=True)
class Selection:
    """What of a recording is decoded.

    Attributes:
        track: Number of the audio track among those of its container, from 0; None: the default one, or if that
            begins with silence, the first with sound (look_ahead.py).
        separate: Each channel by itself: samples are [samples, channels]. Otherwise they are mixed: [samples].
    """

    track: int | None = None
    separate: bool = False

    def check_track(self, tracks: int) -> None:
        """Raise AudioError unless a recording with this number of audio tracks has the one that is named."""
        if self.track is not None and self.track >= tracks:
            are = "is 1 audio track" if tracks == 1 else f"are {tracks} audio tracks"
            raise AudioError("no_such_track", f"there is no audio track {self.track}: there {are}, numbered from 0")

    def check_channels(self, channels: int) -> None:
        """Raise AudioError if this number of channels cannot be decoded as asked; 0: it is not known yet."""
        if self.separate and channels > MAX_SEPARATE:
            raise AudioError(
                "too_many_channels",
                f"the audio has {channels} channels; at most {MAX_SEPARATE} are recognised separately",
            )


#: The default track, mixed.
MIXED = Selection()
