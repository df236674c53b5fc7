// Earlier answers, kept in this browser alone: what a list shows of them, and all there is to them.

const NAME = "avl";
const MOST = 24; // answers
const LARGEST = 64e6; // bytes of all

let opening = null;

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function opened() {
  opening ??= (() => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("heads", { keyPath: "id" });
      request.result.createObjectStore("bodies", { keyPath: "id" });
    };
    return done(request);
  })();
  return opening;
}

async function stores(mode) {
  const transaction = (await opened()).transaction(["heads", "bodies"], mode);
  const ended = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onabort = () => reject(transaction.error);
  });
  return {
    heads: transaction.objectStore("heads"),
    bodies: transaction.objectStore("bodies"),
    ended,
  };
}

function bytesOf(body) {
  let found = 0;
  for (const blob of body.pictures) found += blob.size;
  for (const run of body.runs) {
    for (const one of run.placements) found += one.core.length + one.parked.length;
    for (const one of run.visuals) found += 8 * one.cells.length;
  }
  return found;
}

/** Keeps an answer, and lets the oldest go where there are too many. */
export async function keep(head, body) {
  const bytes = bytesOf(body);
  if (bytes > LARGEST) return;
  const { heads, bodies, ended } = await stores("readwrite");
  const all = await done(heads.getAll());
  const at = Date.now();
  const id = Math.max(at, (all.at(-1)?.id ?? 0) + 1); // two may come in one millisecond
  heads.put({ ...head, id, at, bytes });
  bodies.put({ ...body, id });
  let left = LARGEST;
  [...all, { id, bytes }].reverse().forEach((one, place) => {
    left -= one.bytes;
    if (place < MOST && left >= 0) return;
    heads.delete(one.id);
    bodies.delete(one.id);
  });
  await ended;
}

/** What is shown of all, the newest first. */
export async function heads() {
  const found = await done((await stores("readonly")).heads.getAll());
  return found.reverse();
}

export async function body(id) {
  return done((await stores("readonly")).bodies.get(id));
}

/** Lets one go, or all. */
export async function forget(id = null) {
  const { heads, bodies, ended } = await stores("readwrite");
  for (const one of [heads, bodies]) id === null ? one.clear() : one.delete(id);
  await ended;
}
