"""The scripts that compare checkouts, on this one beside itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import greedy_tokens
from avl_runtime import LVLM
from greedy_tokens import Difference, Said, differences
from ratios import compared, of_overheads, of_peaks
from side_by_side import check_replies
from together import Sizes, figures
from trees import Tree

ROOT = Path(__file__).parents[2]
SHORT = ["--models", "avl-tiny", "--policies", "dense", "avl", "--tokens", "6"]


def test_a_checkout_beside_itself(
    tiny: LVLM,
    tiny_package: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(
        greedy_tokens, "packages", lambda trees, *_: {"avl-tiny": [tiny_package] * len(trees)}
    )
    path = tmp_path / "tokens.json"
    asked = [*SHORT, "--requests", "page", "page-tokens-only", "batch"]
    assert greedy_tokens.main([sys.executable, sys.executable, *asked, "--json", str(path)]) == 0
    report = json.loads(path.read_text())
    assert report["commits"] == [Tree.of(sys.executable).commit] * 2
    count = 0
    for policy, requests in report["models"]["avl-tiny"].items():
        assert list(requests) == ["page", "page-tokens-only", "batch"]
        page = Image.open(ROOT / "samples/page.png")
        alone = tiny.generate("Read the text.", [page], policy=policy, max_new_tokens=6)
        assert requests["page"]["tokens"] == [list(alone.token_ids)]
        assert requests["page-tokens-only"] == {"tokens": [list(alone.token_ids)]}
        assert requests["page"]["difference"] == 0 and len(requests["batch"]["tokens"]) == 4
        count += sum(len(reply) for one in requests.values() for reply in one["tokens"])
    assert capsys.readouterr().out == (
        f"avl-tiny: 2 policies, 6 requests, {count} tokens, logits within 0\n"
    )
    # A record of other tokens is told apart, and what it does not have is not asked of it.
    report["models"]["avl-tiny"]["avl"]["page"]["tokens"][0][2] += 1
    del report["models"]["avl-tiny"]["dense"]
    path.write_text(json.dumps(report))
    assert greedy_tokens.main([*SHORT, "--requests", "page", "--recorded", str(path)]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("1 replies differ, the first: avl-tiny, avl, page: reply 0, token 2: ")


def test_the_first_difference_is_told() -> None:
    expected = {"dense": {"page": [[1, 2, 3], [4]], "chat": [[5]]}}
    found = {"dense": {"page": [[1, 2], [4]], "chat": [[5], [6]]}, "avl": {"page": [[1]]}}
    assert differences("m", expected, expected) == []
    assert differences("m", expected, found) == [
        Difference("m", "dense", "page", 0, 2, 3, None),
        Difference("m", "dense", "chat", 1, 0, None, 6),
    ]


def test_how_far_logits_are_apart() -> None:
    tokens = {"dense": {"page": [[0, 1]]}}
    one = np.array([[3, 1, 0], [0, 2, 1.5]], np.float32)
    said = [Said(tokens, {"dense|page|0": logits}) for logits in (one, one + np.eye(2, 3) / 4)]
    entry = greedy_tokens.record(said)["dense"]["page"]
    assert entry["tokens"] == [[0, 1]]
    assert (entry["margin"], entry["difference"]) == (0.75, 0.25)
    same = greedy_tokens.record([said[0], said[0]])["dense"]["page"]
    assert same["difference"] == 0 and same["logits"] != entry["logits"]


def test_a_python_without_avl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"expected a Python at .* found: "):
        Tree.of(tmp_path)
    tree = Tree(Path(sys.executable), ROOT, "0")
    with pytest.raises(SystemExit, match="expected no-such-script beside"):
        tree.script("no-such-script")


def test_ratios_are_new_over_old() -> None:
    found = compared([(0.1, 0.2), (0.1, 0.3), (0.2, 0.2)])
    assert (found["old_ms"], found["new_ms"]) == (100, 200)
    assert found["ratio"] == {
        "median": 2,
        "minimum": 1,
        "quartile_1": 1.5,
        "quartile_3": 2.5,
        "maximum": 3,
        "count": 3,
    }
    both = [{"dense": {"median": 0.5}, "gone": {"median": 1}}, {"dense": {"median": 0.25}}]
    assert list(of_overheads([both])) == ["dense"]
    assert of_overheads([both])["dense"]["ratio"]["median"] == 0.5
    peaks = of_peaks([(200, 100), (220, 150), (240, 160)])
    assert peaks == {"old_bytes": 220, "new_bytes": 150, "ratio": round(150 / 220, 4)}


def test_other_and_shorter_replies_are_no_comparison() -> None:
    check_replies("dense", [[1, 2], [1, 2]], 2)
    with pytest.raises(SystemExit, match="greedy_tokens"):
        check_replies("dense", [[1, 2], [1, 3]], 2)
    check_replies("dense", [[1, 2], [1, 3]], 2, alike=False)
    for replies in ([[1, 2], [1, 2]], [[1, 2, 3], [1, 2]]):
        with pytest.raises(SystemExit, match="ends after 2"):
            check_replies("dense", replies, 3, alike=False)


def test_four_together_beside_their_bytes() -> None:
    dims = {"hidden_size": 8, "intermediate_size": 16, "num_layers": 2, "num_heads": 2}
    dims |= {"num_kv_heads": 2, "head_dim": 4, "vocab_size": 100}
    row = {"decode_s": 4.0, "decode_wall_s": 5.0}
    both = {"decode_s": 1.0, "decode_wall_s": 2.0}
    rounds = [{"in_a_row": row, "together": both, "same_replies": 4}]
    start = {"prompt_tokens": 6, "visual_tokens": 2, "rounds": rounds, "peak_rss_bytes": 7}
    found = figures([start, start], Sizes("fp16", 1, 4, new_tokens=11), dims)
    assert found["decode"]["median"] == 0.25 and found["by_wall"]["median"] == 0.4
    assert (found["in_a_row"]["step_ms"], found["together"]["step_ms"]) == (100, 100)
    assert (found["in_a_row"]["token_ms"], found["together"]["token_ms"]) == (100, 25)
    # Of a layer 4 x 8 x 8 and 3 x 8 x 16 weights in 16 bits, of the output matrix 8 x 100 in 8.
    weights, rows = 2 * 2 * (256 + 384) + 800, 2 * 2 * 8 * 4 * (6 + 5.5)
    assert found["together"]["bytes_a_step"] == weights + 4 * rows
    assert found["bytes_say"] == round((weights + 4 * rows) / (4 * (weights + rows)), 4)
