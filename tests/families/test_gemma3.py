"""Gemma 3: pictures whose tokens see one another, windows shorter than a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from avl_plugins.errors import PolicyError
from avl_plugins.policies import parse
from avl_runtime.engines.options import BuildError, Options
from avl_runtime.engines.plan import make_plan
from avl_runtime.execute import load_backend
from avl_runtime.execute.protocol import BackendError
from avl_runtime.generate.decode import Decoder
from avl_runtime.generate.prefill import finished, prefill
from avl_runtime.generate.sequence import RollbackError, Sequence
from avl_runtime.machine.probe import probe
from families.chosen import ChosenTests
from families.engines import EngineTests
from families.gemma import SIDE, TEXT, VISION
from families.shared import PROMPT, FamilyTests
from families.support import Case, Made, picture, refused, without_checks
from families.windows import TurnTests, WindowTests

SPECIAL = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<start_of_image>",
    "<end_of_image>",
    "<image_soft_token>",
)
NAMES = {"boi": "<start_of_image>", "eoi": "<end_of_image>", "image": "<image_soft_token>"}
TOKENS = 16  # of a picture
# Of google/gemma-3-4b-it's.
TEMPLATE = (
    "{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}"
    "{%- if messages[0]['content'] is string -%}"
    "{%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}"
    "{%- else -%}{%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}"
    "{%- endif -%}{%- set loop_messages = messages[1:] -%}{%- else -%}"
    '{%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}{%- endif -%}'
    "{%- for message in loop_messages -%}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}"
    '{{ raise_exception("Conversation roles must alternate user/assistant/user/...") }}'
    "{%- endif -%}{%- if (message['role'] == 'assistant') -%}{%- set role = \"model\" -%}"
    "{%- else -%}{%- set role = message['role'] -%}{%- endif -%}"
    "{{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else \"\") }}"
    "{%- if message['content'] is string -%}{{ message['content'] | trim }}"
    "{%- elif message['content'] is iterable -%}{%- for item in message['content'] -%}"
    "{%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}"
    "{%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}{%- endfor -%}"
    '{%- else -%}{{ raise_exception("Invalid content type") }}{%- endif -%}'
    "{{ '<end_of_turn>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"
)
SLIDING, FULL = "sliding_attention", "full_attention"
ROPES = {
    FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
}


def config(window: int, **text: Any) -> Gemma3Config:
    types = [SLIDING, FULL, SLIDING, SLIDING, FULL]  # the second is what FastV ranks by
    return Gemma3Config(
        text_config={
            **TEXT,
            "num_hidden_layers": len(types),
            "layer_types": types,
            "sliding_window": window,
            "query_pre_attn_scalar": 11,
            "rope_parameters": ROPES,
            **text,
        },
        vision_config=VISION,
        mm_tokens_per_image=TOKENS,
        boi_token_index=SPECIAL.index("<start_of_image>"),
        eoi_token_index=SPECIAL.index("<end_of_image>"),
        image_token_index=SPECIAL.index("<image_soft_token>"),
    )


def processor(tokenizer: Any) -> Any:
    tokenizer._set_model_specific_special_tokens({f"{n}_token": text for n, text in NAMES.items()})
    return without_checks(Gemma3Processor)(
        Gemma3ImageProcessorPil(size={"height": SIDE, "width": SIDE}),
        tokenizer,
        chat_template=tokenizer.chat_template,
        image_seq_length=TOKENS,
    )


def case(name: str, window: int, **text: Any) -> Case:
    return Case(
        name=name,
        model=Gemma3ForConditionalGeneration,
        config=config(window, **text),
        special=SPECIAL,
        bos="<bos>",
        eos="<end_of_turn>",
        pad="<pad>",
        template=TEMPLATE,
        processor=processor,
    )


CASES = (
    case("gemma3", 5, attn_logit_softcapping=5.0, final_logit_softcapping=3.0),
    case("gemma3-37", 37),
)


class TestGemma3(FamilyTests, ChosenTests, WindowTests, TurnTests):
    cases = CASES
    choosing = ChosenTests.choosing[:2]  # windows count tokens where they stood
    divided = TEXT["hidden_size"] ** 0.5

    def test_memory_stays_at_the_window_and_a_chunk(
        self, made: Made, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A long prompt and a reply; what the window has left behind cannot be gone back to."""
        loaded, chunk, steps = made.model.loaded, 16, 30
        monkeypatch.setattr(loaded.executor, "chunk", chunk)
        prompt = loaded.processor.encode(PROMPT * 9, [picture((30, 20))])
        sequence = Sequence(loaded.executor, loaded.package.manifest, parse("dense"))
        manifest, count = loaded.package.manifest, len(prompt.input_ids)
        window = manifest.reach.window
        assert window is not None and count > 2 * (window + chunk)
        finished(prefill(sequence, manifest, finished(loaded.embed(prompt)), steps=steps))
        decoder = Decoder(loaded.executor, manifest, loaded.embedding)
        decoder.join([sequence], steps)
        for _ in range(steps):
            decoder.run([300])
            for cache in sequence.caches:
                for layer, slides in enumerate(cache.windows):
                    rows = int(cache.active_len[layer, 0])
                    assert rows == (sequence.length if slides is None else window)
                    assert slides is None or cache.rooms[layer] <= window + chunk + 16
        held, dense = sequence.row_bytes()
        assert held == dense < loaded.executor.row_bytes[0][0] * 5 * sequence.length
        sequence.roll_back(sequence.length - 1)
        with pytest.raises(RollbackError, match=f"go back to token {count + steps - 1} or later"):
            sequence.roll_back(sequence.length - 1)

    def test_positions_stay_where_windows_count_them(self, made: Made) -> None:
        with pytest.raises(PolicyError, match=r"without a window for positions=renumber"):
            made.model.generate(PROMPT, policy="uniform:positions=renumber")

    def test_what_runs_it_is_told(self, made: Made) -> None:
        assert "a picture that attend to one another" in str(made.model.loaded.executor.kernels)
        with pytest.raises(
            BackendError, match="attend to all before them, as ort-cuda runs, found"
        ):
            load_backend("ort-cuda", made.model.package, 1)
        with pytest.raises(BuildError, match="whose engines nothing drives; run it on ort-cpu"):
            make_plan(Options(made.package, "tensorrt-rtx"), probe())


class TestGemma3Engines(EngineTests):
    cases = CASES[:1]


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("preprocessor_config.json", {"do_pan_and_scan": True}, "found do_pan_and_scan of True"),
        ("preprocessor_config.json", {"size": {"height": 9, "width": 9}}, "pictures of 24 x 24"),
        ("config.json", {"mm_tokens_per_image": 15}, "a square whose side divides 8 patches"),
        ("config.json", {"mm_tokens_per_image": 9}, "a square whose side divides 8 patches"),
        (
            "config.json",
            {"text_config": {"use_bidirectional_attention": True}},
            "without attention to later tokens",
        ),
        ("config.json", {"vision_config": {"model_type": "clip_vision_model"}}, "siglip_vision"),
    ],
)
def test_variants_that_are_refused(
    make: Any, tmp_path: Path, file: str, changes: dict[str, Any], expected: str
) -> None:
    assert expected in refused(make(CASES[0]), tmp_path, {file: changes})
