"""A loaded package and the requests that run on it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np

from avl_plugins.errors import PolicyError, quoted
from avl_plugins.policies import Plan, Policy, parse
from avl_runtime.execute import load_backend
from avl_runtime.generate.conversation import Conversation
from avl_runtime.generate.execution import execution_on
from avl_runtime.generate.loop import Options, Reply, Steps, run
from avl_runtime.generate.options import MAX_NEW_TOKENS
from avl_runtime.generate.results import Result, Stats
from avl_runtime.machine.memory import peak_rss_bytes
from avl_runtime.package.package import Package
from avl_runtime.prompts.embedding import Embedding
from avl_runtime.prompts.features import FeatureCache
from avl_runtime.prompts.option_values import flag
from avl_runtime.prompts.processor import Processor, Prompt
from avl_runtime.prompts.rows import PromptRows


class Loaded:
    """Everything of a package that requests share.

    Attributes:
        package, processor, backend: what was loaded.
        features: image features by content.
        embedding: the token embedding matrix.
        execution: how the backend reads prompts and decodes.
    """

    def __init__(
        self, package: Package, backend: str, threads: int | None, park: str = "device"
    ) -> None:
        self.package = package
        self.processor = Processor.from_package(package)
        self.embedding = Embedding(package)
        self.backend = load_backend(backend, package, threads, park)
        self.execution = execution_on(self.backend, package.manifest, self.embedding)
        self.features = FeatureCache(self.backend)

    def conversation(self) -> Conversation:
        """A new conversation with nothing in its cache."""
        return self.execution.conversation()

    def decoder(self, conversations: Sequence[Conversation], plan: Plan, max_steps: int) -> Steps:
        """Decode steps over conversations of this package whose prompts have been read.

        Raises:
            TypeError: a conversation is another package's.
            AvlError: a device has no room for them.
        """
        return self.execution.decoder(conversations, plan, max_steps)

    def embed(self, prompt: Prompt) -> PromptRows:
        """What the decoder reads of a prompt; runs the encoders where features are not known."""
        mask, layers = prompt.image_mask, self.package.manifest.deepstack_layers
        # Ids of visual tokens may lie outside the embedding matrix; their rows are replaced.
        hidden = self.embedding.lookup(np.where(mask, 0, prompt.input_ids))
        deepstack = np.zeros((len(layers), *hidden.shape), hidden.dtype)
        features = self.features.of(prompt)
        if features:
            hidden[mask] = np.concatenate([part.rows for part in features])
            deepstack[:, mask] = np.concatenate([part.deepstack for part in features], 1)
        return PromptRows(
            prompt.input_ids, mask, hidden, deepstack, prompt.positions, prompt.next_position
        )

    def check(self, policy: Policy) -> None:
        """Refuse a policy this package cannot serve.

        Raises:
            PolicyError: it drops tokens after a layer at which the decoder is not split.
        """
        prune = policy.plan().prune
        splits = self.package.manifest.splits()
        if prune is not None and prune.layer not in splits:
            found = ", ".join(map(str, splits)) or "no layer"
            raise PolicyError(
                f"{policy}: expected a package split after layer {prune.layer}, found splits "
                f"after {found}; export with --split {prune.layer}"
            )


class Request:
    """One generation over one or more conversations, from prompts to results.

    Prompts are read when `steps` begins, in new conversations if none are given; results are there
    when it has ended.
    """

    def __init__(
        self,
        loaded: Loaded,
        conversations: Sequence[Conversation] | None,
        prompts: Sequence[Prompt],
        policy: Policy,
        options: Options,
        return_logits: bool = False,
        return_placements: bool = False,
    ) -> None:
        loaded.check(policy)
        return_logits = flag("return_logits", return_logits)
        return_placements = flag("return_placements", return_placements)
        manifest = loaded.package.manifest
        options.check_ids(manifest.dims.vocab_size)
        options = options.over(manifest.generation)
        self._loaded = loaded
        self._conversations = [] if conversations is None else list(conversations)
        self._prompts = prompts
        self._policy = policy
        self._trace = return_placements
        self._max_new_tokens = options.max_new_tokens or MAX_NEW_TOKENS
        self.replies = [
            Reply(loaded.processor.tokenizer, manifest.tokens.eos, options, return_logits)
            for _ in prompts
        ]
        self._decoder: Steps | None = None
        self._prefill_ms = self._decode_ms = 0.0
        self._tokens_read: list[int] = []

    def steps(self) -> Iterator[list[str]]:
        """Run; yields every reply's new text after each step."""
        loaded, plan = self._loaded, self._policy.plan()
        if not self._conversations:
            self._conversations = [loaded.conversation() for _ in self._prompts]
        begun = time.perf_counter()
        logits = [
            conversation.prefill(loaded.embed(prompt), plan, reply.reads)
            for conversation, prompt, reply in zip(
                self._conversations, self._prompts, self.replies, strict=True
            )
        ]
        for conversation, prompt in zip(self._conversations, self._prompts, strict=True):
            conversation.visuals += [media.cells for media in prompt.media]
        self._tokens_read = [conversation.length for conversation in self._conversations]
        # A reply's last token needs no row of its own, hence one more than the context has room.
        limits = [
            min(self._max_new_tokens, conversation.room_left() + 1)
            for conversation in self._conversations
        ]
        self._decoder = loaded.decoder(self._conversations, plan, max(limits) - 1)
        self._prefill_ms = (time.perf_counter() - begun) * 1e3
        generation = run(
            self._decoder, self._conversations, self.replies, np.stack(logits), limits, self._trace
        )
        begun = time.perf_counter()
        for pieces in generation:
            # The consumer's time between steps is not the model's.
            self._decode_ms += (time.perf_counter() - begun) * 1e3
            yield pieces
            begun = time.perf_counter()

    def result(self, seq: int) -> Result:
        """The finished reply of one conversation."""
        reply, decoder = self.replies[seq], self._decoder
        if decoder is None or reply.finish_reason is None:
            raise RuntimeError("a result is read after its steps have ended")
        conversation, batch = self._conversations[seq], len(self.replies)
        steps = conversation.length - self._tokens_read[seq]
        loaded, read = self._loaded, self._tokens_read[seq]
        dense = loaded.execution.dense_bytes(read, steps, self._max_new_tokens - 1)
        stats = Stats(
            policy=str(self._policy),
            backend=loaded.backend.name,
            prompt_tokens=len(self._prompts[seq].input_ids),
            visual_tokens=int(self._prompts[seq].image_mask.sum()),
            new_tokens=len(reply.token_ids),
            prefill_ms=self._prefill_ms,
            decode_ms_per_token=self._decode_ms / max(1, decoder.step),
            kv_bytes=decoder.nbytes // batch,
            kv_bytes_dense=dense,
            peak_rss_bytes=peak_rss_bytes(),
            device_bytes=loaded.execution.device_bytes(),
            seed=reply.seed,
        )
        logits = None if reply.logits is None else np.stack(reply.logits)
        return Result(
            reply.text,
            tuple(reply.token_ids),
            reply.finish_reason,
            logits,
            stats,
            tuple(reply.placements),
            tuple(conversation.visuals),
            None if reply.logprobs is None else tuple(reply.logprobs),
        )


def as_policy(policy: str | Policy) -> Policy:
    """A policy as callers name it: itself, or its name and options as text.

    Raises:
        PolicyError: there is no such policy.
    """
    if isinstance(policy, str):
        return parse(policy)
    if not isinstance(policy, Policy):
        raise PolicyError(
            f"expected a policy, or its name and options as text, found {quoted(policy)}; write "
            "policy='avl'"
        )
    return policy
