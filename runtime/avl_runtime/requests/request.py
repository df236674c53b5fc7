"""One request: a prompt, how it is answered, and the reply as far as it has come."""

from __future__ import annotations

from collections.abc import Sequence as Several

import numpy as np
from numpy.typing import NDArray

from avl_plugins.errors import AvlError
from avl_plugins.policies import Policy, Tokens
from avl_runtime.generate.core_drafts import CoreDrafts
from avl_runtime.generate.decode import MOST_TOGETHER, Lying
from avl_runtime.generate.drafts import NO_TEXT, PromptLookup
from avl_runtime.generate.grammars import Grammar, json_grammar
from avl_runtime.generate.options import MAX_NEW_TOKENS, Options
from avl_runtime.generate.reply import Reply
from avl_runtime.generate.results import DeviceBytes, Drafts, Placement, Result, Stats
from avl_runtime.generate.sequence import Sequence
from avl_runtime.kv.states import LayerStates
from avl_runtime.machine.memory import peak_rss_bytes
from avl_runtime.prompts.option_values import OptionError, flag
from avl_runtime.prompts.processor import Prompt
from avl_runtime.requests.loaded import Loaded, weights_read


class Request:
    """What a scheduler runs.

    Attributes:
        reply: what has been generated.
        error: what ended it, instead of a result.
        fresh: text of the last step, "" where none became certain; the runner clears it.
        steps: tokens that came after the first.
        submitted: whether a runner has been given it; it runs once.
        kept: whether its rows stay when it is done, for the conversation to go on.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompt: Prompt,
        policy: Policy,
        options: Options,
        return_logits: bool = False,
        return_placements: bool = False,
        sequence: Sequence | None = None,
        grammar: Grammar | None = None,
    ) -> None:
        """
        Args:
            sequence: of a conversation; None begins one.
            grammar: what the reply may be, beside which `options` have no schema.

        Raises:
            AvlError: the policy or an option cannot be used with this package.
        """
        loaded.check(policy)
        manifest = loaded.package.manifest
        options.check_ids(manifest.dims.vocab_size)
        if grammar is None and options.json_schema is not None:
            grammar = json_grammar(options.json_schema)
        constraint = None if grammar is None else loaded.grammars.constraint(grammar)
        options = (options if grammar is None else options.held()).over(manifest.generation)
        self.loaded = loaded
        self.prompt = prompt
        self.policy = policy
        self.kept = sequence is not None
        self._sequence = sequence
        keep_logits = flag("return_logits", return_logits)
        self.trace = flag("return_placements", return_placements)
        tokenizer, eos = loaded.processor.tokenizer, manifest.tokens.eos
        self.reply = Reply(tokenizer, eos, options, keep_logits, constraint)
        self.submitted = False
        self.error: BaseException | None = None
        self.fresh = ""
        self.prefill_s = self.decode_s = 0.0
        self.steps = 0
        self._most = options.max_new_tokens or MAX_NEW_TOKENS
        repeats = manifest.dims.states is not None  # checks, where a draft was wrong
        self._lookup = self._drafts(options.prompt_lookup or 0, repeats)
        drafting = policy.drafting()
        self._core = None if drafting is None else CoreDrafts(drafting, repeats)
        self._before: list[LayerStates] = []  # the first draft that is pending
        self._weights = weights_read(manifest)
        self._limit = 0
        self._read = 0
        self._result: Result | None = None

    @property
    def sequence(self) -> Sequence:
        """Its tokens and rows: of a caller's conversation, or new from when it is first asked."""
        if self._sequence is None:
            self._sequence = self.loaded.sequence(self.policy)
        return self._sequence

    def end(self, error: BaseException) -> None:
        """Have an error in place of a result."""
        self.error, self.fresh = error, ""

    def free(self) -> None:
        """Let go of rows that no conversation goes on with."""
        if not self.kept and self._sequence is not None:
            self._sequence.caches = []

    @property
    def done(self) -> bool:
        """Whether there is a result, or an error."""
        return self.error is not None or self.reply.finish_reason is not None

    @property
    def prefix_tokens(self) -> int:
        """Tokens at the prompt's begin that were not read: an earlier one has left their rows."""
        return 0 if self._sequence is None else self._sequence.prefix_tokens

    @property
    def visual_tokens_read(self) -> int:
        """Visual tokens of the prompt that the decoder was given, once it is read."""
        return 0 if self._sequence is None else self._sequence.images_read

    @property
    def most_steps(self) -> int:
        """Decode steps that a caller allows, wherever the context ends."""
        return self._most - 1

    @property
    def steps_left(self) -> int:
        """Decode steps that may still come."""
        return max(0, self._limit - 1 - self.steps)

    def begin(self) -> None:
        """Note that the prompt has been read."""
        self.sequence.visuals += [media.cells for media in self.prompt.media]
        self._read = self.sequence.length
        # A reply's last token needs no row of its own, hence one more than the context has room.
        self._limit = min(self._most, self.sequence.room_left() + 1)
        if self._lookup is not None:
            known = np.where(self.sequence.image_mask, NO_TEXT, self.sequence.token_ids)
            self._lookup.add(known.tolist())
        if self._core is not None:
            self._core.begin(*self.sequence.bytes_held(), self.sequence.values_held())

    def take(self, logits: NDArray[np.float32]) -> None:
        """Choose the next token from logits [V]."""
        self._take(logits, self.sequence.token_ids)

    @property
    def newest(self) -> int:
        """The token that the next step reads: of the reply, or drafted."""
        pending = self._core.pending if self._core is not None else []
        return pending[-1] if pending else self.reply.token_ids[-1]

    @property
    def is_drafted(self) -> bool:
        """Whether there are as many drafts by core rows as shall be checked at once."""
        return self._core is not None and self._core.complete

    def drafted(self, checks: bool) -> list[int]:
        """Tokens that may follow the reply's newest one, to be checked in one run; often none.

        What steps have drafted is taken out of the sequence: the run brings its rows anew.

        Args:
            checks: whether the drafts of steps are checked now, however many there are.
        """
        sequence, core = self.sequence, self._core
        if core is not None and core.pending:
            if not checks:
                return []
            self._take_back(len(core.pending))
            return list(core.pending)
        if self._lookup is None or not self._lookup.ready:
            return []
        rows = min(self.steps_left, self._lookup.most + 1)
        if core is None:
            rows = sequence.undecided(rows)
        return self._lookup.draft(rows - 1)

    def drafts(self, members: int) -> bool:
        """Whether the next step is one that drafts, reading core rows alone.

        Args:
            members: how many requests run.
        """
        core = self._core
        if core is None or core.pending:
            return core is not None
        together = MOST_TOGETHER // members if members < MOST_TOGETHER else MOST_TOGETHER
        rows = min(self.steps_left, self.loaded.executor.most_answers, together)
        if not core.starts(rows - 1, self._weights // members):
            return False
        self._before = self.sequence.states()
        return True

    def draft(self, logits: NDArray[np.float32]) -> None:
        """Draft the next token from logits [V] of a step that has read core rows alone."""
        if self._core is None:
            raise RuntimeError("expected a policy that lets tokens be drafted, found another")
        ahead = len(self._core.pending)
        token = self.reply.guess(logits, self.sequence.token_ids, ahead)
        self._core.add(token, self.reply.ends(token))

    def check(self, drafted: Several[int], logits: NDArray[np.float32]) -> None:
        """Choose tokens as long as they are those that were drafted, and one more.

        Each is chosen as without drafts, from the same logits and by the same draw, so that a
        draft changes no token. For a draft that is one token and no distribution, that accepts as
        often as the rejection rule of speculative sampling (arXiv 2211.17192), which is to say
        with the token's own probability.

        Each row of logits that was looked at is a step: so many rows are to be kept, where rules
        leave no token as well.

        Args:
            drafted: tokens behind the newest one.
            logits: [S, V], of the newest one and these.
        """
        history = [*self.sequence.token_ids, self.reply.token_ids[-1]]
        accepted = 0
        try:
            for row, draft in zip(logits, (*drafted, None), strict=True):
                self.steps += 1
                self._take(row, history)
                if self.reply.token_ids[-1] != draft:
                    break
                accepted += 1
                if self.reply.finish_reason is not None:
                    break
                history.append(draft)
        finally:
            source = self._core if self._core is not None and self._core.pending else self._lookup
            if source is not None:
                source.count(len(drafted), accepted)

    def drop_drafts(self) -> None:
        """Take drafts back that nobody will check."""
        if self._core is not None and self._core.pending:
            self._take_back(len(self._core.pending))
            self._core.pending.clear()

    def _take_back(self, drafts: int) -> None:
        self.sequence.roll_back(self.sequence.length - drafts, self._before)
        self._before = []

    def _take(self, logits: NDArray[np.float32], history: list[int]) -> None:
        self.fresh += self.reply.take(logits, history, self._limit)
        if self._lookup is not None:
            self._lookup.say(self.reply.token_ids[-1])

    def _drafts(self, most: int, repeats: bool) -> PromptLookup | None:
        """What drafts tokens, if a caller wants at most so many.

        Raises:
            OptionError: they could not be checked.
        """
        if not most:
            return None
        if any(action.tokens is Tokens.TEXT for action in self.policy.actions()):
            raise OptionError(
                "prompt_lookup: expected a policy that drops no text, whose attention could not "
                f"be taken back, found {self.policy}; leave one of the two out"
            )
        if any(action.weighs for action in self.policy.actions()):
            raise OptionError(
                "prompt_lookup: expected a policy whose steps are computed once, as drafts are "
                f"checked many at a time, found {self.policy}; leave one of the two out"
            )
        executor = self.loaded.executor
        if executor.most_answers <= 1:
            raise OptionError(
                "prompt_lookup: expected graphs that give logits of several tokens, found "
                f"{executor.name} and a package that give the last one's alone; leave it out, or "
                "export again and run on ort-cpu"
            )
        return PromptLookup(min(most, executor.most_answers - 1), repeats)

    def note(self, placement: Lying) -> None:
        """Keep where image tokens are, for the result."""
        # A refresh at step g chooses the core that steps from g + 1 on read.
        step = self.sequence.step + 1 if self.sequence.step else 0
        self.reply.placements.append(Placement(step, *placement))

    @property
    def result(self) -> Result:
        """The finished reply.

        Raises:
            AvlError: what ended the request.
            RequestError: it is not done.
        """
        if self.error is not None:
            raise self.error
        if not self.submitted:
            raise RequestError(
                "expected a request that is done, found one that nothing runs; submit it"
            )
        if self._result is None:
            raise RequestError(
                "expected a request that is done, found one that still runs; let its runner step "
                "until it is"
            )
        return self._result

    def finish(self) -> None:
        """Make the result of a reply that has come to its end, while its rows are there."""
        reply, executor = self.reply, self.sequence.executor  # the model may have been closed
        if reply.finish_reason is None:
            raise RuntimeError("expected a reply that has come to its end")
        used = executor.device_bytes()
        sources = [one for one in (self._lookup, self._core) if one is not None]
        stats = Stats(
            policy=str(self.policy),
            backend=executor.name,
            prompt_tokens=len(self.prompt.input_ids),
            visual_tokens=int(self.prompt.image_mask.sum()),
            new_tokens=len(reply.token_ids),
            prefill_ms=self.prefill_s * 1e3,
            decode_ms_per_token=self.decode_s * 1e3 / max(1, self.steps),
            kv_bytes=self.sequence.nbytes,
            kv_bytes_dense=executor.dense_bytes(self._read, self.steps, self._most - 1),
            peak_rss_bytes=peak_rss_bytes(),
            device_bytes=None if used is None else DeviceBytes(**used),
            seed=reply.seed,
            drafts=tuple([Drafts(one.source, one.drafted, one.accepted) for one in sources]),
            kernels=executor.kernels,
            kv=executor.kv,
            prefix_tokens=self.prefix_tokens,
            visual_tokens_read=self.visual_tokens_read,
            steps_again=self.sequence.again,
        )
        self._result = Result(
            reply.text,
            tuple(reply.token_ids),
            reply.finish_reason,
            None if reply.logits is None else np.stack(reply.logits),
            stats,
            tuple(reply.placements),
            tuple(self.sequence.visuals),
            None if reply.logprobs is None else tuple(reply.logprobs),
            self.sequence.images_dropped,
        )


class RequestError(AvlError):
    """A runner was given what it cannot run, or asked for what it has not run."""


class CancelledError(AvlError):
    """A request was cancelled."""
