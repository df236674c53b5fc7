// A run on the page: its pictures with marks, its text, its figures.

import { byCell, early, mean, placementAt, shares } from "./attention.js";
import { draw } from "./drawing.js";
import { speedOf, textOf } from "./run.js";

const ENDS = {
  stop: "ended by itself",
  length: "ended by the limit of tokens",
  stopped: "stopped",
  time: "cut by the server's time limit",
  shutdown: "cut: the server was stopped",
};

const NAMES = ["core", "secondary", "minor"]; // places of tokens, as they are called
const EARLY = { withheld: "before the decoder", stopped: "between layers" };

function made(name, className, parent, text = "") {
  const found = document.createElement(name);
  found.className = className;
  found.textContent = text;
  parent.append(found);
  return found;
}

const percent = (share) => `${Math.round(share * 100)} %`;

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let unit = 0;
  while (bytes >= 1000 && unit < units.length - 1) {
    bytes /= 1000;
    unit += 1;
  }
  return `${bytes.toFixed(unit && bytes < 100 ? 1 : 0)} ${units[unit]}`;
}

export class AnswerView {
  constructor(run, pictures, parent) {
    this.run = run;
    this.pictures = pictures;
    this.box = made("article", "answer", parent);
    this.title = made("h2", "", this.box, run.policy);
    const shown = made("div", "views", this.box);
    this.canvases = pictures.map(() => {
      const canvas = made("canvas", "", shown);
      canvas.setAttribute("role", "img");
      return canvas;
    });
    const told = made("div", "told", this.box);
    const places = made("p", "shares", told);
    this.shares = NAMES.map((name) => [name, made("span", `share ${name}`, places)]);
    this.early = Object.keys(EARLY).map((name) => [name, made("span", `early ${name}`, places)]);
    const text = made("p", "text", told);
    this.before = text.appendChild(document.createTextNode(""));
    this.mark = made("mark", "", text);
    this.after = text.appendChild(document.createTextNode(""));
    this.meter = made("meter", "", told);
    this.meter.setAttribute("aria-label", "bytes of the cache against dense attention's");
    this.figures = made("p", "figures", told);
    this.wrong = made("p", "wrong", told);
    this.wrong.setAttribute("role", "alert");
  }

  /** Shows how things were at a decode step, in a layer (0 for all of them). */
  show(step, layer, marks) {
    this.title.textContent = this.run.policy;
    this.#showText(step);
    this.#showPlaces(step, layer, marks);
    this.#showFigures();
    if (this.wrong.textContent !== (this.run.error ?? "")) this.wrong.textContent = this.run.error;
  }

  #showText(step) {
    const pieces = this.run.pieces;
    const at = Math.min(step, pieces.length - 1);
    this.before.data = pieces.slice(0, Math.max(0, at)).join("");
    this.mark.textContent = at >= 0 ? pieces[at] : "";
    this.after.data = pieces.slice(at + 1).join("");
  }

  #showPlaces(step, layer, marks) {
    const { run, pictures } = this;
    const at = run.placements.length ? placementAt(run.placements, step) : null;
    const told = at && at.tokens ? shares(at, Math.min(layer, at.layers)) : null;
    const all = told && { ...told, ...early(run.visuals) };
    pictures.forEach((picture, number) => {
      const visual = run.visuals[number];
      const places =
        marks && all && visual
          ? Object.fromEntries(
              Object.entries(all).map(([name, one]) => [name, byCell(one, run.visuals, number)]),
            )
          : null;
      draw(this.canvases[number], picture, visual, places);
    });
    const core = told ? mean(told.core) : 0;
    const secondary = told ? mean(told.secondary) : 0;
    const parts = { core, secondary, minor: 1 - core - secondary };
    for (const [name, part] of this.shares) {
      part.textContent = told ? `${name} ${percent(Math.max(0, parts[name]))}` : "";
      part.hidden = !told;
    }
    for (const [name, part] of this.early) {
      const share = all ? mean(all[name]) : 0;
      part.textContent = share ? `dropped ${EARLY[name]} ${percent(share)}` : "";
      part.hidden = !share;
    }
    const where = layer ? `layer ${layer}` : "all layers";
    const says = told
      ? `step ${step}, ${where}: ${[...this.shares, ...this.early]
          .map(([, part]) => part.textContent)
          .filter(Boolean)
          .join(", ")}`
      : "no marks yet";
    this.canvases.forEach((canvas, number) => {
      canvas.setAttribute("aria-label", `Picture ${number + 1} under ${run.policy}, ${says}`);
    });
  }

  #showFigures() {
    const { run } = this;
    const speed = speedOf(run);
    const told = [
      `${run.pieces.length} tokens`,
      run.prefill !== null && `prompt ${(run.prefill / 1e3).toFixed(2)} s`,
      speed && `${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`,
      run.dense &&
        `cache ${size(run.held)}, ${percent(run.held / run.dense)} of dense's ${size(run.dense)}`,
      ENDS[run.finish],
    ];
    this.figures.textContent = told.filter(Boolean).join(" · ");
    this.meter.hidden = !run.dense;
    if (run.dense) {
      this.meter.max = run.dense;
      this.meter.value = run.held;
    }
  }

  /** What a screen reader is told once the answer is there. */
  get said() {
    return this.run.error
      ? `${this.run.policy}: ${this.run.error}`
      : `${this.run.policy}: ${textOf(this.run)}`;
  }
}
