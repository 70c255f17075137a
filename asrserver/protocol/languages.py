"""The languages that Whisper models know, and the ways in which clients name them.

Every protocol reads its language with `parse`, so that all of them take the same forms.
"""

from __future__ import annotations

from asrserver.errors import BadRequest

#: Code, as Whisper's tokens have it, and English name, as OpenAI's answers have it.
NAMES = {
    "af": "afrikaans",
    "am": "amharic",
    "ar": "arabic",
    "as": "assamese",
    "az": "azerbaijani",
    "ba": "bashkir",
    "be": "belarusian",
    "bg": "bulgarian",
    "bn": "bengali",
    "bo": "tibetan",
    "br": "breton",
    "bs": "bosnian",
    "ca": "catalan",
    "cs": "czech",
    "cy": "welsh",
    "da": "danish",
    "de": "german",
    "el": "greek",
    "en": "english",
    "es": "spanish",
    "et": "estonian",
    "eu": "basque",
    "fa": "persian",
    "fi": "finnish",
    "fo": "faroese",
    "fr": "french",
    "gl": "galician",
    "gu": "gujarati",
    "ha": "hausa",
    "haw": "hawaiian",
    "he": "hebrew",
    "hi": "hindi",
    "hr": "croatian",
    "ht": "haitian creole",
    "hu": "hungarian",
    "hy": "armenian",
    "id": "indonesian",
    "is": "icelandic",
    "it": "italian",
    "ja": "japanese",
    "jw": "javanese",
    "ka": "georgian",
    "kk": "kazakh",
    "km": "khmer",
    "kn": "kannada",
    "ko": "korean",
    "la": "latin",
    "lb": "luxembourgish",
    "ln": "lingala",
    "lo": "lao",
    "lt": "lithuanian",
    "lv": "latvian",
    "mg": "malagasy",
    "mi": "maori",
    "mk": "macedonian",
    "ml": "malayalam",
    "mn": "mongolian",
    "mr": "marathi",
    "ms": "malay",
    "mt": "maltese",
    "my": "myanmar",
    "ne": "nepali",
    "nl": "dutch",
    "nn": "nynorsk",
    "no": "norwegian",
    "oc": "occitan",
    "pa": "punjabi",
    "pl": "polish",
    "ps": "pashto",
    "pt": "portuguese",
    "ro": "romanian",
    "ru": "russian",
    "sa": "sanskrit",
    "sd": "sindhi",
    "si": "sinhala",
    "sk": "slovak",
    "sl": "slovenian",
    "sn": "shona",
    "so": "somali",
    "sq": "albanian",
    "sr": "serbian",
    "su": "sundanese",
    "sv": "swedish",
    "sw": "swahili",
    "ta": "tamil",
    "te": "telugu",
    "tg": "tajik",
    "th": "thai",
    "tk": "turkmen",
    "tl": "tagalog",
    "tr": "turkish",
    "tt": "tatar",
    "uk": "ukrainian",
    "ur": "urdu",
    "uz": "uzbek",
    "vi": "vietnamese",
    "yi": "yiddish",
    "yo": "yoruba",
    "yue": "cantonese",
    "zh": "chinese",
}

#: Other codes and names of the same languages: those of ISO 639-1 and BCP 47 where Whisper's differ, and the commoner
#: ones of ISO 639-2.
_ALIASES = {
    "ara": "ar",
    "burmese": "my",
    "castilian": "es",
    "chi": "zh",
    "cmn": "zh",
    "deu": "de",
    "eng": "en",
    "fil": "tl",
    "filipino": "tl",
    "flemish": "nl",
    "fra": "fr",
    "fre": "fr",
    "ger": "de",
    "haitian": "ht",
    "hin": "hi",
    "in": "id",
    "ita": "it",
    "iw": "he",
    "jpn": "ja",
    "jv": "jw",
    "kor": "ko",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "nb": "no",
    "nld": "nl",
    "panjabi": "pa",
    "por": "pt",
    "pushto": "ps",
    "rus": "ru",
    "sinhalese": "si",
    "spa": "es",
    "ukr": "uk",
    "valencian": "ca",
    "zho": "zh",
}

_CODES = {name: code for code, name in NAMES.items()} | _ALIASES

#: What means that the language is to be detected.
DETECT = frozenset(("", "auto", "detect", "multi", "und"))

#: Characters of an unknown language that an error repeats.
_MAX_QUOTED = 40


def parse(given: str | None) -> str | None:
    """Read a language as a client names it: en, EN, en-US, zh_CN, English, eng; or auto, multi, nothing.

    The region and the script are left out: models do not know them.

    Returns:
        Its code, a key of NAMES; None: it is to be detected.

    Raises:
        BadRequest: bad_option; it is none of them.
    """
    text = (given or "").strip().lower()
    if text in DETECT:
        return None
    code = text.replace("_", "-").partition("-")[0]
    for name in (text, code):
        if name in NAMES:
            return name
        if name in _CODES:
            return _CODES[name]
    shown = ascii(given)[1:-1][:_MAX_QUOTED]
    message = f"language {shown!r} is unknown: it must be a code such as en or zh, or auto to detect it"
    raise BadRequest("bad_option", message, option="language")


def name_of(code: str | None) -> str:
    """Return the English name of a language; its code where that is unknown, and nothing where there is none."""
    return NAMES.get(code or "", code or "")
