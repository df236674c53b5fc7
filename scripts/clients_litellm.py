"""What litellm asks a server; run by scripts/clients_check.py in the clients' own environment.

Reads one JSON object from stdin: `base` and `key` of the server, `image` (a data: address),
`prompt`, `expected` (texts by policy that `LVLM.generate` answered), `tokens`, and `bias`, with
which a reply ends where it may. Prints a line of JSON for each check: its name, and what went wrong
or null.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from types import FunctionType
from typing import Any

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it asks the internet for prices

import litellm
from pydantic import BaseModel

FIND = {
    "name": "find",
    "description": "Finds things.",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"type": "string", "enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": FIND}]


class Thing(BaseModel):
    """What is held to by a schema."""

    large: bool
    count: int


class Checks:
    """Asks a server, and compares."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.expected: dict[str, str] = given["expected"]
        self.where = {"api_base": given["base"], "api_key": given["key"]}
        self.picture = {"type": "image_url", "image_url": {"url": given["image"]}}
        self.question = self.shown(self.picture, given["prompt"])
        self.prompt, self.image = given["prompt"], given["image"]
        self.usual = {"model": "openai/tiny", "max_tokens": given["tokens"], **self.where}
        self.ending = {"logit_bias": given["bias"], "temperature": 1.2, "seed": 3}
        self.called = {"model": "openai/tools", "max_tokens": 400, **self.where, **self.ending}

    @staticmethod
    def shown(picture: Any, text: str) -> list[dict[str, Any]]:
        """A question about a picture."""
        return [{"role": "user", "content": [picture, {"type": "text", "text": text}]}]

    def whole(self) -> None:
        """An answer about a picture, and what it cost."""
        found = litellm.completion(messages=self.question, **self.usual)
        same(found.choices[0].message.content, self.expected["dense"])
        assert found.usage.completion_tokens > 0 and found.usage.prompt_tokens > 0

    def policies(self) -> None:
        """Fields of avl's own, as extra_body."""
        for policy, text in self.expected.items():
            extra = {"policy": policy}
            found = litellm.completion(messages=self.question, extra_body=extra, **self.usual)
            same(found.choices[0].message.content, text)

    def spellings(self) -> None:
        """Pictures as litellm lets one write them, and their details."""
        for url in (
            self.image,
            {"url": self.image, "format": "image/png"},
            {"url": self.image, "detail": "high"},
            {"url": self.image, "detail": "low"},
        ):
            asked = self.shown({"type": "image_url", "image_url": url}, self.prompt)
            found = litellm.completion(messages=asked, **self.usual)
            same(found.choices[0].message.content, self.expected["dense"])

    def provider(self) -> None:
        """As the provider for servers of one's own."""
        usual = self.usual | {"model": "hosted_vllm/tiny"}
        found = litellm.completion(messages=self.question, **usual)
        same(found.choices[0].message.content, self.expected["dense"])

    def streamed(self) -> None:
        """A stream, with what was used at its end."""
        chunks = list(
            litellm.completion(
                messages=self.question,
                stream=True,
                stream_options={"include_usage": True},
                **self.usual,
            )
        )
        built = litellm.stream_chunk_builder(chunks)
        same(built.choices[0].message.content, self.expected["dense"])
        whole = litellm.completion(messages=self.question, **self.usual)
        same(built.usage.completion_tokens, whole.usage.completion_tokens)
        same(built.choices[0].finish_reason, whole.choices[0].finish_reason)

    async def together(self) -> None:
        """Several at one time, streamed and not, asynchronous."""

        async def one(stream: bool) -> str:
            found = await litellm.acompletion(messages=self.question, stream=stream, **self.usual)
            if not stream:
                return str(found.choices[0].message.content)
            return "".join([part.choices[0].delta.content or "" async for part in found])

        for text in await asyncio.gather(*(one(bool(number % 2)) for number in range(6))):
            same(text, self.expected["dense"])

    def choices(self) -> None:
        """Choices, log probabilities, stops and draws."""
        found = litellm.completion(
            messages=self.question,
            n=2,
            logprobs=True,
            top_logprobs=2,
            stop=["zzz"],
            temperature=0.5,
            top_p=0.9,
            seed=1,
            user="somebody",
            **self.usual,
        )
        same(len(found.choices), 2)
        assert all(len(one.logprobs.content[0].top_logprobs) == 2 for one in found.choices)

    def tools(self) -> None:
        """A function is called, whole and streamed; its answer goes back."""
        asked = {"messages": self.question, "tools": TOOLS, "tool_choice": "required"}
        message = litellm.completion(**asked, **self.called).choices[0].message
        chunks = list(litellm.completion(**asked, stream=True, **self.called))
        again = litellm.stream_chunk_builder(chunks).choices[0].message
        for call in (message.tool_calls[0], again.tool_calls[0]):
            same(call.function.name, "find")
            assert json.loads(call.function.arguments)["colour"] in ("red", "green")
        said = {"role": "tool", "content": "There are none."}
        told = [
            said | {"tool_call_id": call.id, "name": call.function.name}
            for call in message.tool_calls
        ]
        behind = asked | {"messages": [*self.question, message, *told], "tool_choice": "auto"}
        found = litellm.completion(**behind, **self.called | {"max_tokens": 8})
        assert found.choices[0].finish_reason in ("stop", "length", "tool_calls")

    def forms(self) -> None:
        """Answers held to a model of pydantic, and to JSON."""
        asked = {"messages": self.question, **self.usual, **self.ending, "max_tokens": 400}
        found = litellm.completion(response_format=Thing, **asked)
        Thing.model_validate_json(found.choices[0].message.content)
        greedy = {"messages": self.question, **self.usual}
        found = litellm.completion(response_format={"type": "json_object"}, **greedy)
        choice = found.choices[0]
        assert choice.message.content.startswith("{")
        assert choice.finish_reason == "length" or json.loads(choice.message.content) is not None

    def responses(self) -> None:
        """The other protocol, whole and streamed."""
        content = [
            {"type": "input_image", "image_url": self.image, "detail": "auto"},
            {"type": "input_text", "text": self.prompt},
        ]
        asked = {"input": [{"role": "user", "content": content}], "model": "openai/tiny"}
        most = {"max_output_tokens": self.usual["max_tokens"]}
        found = litellm.responses(**asked, **most, **self.where)
        same(found.output[0].content[0].text, self.expected["dense"])
        events = list(litellm.responses(**asked, **most, **self.where, stream=True))
        text = "".join(one.delta for one in events if one.type == "response.output_text.delta")
        same(text, self.expected["dense"])
        same(events[-1].type, "response.completed")

    def errors(self) -> None:
        """Errors are those that litellm's users catch."""
        for kind, changes in (
            (litellm.BadRequestError, {"extra_body": {"nothing": 1}}),
            (litellm.NotFoundError, {"model": "openai/other"}),
            (litellm.AuthenticationError, {"api_key": "another-key-0123456789"}),
            (
                litellm.ContextWindowExceededError,
                {"messages": [{"role": "user", "content": "word " * 9000}]},
            ),
        ):
            try:
                litellm.completion(**{"messages": self.question, **self.usual, **changes})
            except kind:
                continue
            raise AssertionError(f"expected {kind.__name__}, found an answer")

    def router(self) -> None:
        """A router with several tries."""
        model = {"model_name": "m", "litellm_params": {"model": "openai/tiny", **self.where}}
        router = litellm.Router(model_list=[model], num_retries=2)
        most = self.usual["max_tokens"]
        found = router.completion(model="m", messages=self.question, max_tokens=most)
        same(found.choices[0].message.content, self.expected["dense"])


def same(found: object, expected: object) -> None:
    """Refuse what differs.

    Raises:
        AssertionError: it does.
    """
    assert found == expected, f"expected {expected!r}, found {found!r}"


def reason(work: Callable[[], Awaitable[None] | None]) -> str | None:
    """What goes wrong in a check; None if nothing does."""
    try:
        running = work()
        if asyncio.iscoroutine(running):
            asyncio.run(running)
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:400]
    return None


def main() -> None:
    checks = Checks(json.load(sys.stdin))
    for name, work in vars(Checks).items():
        if isinstance(work, FunctionType) and not name.startswith("_"):
            line = {"check": name, "about": work.__doc__, "error": reason(getattr(checks, name))}
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
