// The page: what is chosen and asked, and what is shown of it.

import { AnswerView } from "./answer.js";
import { thumbnail } from "./drawing.js";
import * as history from "./history.js";
import { models } from "./protocol.js";
import { follow, isDone, newRun } from "./run.js";

const at = (id) => document.getElementById(id);
const [form, question, error] = [at("form"), at("question"), at("error")];

let pictures = []; // chosen: { blob, bitmap }
let views = []; // of the answers that are shown
let stopping = null; // the AbortController of what runs
let following = true; // whether the slider stays at the newest step
let drawing = 0;

// --- pictures

const TAKEN = ["image/png", "image/jpeg", "image/webp", "image/gif"]; // by the server, as they are

async function add(files) {
  error.textContent = "";
  for (const blob of files) {
    try {
      const bitmap = await createImageBitmap(blob);
      // Others that this browser reads (AVIF, BMP, on some HEIC) are made into a PNG file here.
      pictures.push({ blob: TAKEN.includes(blob.type) ? blob : await pngOf(bitmap), bitmap });
    } catch {
      error.textContent = `expected a picture, found ${blob.name || "a file"} that is none that this browser reads; choose a PNG, JPEG, WEBP or GIF file`;
    }
  }
  showPictures();
}

function pngOf(bitmap, longest = Infinity) {
  const canvas = thumbnail(bitmap, longest);
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("too large"))), "image/png");
  });
}

function showPictures() {
  at("pictures").replaceChildren(
    ...pictures.map((picture, number) => {
      const item = document.createElement("li");
      const canvas = thumbnail(picture.bitmap, 320);
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `Picture ${number + 1}`);
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = "×";
      button.setAttribute("aria-label", `Take picture ${number + 1} away`);
      button.addEventListener("click", () => {
        pictures.splice(number, 1);
        showPictures();
        at("file").focus();
      });
      item.append(canvas, button);
      return item;
    }),
  );
  at("hint").textContent = pictures.length
    ? "Drop or paste another, or"
    : "Drop or paste a picture here, or";
}

for (const id of ["file", "camera"]) {
  at(id).addEventListener("change", async (event) => {
    const files = [...event.target.files];
    event.target.value = ""; // so that the same file can be chosen again
    await add(files);
  });
}

document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files].filter((one) => one.type.startsWith("image/"));
  if (!files.length) return;
  event.preventDefault();
  add(files);
});

for (const name of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(name, (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    at("drop").classList.toggle("over", name === "dragenter" || name === "dragover");
    if (name === "drop") add([...event.dataTransfer.files]);
  });
}

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

// --- asking

async function ask() {
  if (stopping) return;
  error.textContent = "";
  if (!at("model").value) await showModels();
  if (!at("model").value) return;
  const asked = question.value;
  const policies = [at("policy").value.trim()];
  if (at("compare").checked) policies.push(at("other").value.trim());
  const chosen = [...pictures];
  const runs = policies.map(newRun);
  stopping = new AbortController();
  busy(true);
  show(runs, chosen.map((one) => one.bitmap));
  try {
    const urls = await Promise.all(chosen.map((one) => dataUrl(one.blob)));
    const body = {
      model: at("model").value,
      messages: [
        {
          role: "user",
          content: [
            ...urls.map((url) => ({ type: "image_url", image_url: { url } })),
            { type: "text", text: asked },
          ],
        },
      ],
      max_completion_tokens: Number(at("most").value),
    };
    const { signal } = stopping;
    await Promise.all(runs.map((run) => follow(run, body, at("key").value, signal, redraw)));
  } catch (wrong) {
    error.textContent = wrong.message;
  }
  stopping = null;
  busy(false);
  at("status").textContent = views.map((view) => view.said).join(". ");
  if (runs.some((run) => run.pieces.length)) await remember(asked, chosen, runs);
}

function busy(is) {
  at("ask").disabled = is;
  at("stop").disabled = !is;
  if (is) at("status").textContent = "Answering";
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});

question.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

at("stop").addEventListener("click", () => stopping?.abort());
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stopping?.abort();
});

at("compare").addEventListener("change", showBeside);

function showBeside() {
  at("beside").hidden = !at("compare").checked;
  at("other").required = at("compare").checked;
}

// --- answers

function show(runs, bitmaps) {
  at("answers").replaceChildren();
  views = runs.map((run) => new AnswerView(run, bitmaps, at("answers")));
  at("results").hidden = false;
  following = true;
  redraw();
}

