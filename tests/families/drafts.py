"""Drafts by a core and by what was said before, beside steps without them."""

from __future__ import annotations

import numpy as np

from avl_runtime import LVLM
from families.support import picture

EXACT = "avl:exact,core=0.1,n=7"


def drafts_change_no_token(model: LVLM, prompt: str, tolerance: float) -> None:
    """Right ones and wrong ones, alone and in a batch of unlike lengths, chosen and drawn."""
    images, drafted, accepted = [picture((30, 20))], 0, 0
    prompts, long = (prompt, prompt * 3), {"max_new_tokens": 40, "return_logits": True}
    for options in (long, long | {"temperature": 1.5, "seed": 3}):
        dense = [model.generate(one, images, policy="dense", **options) for one in prompts]
        asked = dict(policy=EXACT, prompt_lookup=7, **options)
        batch = model.generate_batch(prompts, [images, images], **asked)
        for policy, lookup in ((EXACT, None), ("dense", 7)):
            asked = dict(policy=policy, prompt_lookup=lookup, **options)
            batch.append(model.generate(prompts[1], images, **asked))
        for one, found in zip([*dense, dense[1], dense[1]], batch, strict=True):
            assert found.token_ids == one.token_ids
            np.testing.assert_allclose(found.logits, one.logits, atol=tolerance, rtol=0)
            for source in found.stats.drafts:
                drafted, accepted = drafted + source.drafted, accepted + source.accepted
    assert 0 < accepted < drafted
