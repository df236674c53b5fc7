"""The fields of a chat request: each is taken or refused, none is passed over."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from avl_plugins.errors import AvlError, quoted
from avl_plugins.policies import Policy
from avl_runtime.generate.drafts import MOST_DRAFTS
from avl_runtime.generate.options import Options
from avl_runtime.requests.loaded import as_policy
from avl_runtime.serve.asked import values
from avl_runtime.serve.asked.content import Said, messages
from avl_runtime.serve.asked.formats import TEXT, Format, format_of
from avl_runtime.serve.asked.tools import Tools, tools_of
from avl_runtime.serve.errors import ApiError, refused
from avl_runtime.serve.limits import Limits

MOST_STOPS: Final = 16
LONGEST_STOP: Final = 256
MOST_BIASED: Final = 1024
MOST_LOGPROBS: Final = 20
LONGEST_NAME: Final = 256
LARGEST_SEED: Final = (1 << 63) - 1
LIVE: Final = "stream"  # of placements: told with each chunk
SMALLEST_RATIO: Final = 1e-2  # of repetition_penalty, and its inverse the largest

# Fields that say in what range a number of `Options` may be; the names are the same.
NUMBERS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (0, 2),
    "top_p": (0, 1),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (SMALLEST_RATIO, 1 / SMALLEST_RATIO),
}
WHOLE: Final[Mapping[str, tuple[int, int]]] = {
    "seed": (0, LARGEST_SEED),
    "top_k": (0, 1 << 31),
    "no_repeat_ngram_size": (0, 1024),
    "prompt_lookup": (0, MOST_DRAFTS),
}
FLAGS: Final = ("skip_special_tokens",)
# Fields of OpenAI's protocol that ask for nothing when they have such a value.
NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = {
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "store": (False,),
    "metadata": ({},),
    "service_tier": ("auto", "default"),
    "audio": (),
    "prediction": (),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "web_search_options": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "moderation": (),
}
OWN: Final = (
    *("model", "messages", "n", "stop", "logit_bias", "logprobs", "top_logprobs", "stream"),
    *("stream_options", "max_tokens", "max_completion_tokens", "user", "safety_identifier"),
    *("policy", "kv", "placements", "min_new_tokens", "response_format"),
    *("tools", "tool_choice", "parallel_tool_calls"),
)
KNOWN: Final = frozenset((*OWN, *NUMBERS, *WHOLE, *FLAGS, *NEUTRAL))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What a client asks.

    Attributes:
        model: by name.
        choices: how many answers.
        options: of each, but for the seeds of those behind the first.
        policy: None for the model's own.
        kv: how rows shall be kept; None as the server keeps them.
        placements: whether to tell which image tokens were kept.
        live: whether to tell it in every chunk, beside the bytes of its rows.
        stream: whether to tell the answer while it comes.
        usage: whether a stream ends with what was used.
        user: whom the client names as its own user, for the log.
        format: that answers shall have.
        tools: functions that may be called, if there are any.
    """

    model: str
    said: tuple[Said, ...]
    choices: int
    options: Options
    policy: Policy | None
    kv: str | None
    placements: bool
    live: bool
    stream: bool
    usage: bool
    user: str | None
    format: Format = field(default_factory=Format)
    tools: Tools | None = None


def chat_request(body: Mapping[str, Any], limits: Limits) -> ChatRequest:
    """Read a body of /v1/chat/completions.

    Raises:
        ApiError: a field is unknown, not served, or has a value that it cannot have.
        AvlError: the policy cannot be read.
    """
    given = taken(body, KNOWN, NEUTRAL)
    stream = values.flag(given.get("stream", False), "stream")
    placements, live = _placements(given, stream)
    return ChatRequest(
        model=values.text(needed(given, "model"), "model", LONGEST_NAME),
        said=messages(needed(given, "messages"), limits),
        choices=values.whole(given.get("n", 1), "n", 1, limits.choices),
        options=options_of(given, limits),
        policy=policy_of(given),
        kv=values.text(given["kv"], "kv", LONGEST_NAME) if "kv" in given else None,
        placements=placements,
        live=live,
        stream=stream,
        usage=_usage(given, stream),
        user=user_of(given),
        format=format_of(given.get("response_format", TEXT), "response_format", "json_schema"),
        tools=tools_read(given),
    )


def tools_read(given: Mapping[str, Any], *, nested: bool = True) -> Tools | None:
    """What may be called; `nested` as in `tools_of`.

    Raises:
        ApiError: it cannot be used.
    """
    found = tools_of(given, nested=nested)
    if found is not None and "skip_special_tokens" in given:
        raise refused(
            "skip_special_tokens: expected none beside tools, whose calls may have special tokens, "
            "found one; leave it out",
            "skip_special_tokens",
        )
    return found


def taken(
    body: Mapping[str, Any], known: Collection[str], neutral: Mapping[str, tuple[Any, ...]]
) -> dict[str, Any]:
    """The fields of a body, but for those that are null.

    Args:
        neutral: for fields that this server does nothing for, the values that ask for nothing.

    Raises:
        ApiError: a field is unknown, or asks for what is not done.
    """
    given = {name: value for name, value in body.items() if value is not None}
    for name in body:
        if name not in known:
            raise refused(
                f"expected a known field, found {quoted(name)}; leave it out",
                name if len(name) < LONGEST_NAME and name.isidentifier() else None,
            )
    for name, allowed in neutral.items():
        if name in given and not any(_same(given[name], one) for one in allowed):
            raise refused(
                f"{name}: expected none, found {quoted(given[name])}; what it asks for is not "
                "done, leave it out",
                name,
            )
    return given


