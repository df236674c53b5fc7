"""The tokenizer and chat template of avl-tiny: byte-level BPE over the words its tasks use."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from avl_runtime.tasks import samples

SPECIAL = ("<pad>", "<s>", "</s>", "<image>")
ROLES = ("USER:", "ASSISTANT:")  # one token each, as every prompt holds both
VOCABULARY = 384

# LLaVA-1.5's template: content is a string or a list of {"type": "image"} and {"type": "text"}.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{ 'USER: ' }}\
{%- elif message['role'] == 'assistant' -%}{{ 'ASSISTANT: ' }}\
{%- else -%}{{ raise_exception('avl-tiny knows the roles user and assistant only') }}{%- endif -%}
{%- if message['content'] is string -%}{{ message['content'] }}\
{%- else -%}
{%- for part in message['content'] if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in message['content'] if part['type'] == 'text' -%}{{ part['text'] }}{%- endfor -%}
{%- endif -%}
{%- if message['role'] == 'user' -%}{{ ' ' }}{%- else -%}{{ '</s>' }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'ASSISTANT:' }}{%- endif -%}
"""


def build_tokenizer() -> Tokenizer:
    """Train the tokenizer on prompts and answers of the training split.

    Capitals and digits always stand alone, so that text read from a page is one token a character.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("[A-Z0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=20,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    corpus = [
        f"{sample.prompt} {sample.answer}"
        for task in ("caption", "vqa")
        for sample in samples(task, "train", 2000)
    ]
    corpus += ["Read the text. Read line 1."] * 100
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(role, normalized=False) for role in ROLES])
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", bos)]
    )
    return tokenizer
