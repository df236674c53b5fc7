// A picture with the places of its tokens over it.

const CORE = [255, 138, 0];
const SECONDARY = [0, 132, 255];
const MINOR = [20, 23, 28];
const WITHHELD = [104, 84, 128];
const STOPPED = "rgb(0 168 150)";
const LONGEST = 1024; // pixels of a drawing's longer side

/** Draws a picture, and over each of its cells in which place its tokens are.
 *
 * @param picture an ImageBitmap
 * @param visual  what the server tells of it: grid, cells, and the part that is seen
 * @param places  { core, secondary, withheld, stopped }: shares by cell; null draws the picture
 *                alone. What was dropped between layers has a corner marked.
 */
export function draw(canvas, picture, visual, places) {
  const [left, top, right, bottom] = visual ? visual.seen : [0, 0, 1, 1];
  const from = { x: Math.min(0, left), y: Math.min(0, top) };
  const wide = (Math.max(1, right) - from.x) * picture.width;
  const high = (Math.max(1, bottom) - from.y) * picture.height;
  const scale = LONGEST / Math.max(wide, high);
  const size = [Math.max(1, Math.round(wide * scale)), Math.max(1, Math.round(high * scale))];
  if (canvas.width !== size[0] || canvas.height !== size[1]) [canvas.width, canvas.height] = size;
  const pen = canvas.getContext("2d");
  const x = (share) => (share - from.x) * picture.width * scale;
  const y = (share) => (share - from.y) * picture.height * scale;
  pen.fillStyle = "#000";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.drawImage(picture, x(0), y(0), x(1) - x(0), y(1) - y(0));
  if (!places) return;
  veil(pen, [x(left), y(top), x(right), y(bottom)], canvas);
  const [rows, columns] = visual.grid;
  // Edges are whole pixels: between others, neighbours would leave seams.
  const across = edges(x(left), x(right), columns);
  const down = edges(y(top), y(bottom), rows);
  for (let cell = 0; cell < rows * columns; cell++) {
    const core = places.core[cell];
    const secondary = places.secondary[cell];
    if (Number.isNaN(core)) continue;
    const kept = core + secondary;
    const [row, column] = [Math.floor(cell / columns), cell % columns];
    const corner = [across[column], down[row]];
    const box = [...corner, across[column + 1] - corner[0], down[row + 1] - corner[1]];
    const withheld = places.withheld[cell];
    fill(pen, box, withheld === 1 ? WITHHELD : MINOR, 0.86 * (1 - kept));
    if (kept > 0) fill(pen, box, mixed(core / kept), 0.5 * kept);
    if (withheld < 1 && withheld + places.stopped[cell] === 1) notch(pen, box);
  }
}

function edges(from, to, count) {
  return Array.from({ length: count + 1 }, (_, i) => Math.round(from + ((to - from) * i) / count));
}

/** Shades what the model does not see. */
function veil(pen, [left, top, right, bottom], canvas) {
  pen.fillStyle = "rgb(128 128 128 / 0.75)";
  pen.beginPath();
  pen.rect(0, 0, canvas.width, canvas.height);
  pen.rect(left, top, right - left, bottom - top);
  pen.fill("evenodd");
}

function mixed(core) {
  return CORE.map((one, i) => Math.round(one * core + SECONDARY[i] * (1 - core)));
}

function fill(pen, box, colour, strength) {
  pen.fillStyle = `rgb(${colour.join(" ")} / ${strength.toFixed(3)})`;
  pen.fillRect(...box);
}

function notch(pen, [left, top, wide, high]) {
  const bottom = top + high;
  pen.fillStyle = STOPPED;
  pen.beginPath();
  pen.moveTo(left, bottom - 0.4 * high);
  pen.lineTo(left + 0.4 * wide, bottom);
  pen.lineTo(left, bottom);
  pen.fill();
}

/** A canvas with a picture, not larger than `longest`. */
export function thumbnail(picture, longest) {
  const scale = Math.min(1, longest / Math.max(picture.width, picture.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(picture.width * scale));
  canvas.height = Math.max(1, Math.round(picture.height * scale));
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return canvas;
}
