// Where image tokens are: placements as the server tells them, and what of them is drawn.
// A placement is { step, layers, tokens, core, parked }, the last two with a bit for each token of
// each layer, the first in a byte's highest bit.

function bytes(base64) {
  const text = atob(base64);
  const found = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) found[i] = text.charCodeAt(i);
  return found;
}

export function placement(told) {
  const [layers, tokens] = told.core.shape;
  return {
    step: told.step,
    layers,
    tokens,
    core: bytes(told.core.bits),
    parked: bytes(told.parked.bits),
  };
}

/** The placement that holds at a decode step: the last one that is not of a later step. */
export function placementAt(placements, step) {
  let found = placements[0];
  for (const one of placements) {
    if (one.step > step) break;
    found = one;
  }
  return found;
}

/** For each token the share of layers in which its bit is set; layer 0 stands for all of them. */
function perToken(bits, layers, tokens, layer) {
  const found = new Float32Array(tokens);
  const [from, to] = layer ? [layer - 1, layer] : [0, layers];
  for (let row = from; row < to; row++) {
    for (let token = 0; token < tokens; token++) {
      const place = row * tokens + token;
      found[token] += (bits[place >> 3] >> (7 - (place & 7))) & 1;
    }
  }
  return found.map((one) => one / (to - from));
}

/** The tokens' shares of core and secondary, in a layer or over all. */
export function shares(one, layer) {
  return {
    core: perToken(one.core, one.layers, one.tokens, layer),
    secondary: perToken(one.parked, one.layers, one.tokens, layer),
  };
}

export function mean(values) {
  return values.length ? values.reduce((sum, one) => sum + one, 0) / values.length : 0;
}

/** For each token of all pictures 1 where a prompt dropped it so, 0 elsewhere. */
function droppedWhere(visuals, so) {
  return Float32Array.from(
    visuals.flatMap((one) => one.dropped_before ?? one.cells.map(() => -1)),
    (layer) => (so(layer) ? 1 : 0),
  );
}

/** The tokens that the decoder was not given, and those dropped between its layers. */
export function early(visuals) {
  return {
    withheld: droppedWhere(visuals, (layer) => layer === 0),
    stopped: droppedWhere(visuals, (layer) => layer > 0),
  };
}

/** Shares of a picture's cells: the mean of the tokens that show each; NaN where none does. */
export function byCell(values, visuals, number) {
  let first = 0;
  for (const before of visuals.slice(0, number)) first += before.cells.length;
  const { grid, cells } = visuals[number];
  const summed = new Float32Array(grid[0] * grid[1]);
  const count = new Float32Array(grid[0] * grid[1]);
  cells.forEach((cell, token) => {
    if (cell < 0) return;
    summed[cell] += values[first + token];
    count[cell] += 1;
  });
  return summed.map((sum, cell) => sum / count[cell]);
}
