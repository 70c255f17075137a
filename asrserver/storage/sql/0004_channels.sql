-- What was said on which channel, where each channel of a recording is recognised by itself.
ALTER TABLE asr_segments ADD COLUMN IF NOT EXISTS channel integer;  -- from 0; null where channels are mixed