function redraw() {
  drawing ||= requestAnimationFrame(() => {
    drawing = 0;
    const steps = Math.max(0, ...views.map(({ run }) => run.pieces.length - 1));
    const layers = Math.max(0, ...views.map(({ run }) => run.placements[0]?.layers ?? 0));
    const [step, layer] = [at("step"), at("layer")];
    step.max = steps;
    layer.max = layers;
    if (following) step.value = steps;
    const [now, of] = [Number(step.value), Number(layer.value)];
    at("step-told").textContent = now ? `${now} of ${steps}` : `0 of ${steps}, the prompt`;
    at("layer-told").textContent = of ? `${of} of ${layers}` : `all ${layers || ""}`;
    step.setAttribute("aria-valuetext", at("step-told").textContent);
    layer.setAttribute("aria-valuetext", at("layer-told").textContent);
    for (const view of views) view.show(now, of, at("marks").checked);
    at("results").setAttribute("aria-busy", String(!views.every(({ run }) => isDone(run))));
  });
}

at("step").addEventListener("input", () => {
  following = at("step").value === at("step").max;
  redraw();
});
at("layer").addEventListener("input", redraw);
at("marks").addEventListener("change", redraw);

// --- what was asked before

async function remember(asked, chosen, runs) {
  const small = chosen.length ? await pngOf(chosen[0].bitmap, 96) : null;
  const head = { question: asked, policies: runs.map((run) => run.policy), small };
  try {
    await history.keep(head, { question: asked, pictures: chosen.map((one) => one.blob), runs });
  } catch {
    at("status").textContent += " This browser does not keep answers.";
  }
  await showHistory();
}

let thumbnails = [];

async function showHistory() {
  let found = [];
  try {
    found = await history.heads();
  } catch {
    // A browser that keeps nothing has no history to show.
  }
  for (const url of thumbnails) URL.revokeObjectURL(url);
  thumbnails = [];
  at("history").replaceChildren(...found.map(item));
  at("earlier").hidden = !found.length;
}

function item(head) {
  const one = document.createElement("li");
  const open = document.createElement("button");
  open.type = "button";
  open.className = "open";
  if (head.small) {
    const image = document.createElement("img");
    image.alt = "";
    image.src = URL.createObjectURL(head.small);
    thumbnails.push(image.src);
    open.append(image);
  }
  const told = document.createElement("span");
  const [title, about] = [document.createElement("b"), document.createElement("small")];
  title.textContent = head.question;
  about.textContent = `${head.policies.join(" · ")}, ${new Date(head.at).toLocaleString()}`;
  told.append(title, about);
  open.append(told);
  open.addEventListener("click", () => reopen(head.id));
  const away = document.createElement("button");
  away.type = "button";
  away.className = "quiet";
  away.textContent = "×";
  away.setAttribute("aria-label", `Forget: ${head.question}`);
  away.addEventListener("click", async () => {
    await history.forget(head.id);
    await showHistory();
  });
  one.append(open, away);
  return one;
}

async function reopen(id) {
  if (stopping) return;
  const found = await history.body(id);
  if (!found) return;
  pictures = [];
  await add(found.pictures);
  question.value = found.question;
  at("policy").value = found.runs[0].policy;
  at("compare").checked = found.runs.length > 1;
  if (found.runs.length > 1) at("other").value = found.runs[1].policy;
  showBeside();
  show(found.runs, pictures.map((one) => one.bitmap));
  at("results").scrollIntoView();
}

at("forget").addEventListener("click", async () => {
  await history.forget();
  await showHistory();
});

// --- the server's models, its key, and the colours

async function showModels() {
  const key = at("key").value;
  try {
    const names = await models(key);
    at("model").replaceChildren(...names.map((name) => new Option(name, name)));
    at("locked").hidden = !key;
    error.textContent = "";
  } catch (wrong) {
    at("locked").hidden = wrong.status !== 401 && !key;
    if (wrong.status === 401) {
      error.textContent = key ? wrong.message : "This server asks for an API key.";
    } else error.textContent = wrong.message;
  }
}

at("key").value = sessionStorage.getItem("key") ?? "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("key", at("key").value); // until this tab is closed
  showModels();
});

function paint(theme) {
  document.documentElement.dataset.theme = theme;
  at("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

const prefers = matchMedia("(prefers-color-scheme: dark)");
const wished = () => localStorage.getItem("theme") ?? (prefers.matches ? "dark" : "light");
prefers.addEventListener("change", () => paint(wished()));
at("theme").addEventListener("click", () => {
  localStorage.setItem("theme", document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  paint(wished());
});

paint(wished());
showBeside();
showModels();
showHistory();