def _same(value: object, other: object) -> bool:
    """Equal as JSON has it, where true is not 1."""
    return type(value) is type(other) and value == other


def needed(given: Mapping[str, Any], name: str) -> Any:
    """The value of a field.

    Raises:
        ApiError: there is none.
    """
    if name not in given:
        raise refused(f"{name}: expected it, found none; add it", name)
    return given[name]


def options_of(given: Mapping[str, Any], limits: Limits) -> Options:
    """How to generate.

    Raises:
        ApiError: a value cannot be used.
        AvlError: values do not go together.
    """
    named: dict[str, Any] = {
        name: values.real(given[name], name, *given_range)
        for name, given_range in NUMBERS.items()
        if name in given
    }
    named |= {
        name: values.whole(given[name], name, *given_range)
        for name, given_range in WHOLE.items()
        if name in given
    }
    named |= {name: values.flag(given[name], name) for name in FLAGS if name in given}
    if named.get("top_p") == 0:
        named["top_p"] = 1e-9  # the likeliest token alone, as clients mean it
    most = _most_tokens(given, limits)
    readers: Mapping[str, Callable[[Any], Any]] = {
        "stop": _stops,
        "logit_bias": _bias,
        "min_new_tokens": lambda value: values.whole(value, "min_new_tokens", 0, most),
    }
    named |= {name: read(given[name]) for name, read in readers.items() if name in given}
    return Options(max_new_tokens=most, logprobs=_logprobs(given), **named)


def _most_tokens(given: Mapping[str, Any], limits: Limits) -> int:
    asked = {
        name: values.whole(given[name], name, 1, limits.new_tokens)
        for name in ("max_completion_tokens", "max_tokens")
        if name in given
    }
    if len(set(asked.values())) > 1:
        raise refused(
            "max_tokens: expected one limit, found another in max_completion_tokens; leave it out",
            "max_tokens",
        )
    return next(iter(asked.values()), limits.new_tokens)


def _stops(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    listed = values.items(value, "stop", 0, MOST_STOPS, "a text or a list")
    return tuple(values.text(one, "stop", LONGEST_STOP) for one in listed)


def _bias(value: object) -> dict[int, float]:
    if not isinstance(value, dict) or len(value) > MOST_BIASED:
        raise values.wrong("logit_bias", f"at most {MOST_BIASED} numbers by token id", value)
    for token in value:
        if not (token.isascii() and token.isdecimal() and len(token) < 12):
            raise values.wrong("logit_bias", "token ids", token)
    return {int(token): values.real(one, "logit_bias", -100, 100) for token, one in value.items()}


def _logprobs(given: Mapping[str, Any]) -> int | None:
    wanted = values.flag(given.get("logprobs", False), "logprobs")
    top = values.whole(given.get("top_logprobs", 0), "top_logprobs", 0, MOST_LOGPROBS)
    if "top_logprobs" in given and not wanted:
        raise refused(
            "top_logprobs: expected logprobs true beside it, found none; add it", "top_logprobs"
        )
    return top if wanted else None


def policy_of(given: Mapping[str, Any]) -> Policy | None:
    """The policy that is named, if one is.

    Raises:
        ApiError: there is none like it.
    """
    if "policy" not in given:
        return None
    named = values.text(given["policy"], "policy", LONGEST_NAME)
    try:
        return as_policy(named)
    except AvlError as error:
        raise refused(f"policy: {error}", "policy") from None


def _usage(given: Mapping[str, Any], stream: bool) -> bool:
    if "stream_options" not in given:
        return False
    if not stream:
        raise refused(
            "stream_options: expected stream true beside it, found none; add it", "stream_options"
        )
    options = values.an_object(
        given["stream_options"], "stream_options", ("include_usage", "include_obfuscation")
    )
    if options.get("include_obfuscation", False) is not False:
        raise values.wrong(
            "stream_options.include_obfuscation", "false", options["include_obfuscation"]
        )
    return values.flag(options.get("include_usage", False), "stream_options.include_usage")


def _placements(given: Mapping[str, Any], stream: bool) -> tuple[bool, bool]:
    """Whether placements are told, and whether in every chunk.

    Raises:
        ApiError: they are to be streamed with an answer that is not, or it is another value.
    """
    asked = given.get("placements", False)
    if asked == LIVE:
        if not stream:
            raise refused(
                f'placements: expected stream true beside "{LIVE}", found none; add it, or write '
                "true",
                "placements",
            )
        return True, True
    if not isinstance(asked, bool):
        raise values.wrong("placements", f'true, false or "{LIVE}"', asked)
    return asked, False


def user_of(given: Mapping[str, Any]) -> str | None:
    """Whom the client names as its own user.

    Raises:
        ApiError: it is no short text.
    """
    for name in ("safety_identifier", "user"):
        if name in given:
            return values.text(given[name], name, LONGEST_NAME)
    return None


def kept_as(asked: str | None, kept: str) -> ApiError | None:
    """What to answer a request for rows that are kept otherwise than this server keeps them."""
    if asked in (None, "auto", kept):
        return None
    return refused(
        f"kv: expected {kept}, as rows are kept here, found {quoted(asked)}; leave it out, or "
        "start the server with another --kv",
        "kv",
    )
