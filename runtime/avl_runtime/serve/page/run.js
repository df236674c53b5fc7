// One answer under one policy: what has come of it.

import { placement } from "./attention.js";
import { chunks } from "./protocol.js";

/** A run, as the history keeps it too. */
export function newRun(policy) {
  return {
    policy,
    pieces: [], // text by token; "" where a token brought none
    visuals: [],
    placements: [],
    held: null, // bytes of cached rows, and what dense attention would hold
    dense: null,
    prefill: null, // milliseconds for the prompt, and for the steps since
    decode: null,
    finish: null,
    error: null,
  };
}

export const textOf = (run) => run.pieces.join("");

export const isDone = (run) => run.finish !== null || run.error !== null;

/** Tokens a second, without the first, whose time is the prompt's. */
export function speedOf(run) {
  return run.decode > 0 ? ((run.pieces.length - 1) * 1e3) / run.decode : null;
}

/** Has a run answered; calls `heard` after each chunk. It ends as done, whatever happens. */
export async function follow(run, body, key, signal, heard) {
  try {
    const asked = { ...body, policy: run.policy, placements: "stream" };
    for await (const chunk of chunks(asked, key, signal)) {
      const [choice] = chunk.choices;
      take(run, choice);
      heard();
    }
  } catch (error) {
    if (error.name === "AbortError") run.finish = "stopped";
    else run.error = error.message;
  }
  heard();
}

function take(run, choice) {
  const told = choice.avl ?? {};
  if (told.visuals) run.visuals = told.visuals;
  if (told.tokens) {
    // A chunk may tell of several tokens, where drafts were right, or of none, where it was cut.
    while (run.pieces.length < told.tokens) run.pieces.push("");
    run.pieces[run.pieces.length - 1] += choice.delta.content ?? "";
    run.placements.push(...told.placements.map(placement));
  }
  run.prefill = told.prefill_ms ?? run.prefill;
  run.decode = told.decode_ms ?? run.decode;
  run.held = told.row_bytes ?? run.held;
  run.dense = told.row_bytes_dense ?? run.dense;
  if (told.policy) run.policy = told.policy;
  if (choice.finish_reason) run.finish = told.cut ?? choice.finish_reason;
}
