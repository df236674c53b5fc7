"""`LVLM`, the face of the runtime: load a package, ask about pictures, chat."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Unpack

from avl_plugins.errors import AvlError, quoted
from avl_plugins.policies import Policy
from avl_runtime.chat import Chat
from avl_runtime.generate.keywords import NOTED, AskKeywords, parted
from avl_runtime.generate.results import Result
from avl_runtime.machine.resources import MOST_THREADS
from avl_runtime.package.package import Package, load_package
from avl_runtime.prompts.messages import Said
from avl_runtime.prompts.option_values import OptionError, flag, whole
from avl_runtime.prompts.processor import Processor
from avl_runtime.requests.loaded import Loaded, as_policy
from avl_runtime.requests.request import Request
from avl_runtime.requests.runner import Runner
from avl_runtime.requests.stream import Stream
from avl_runtime.vision.load.images import ImageLike
from avl_runtime.vision.load.videos import VideoLike


class BatchTooLargeError(AvlError):
    """More prompts at once than the engines were built for."""


class LVLM:
    """A vision-language model ready to generate.

    A prompt is a text, which stands behind its pictures and videos; a list of parts, which says
    where they go; or a list of messages (see `messages`). Special tokens that a text happens to
    hold are ordinary text in it, unless `placeholders` is set, with which the placeholders of
    pictures and videos in a text mark where they go. `system` is a system prompt.

    Every generating method takes the fields of `Options` as keywords (max_new_tokens, temperature,
    top_p, seed, stop and so on), or `options=Options(…)`. What is left out, or None, is as the
    package says.

    A model may be used from several threads at once. `with LVLM.load(…) as model:` closes it.
    """

    def __init__(self, loaded: Loaded, policy: Policy) -> None:
        loaded.check(policy)
        self.loaded = loaded
        self.policy = policy

    def __enter__(self) -> LVLM:
        """
        Raises:
            ClosedError: the model was closed.
        """
        self.loaded.check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back what loading took; chats of this model cannot go on."""
        self.loaded.close()

    @property
    def package(self) -> Package:
        """The package this model was loaded from."""
        return self.loaded.package

    @property
    def processor(self) -> Processor:
        """Prompts and images to arrays, tokens to text."""
        return self.loaded.processor

    @classmethod
    def load(
        cls,
        folder: str | Path,
        backend: str = "auto",
        policy: str | Policy | None = None,
        threads: int | None = None,
        verify: bool = False,
        park: str = "device",
        kv: str = "auto",
        compute: str = "auto",
        prefix_cache: int | str | None = None,
        cache_dir: str | Path | None = None,
        cache_limit: int | None = None,
    ) -> LVLM:
        """Load a package made by avl-export.

        Args:
            folder: the package.
            backend: ort-cpu, ort-cuda, tensorrt or tensorrt-rtx; with auto the best that works,
                which a line on stderr names.
            policy: what calls use that name none; the package's default if None. As text,
                `dense` or `avl:keep=0.5,core=0.3`.
            threads: CPU threads; all that this process may use by default.
            verify: first read all weights and compare them with their recorded SHA-256; of a
                package without (linked and exported without --hash-weights) a sample of them, as
                every load does. A line on stderr says what was compared.
            park: where rows lie that only refreshes read: with the others on the "device", or in
                the "host"'s memory, for backends that keep rows on a GPU.
            kv: how cached rows are kept: as the package computes (the type's name, and "auto"
                unless avl-tune has written that 8 bits are harmless), or on ort-cpu in 16 bits
                ("fp16"), half of float32's bytes, or as codes of 8 bits with one scale a row
                ("int8"), a quarter of them; or so with parked rows in 4 or 2 bits ("int8-int4",
                "int8-int2"), without a compiled kernel.
            compute: what prompts and pictures are multiplied in on ort-cpu: "bf16", on a processor
                with AMX, which is faster and rounds rows and weights; "fp32", in which nothing is
                rounded but what a quantized package's linears round; with "auto" bf16 for attention
                of quantized packages, and else fp32.
            prefix_cache: bytes of rows that are kept for prompts that begin as one before did, on
                ort-cpu; with "auto" as many as suit the machine where the backend can, None keeps
                none.
            cache_dir: a folder in which these rows are kept beside that, for other processes and
                times; None writes nothing.
            cache_limit: bytes of the files in it; 10 GiB by default.

        Raises:
            AvlError: the package, the backend or the policy cannot be used, with the reason.
        """
        if threads is not None:
            threads = whole("threads", threads, 1, most=MOST_THREADS)
        verify = flag("verify", verify)
        package = load_package(folder)
        compared = package.check_shards(whole=verify)
        if verify:
            print(f"avl: {compared.text()}", file=sys.stderr)
        chosen = as_policy(package.manifest.default_policy if policy is None else policy)
        kept = prefix_cache, cache_dir, cache_limit
        return cls(Loaded(package, backend, threads, park, kv, compute, *kept), chosen)

    def stream(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> Stream:
        """Generate a reply, told while it comes; arguments as for `generate`.

        Raises:
            AvlError: the prompt, an image, the policy or an option cannot be used.
        """
        request = self.request(
            prompt,
            images,
            videos,
            **keywords,
        )
        return Stream(Runner(self.loaded).run(request))

    def generate(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> Result:
        """Generate a whole reply.

        Args:
            policy: in place of the model's own.
            system: a system prompt.
            placeholders: whether placeholders of pictures and videos in a text mark where they go.
            return_logits: keep [T, V] float32 logits, a row for each generated token.
            return_placements: note which image tokens are core and parked over time.

        Raises:
            AvlError: as `stream`.
        """
        return self.stream(
            prompt,
            images,
            videos,
            **keywords,
        ).result

    def request(
        self,
        prompt: Said,
        images: Sequence[ImageLike] | None = (),
        videos: Sequence[VideoLike] | None = (),
        **keywords: Unpack[AskKeywords],
    ) -> Request:
        """What a scheduler runs; arguments as for `generate`.

        Raises:
            AvlError: the prompt, an image, the policy or an option cannot be used.
        """
        asked, options = parted(keywords, AskKeywords)
        policy, system = asked.get("policy"), asked.get("system")
        placeholders = asked.get("placeholders", False)
        encoded = self.loaded.processor.encode(prompt, images, videos, system, placeholders)
        chosen = self.policy if policy is None else as_policy(policy)
        noted = {name: asked[name] for name in NOTED & asked.keys()}
        return Request(self.loaded, encoded, chosen, options, **noted)

    def generate_batch(
        self,
        prompts: Sequence[Said],
        images: Sequence[Sequence[ImageLike] | None] | None = None,
        videos: Sequence[Sequence[VideoLike] | None] | None = None,
        *,
        policies: Sequence[str | Policy | None] | None = None,
        **keywords: Unpack[AskKeywords],
    ) -> list[Result]:
        """Generate replies to several prompts, each with its own images, as one batch.

        Args:
            images, videos: a list for each prompt; None if there are none at all.
            system: the system prompt of each.
            policies: one for each prompt, in place of `policy`.

        Raises:
            AvlError: as `stream`; also if there are not as many lists of images as prompts.
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, Sequence):
            raise OptionError(
                f"expected a list of prompts, found {quoted(prompts)}; write prompts=[…], or call "
                "generate"
            )
        for name, lists in (("images", images), ("videos", videos)):
            if lists is not None and (isinstance(lists, str) or not isinstance(lists, Sequence)):
                raise OptionError(
                    f"{name}: expected a list for each prompt, found {quoted(lists)}; write "
                    f"{name}=[[…], …]"
                )
        policy = keywords.get("policy")
        if policies is not None and (policy is not None or len(policies) != len(prompts)):
            raise OptionError(
                f"policies: expected one for each of {len(prompts)} prompts and no policy beside "
                f"them, found {quoted(policies)}; write policies=['avl', …]"
            )
        images = [None] * len(prompts) if images is None else images
        videos = [None] * len(prompts) if videos is None else videos
        if not len(prompts) == len(images) == len(videos) or not prompts:
            raise OptionError(
                f"expected one list of images and of videos a prompt, found {len(prompts)} "
                f"prompts, {len(images)} lists of images and {len(videos)} of videos; pass an "
                "empty list for a prompt without any"
            )
        named = [policy] * len(prompts) if policies is None else policies
        each = zip(prompts, images, videos, named, strict=True)
        return self._results(
            [
                self.request(prompt, pictures, films, **(keywords | {"policy": own}))
                for prompt, pictures, films, own in each
            ]
        )

    def chat(
        self,
        policy: str | Policy | None = None,
        system: str | None = None,
        messages: Sequence[Mapping[str, Any]] | None = (),
    ) -> Chat:
        """A conversation that keeps its KV cache between turns and takes images in any turn.

        Args:
            messages: what was said before, as `Chat.messages` gives it.

        Raises:
            PolicyError: the policy cannot be used with this package.
            AvlError: the system prompt or a message cannot be used.
        """
        chosen = self.policy if policy is None else as_policy(policy)
        self.loaded.check(chosen)
        return Chat(self.loaded, chosen, system, messages)

    def _results(self, requests: Sequence[Request]) -> list[Result]:
        """Run requests together, to the end of all."""
        most, count = self.loaded.executor.most_sequences, len(requests)
        if count > most:
            raise BatchTooLargeError(
                f"expected at most {most} sequences, which is what the engines were built for, "
                f"found {count}; build them with --max-batch {count}"
            )
        runner = Runner(self.loaded)
        for request in requests:
            runner.submit(request)
        try:
            while runner.requests:
                for request in runner.step():
                    if request.error is not None:
                        raise request.error
        finally:
            for request in requests:
                runner.cancel(request)
        return [request.result for request in requests]
